#!/usr/bin/env python3
"""Peer: transformers + PEFT on the processor, with an adapter that is not merged, as a server of several adapters needs it.

usage: peer_transformers.py [--threads 2] [--setting NAME]... BASE_FOLDER ADAPTER_FOLDER

Measures in f32 and in bf16, or in those that are named, and prints one JSON line: the rates of each. Passes of the model
alone: nothing is sampled. Started by bench/serve/compare.py.
"""
import argparse
import json
import statistics
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

# As LONG_PROMPT, PROMPT and BATCH of serving/examples/bench_serve/rates.rs; answers are shorter, since this is slower.
LONG_PROMPT, PROMPT, BATCH, ANSWER, REPEATS = 512, 128, 8, 16, 2
SETTINGS = {"f32": torch.float32, "bf16": torch.bfloat16}


def tokens(*shape):
    return torch.randint(1000, 40000, shape)


def prefill(model):
    rates = []
    for _ in range(REPEATS):
        ids = tokens(1, LONG_PROMPT)
        start = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        rates.append(LONG_PROMPT / (time.perf_counter() - start))
    return statistics.median(rates)


def decoding(model, batch):
    cache = model(input_ids=tokens(batch, PROMPT), use_cache=True, logits_to_keep=1).past_key_values
    start = time.perf_counter()
    for _ in range(ANSWER):
        cache = model(input_ids=tokens(batch, 1), past_key_values=cache, use_cache=True).past_key_values
    return batch * ANSWER / (time.perf_counter() - start)


def measure(base, adapter, dtype):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).to(dtype).eval()
    with torch.inference_mode():
        model(input_ids=tokens(1, 16))  # pays for page faults
        return {
            "prefill_tokens_per_s": prefill(model),
            "adapter_decode_tokens_per_s_1": statistics.median(decoding(model, 1) for _ in range(REPEATS)),
            "adapter_decode_tokens_per_s_8": decoding(model, BATCH),
        }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--setting", action="append", choices=list(SETTINGS), help="default: all")
    p.add_argument("base")
    p.add_argument("adapter")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(json.dumps({"settings": {name: measure(a.base, a.adapter, SETTINGS[name]) for name in a.setting or SETTINGS}}))


if __name__ == "__main__":
    main()

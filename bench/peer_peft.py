#!/usr/bin/env python3
"""Peer: QLoRA fine-tuning with transformers + PEFT + bitsandbytes, the stack a user would pick instead. The script is ours;
scripts/bench-train runs it, with what it needs (scripts/lib/reference.sh).

Prints one JSON line: step time, tokens/s, rows/s, peak RSS, losses. Two kinds of input:
  --data FILE   chat JSONL ({"messages": [...]}), assistant tokens trained, each batch padded to its longest row
  (no --data)   random ids, batch x seq, every position trained: pure arithmetic, no padding
Set-up (about 6 GB on disk): python3 -m venv V && V/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 \
  bitsandbytes==0.50.2 accelerate gguf.  --model takes a Hugging Face folder; `attune models convert` writes one.
"""
import argparse
import json
import os
import random
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--data")
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--quant", choices=["nf4", "none"], default="nf4")
    p.add_argument("--double-quant", type=int, default=1)
    p.add_argument("--checkpointing", type=int, default=0)
    p.add_argument("--targets", default="q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def load(a):
    quant = {}
    if a.quant == "nf4":
        quant["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=bool(a.double_quant))
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32, **quant)
    if a.quant == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(a.checkpointing))
    elif a.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0,
                                             target_modules=a.targets.split(","), task_type="CAUSAL_LM"))
    model.train()
    return model


def chat_rows(path, tok):
    """Ids and labels of each row; a label is -100 where the token is not the assistant's."""
    def ids_of(messages, prompt):
        out = tok.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)
        return list(out["input_ids"])
    rows = []
    for line in open(path):
        messages = json.loads(line)["messages"]
        ids = ids_of(messages, False)
        labels = [-100] * len(ids)
        for i, m in enumerate(messages):
            if m["role"] == "assistant":
                start, end = len(ids_of(messages[:i], True)), len(ids_of(messages[:i + 1], False))
                labels[start:end] = ids[start:end]
        rows.append((ids, labels))
    return rows


def batches(a, tok, rng):
    if not a.data:
        while True:
            ids = torch.tensor([[rng.randrange(100, len(tok) - 100) for _ in range(a.seq)] for _ in range(a.batch)])
            yield {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}, ids.numel()
    rows = chat_rows(a.data, tok)
    while True:
        rng.shuffle(rows)
        for k in range(0, len(rows) - a.batch + 1, a.batch):
            part = rows[k:k + a.batch]
            width = max(len(i) for i, _ in part)
            pad = lambda xs, v: xs + [v] * (width - len(xs))
            yield {"input_ids": torch.tensor([pad(i, 0) for i, _ in part]),
                   "labels": torch.tensor([pad(l, -100) for _, l in part]),
                   "attention_mask": torch.tensor([pad([1] * len(i), 0) for i, _ in part])}, sum(len(i) for i, _ in part)


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count())))
    tok = AutoTokenizer.from_pretrained(a.model)
    start = time.time()
    model = load(a)
    load_s = time.time() - start
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=a.lr)
    source = batches(a, tok, random.Random(a.seed))
    times, tokens, losses = [], [], []
    for _ in range(a.steps):
        batch, n = next(source)
        start = time.time()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.time() - start)
        tokens.append(n)
        losses.append(round(loss.item(), 4))
    warm, warm_tokens = times[1:], tokens[1:]  # the first step pays for set-up
    print(json.dumps({
        "tool": "transformers+peft+bitsandbytes", "quant": a.quant, "checkpointing": a.checkpointing, "batch": a.batch,
        "seq": a.seq, "rank": a.rank, "threads": torch.get_num_threads(), "load_s": round(load_s, 2),
        "step_s_median": round(statistics.median(warm), 3), "tokens_per_s": round(sum(warm_tokens) / sum(warm), 1),
        "rows_per_s": round(a.batch * len(warm) / sum(warm), 3),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "losses": losses}))


if __name__ == "__main__":
    main()

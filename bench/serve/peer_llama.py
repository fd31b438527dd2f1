#!/usr/bin/env python3
"""Peer: llama.cpp through llama-cpp-python's low-level interface, which has batches of several sequences.

usage: peer_llama.py [--threads 2] [--short] [--setting NAME]... GGUF...

Measures each file in each setting (flash attention on and off, keys and values in 16 and in 8 bits, prompts in passes of
512 and of 128 tokens, one thread and all), or in those that are named, and prints one JSON line: the rates of each.
Sequences share a cache or have one each, whichever is faster. Tokens are random and nothing is sampled, as in llama.cpp's
own llama-bench; Attune's rates include sampling, text and HTTP. Started by bench/serve/compare.py.
"""
import argparse
import ctypes
import itertools
import json
import random
import statistics
import time

import llama_cpp as lib

# As LONG_PROMPT, PROMPT, ANSWER, BATCH_ANSWER, BATCH and REPEATS of serving/examples/bench_serve/rates.rs.
LONG_PROMPT, PROMPT, ANSWER, BATCH_ANSWER, BATCH, REPEATS = 512, 128, 64, 128, 8, 3
# (PROMPT, ANSWER, BATCH_ANSWER, REPEATS), and whether sequences share a cache: of a short measurement, which only finds the
# best settings, and of a whole one.
SHORT = ((32, 16, 16, 2), [True])
WHOLE = ((PROMPT, ANSWER, BATCH_ANSWER, REPEATS), [True, False])
F16, Q8_0 = lib.GGML_TYPE_F16, lib.GGML_TYPE_Q8_0
ON, OFF = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED, lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
# Values in 8 bits need flash attention.
CACHES = {"f16": (F16, OFF), "f16, flash": (F16, ON), "q8_0, flash": (Q8_0, ON)}
PASSES = [512, 128]


def settings_of(path, threads):
    """The settings of a file by name: the types of keys and values, flash attention, tokens of a pass, threads."""
    kind = path.removesuffix(".gguf").rsplit(".", 1)[-1]
    several = itertools.product(CACHES, PASSES, sorted({1, threads}))
    return {f"{kind}, {cache}, {rows} rows, {count} threads": (*CACHES[cache], rows, count) for cache, rows, count in several}


class Context:
    """A context of a model in one setting, for a number of sequences, which share one cache or have one each."""

    def __init__(self, model, setting, sequences=1, unified=False):
        keys, flash, rows, threads = setting
        settings = lib.llama_context_default_params()
        settings.n_ctx = sequences * (LONG_PROMPT if sequences == 1 else PROMPT + BATCH_ANSWER)
        settings.n_batch, settings.n_ubatch = LONG_PROMPT, rows
        settings.n_seq_max = sequences
        settings.kv_unified = unified
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = keys
        settings.flash_attn_type = flash
        self.context = lib.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp could not create a context")
        self.batch = lib.llama_batch_init(LONG_PROMPT, 0, 1)
        self.memory = lib.llama_get_memory(self.context)
        self.prompt(16, 0)  # pays for page faults

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.context)

    def clear(self):
        lib.llama_memory_clear(self.memory, True)

    def decode(self, tokens):
        """One pass over tokens (ID, position, sequence, whether its logits are needed), until it is computed."""
        for at, (token, position, sequence, logits) in enumerate(tokens):
            self.batch.token[at], self.batch.pos[at] = token, position
            self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
            self.batch.logits[at] = logits
        self.batch.n_tokens = len(tokens)
        result = lib.llama_decode(self.context, self.batch)
        if result != 0:
            raise RuntimeError(f"llama_decode returned {result}")
        lib.llama_synchronize(self.context)

    def prompt(self, count, sequence):
        self.decode([(token(), at, sequence, at == count - 1) for at in range(count)])


def token():
    return random.randrange(1000, 40000)


def prefill(context, repeats):
    rates = []
    for _ in range(repeats):
        context.clear()
        start = time.perf_counter()
        context.prompt(LONG_PROMPT, 0)
        rates.append(LONG_PROMPT / (time.perf_counter() - start))
    return statistics.median(rates)


def decoding(context, batch, prompt, answer):
    """Tokens per second of `batch` sequences after their prompts, one token of each in a pass."""
    context.clear()
    for sequence in range(batch):
        context.prompt(prompt, sequence)
    start = time.perf_counter()
    for at in range(prompt, prompt + answer):
        context.decode([(token(), at, sequence, True) for sequence in range(batch)])
    return batch * answer / (time.perf_counter() - start)


def measure(path, threads, wanted, short):
    """Rates by setting."""
    chosen = {name: setting for name, setting in settings_of(path, threads).items() if not wanted or name in wanted}
    if not chosen:
        return {}
    (prompt, answer, batch_answer, repeats), shared = SHORT if short else WHOLE
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp could not load {path}")
    results = {}
    for name, setting in chosen.items():
        with Context(model, setting) as context:
            results[name] = {
                "prefill_tokens_per_s": prefill(context, repeats),
                "decode_tokens_per_s_1": statistics.median(decoding(context, 1, prompt, answer) for _ in range(repeats)),
            }
        batches = []
        for unified in shared:
            with Context(model, setting, BATCH, unified) as context:
                batches.append(decoding(context, BATCH, prompt, batch_answer))
        results[name]["decode_tokens_per_s_8"] = max(batches)
    lib.llama_model_free(model)
    return results


@lib.llama_log_callback
def silent(level, text, data):
    pass


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--setting", action="append", help="such as 'Q4_0, f16, flash, 512 rows, 2 threads'; default: all")
    p.add_argument("--short", action="store_true", help="fewer tokens and repeats")
    p.add_argument("files", nargs="+")
    a = p.parse_args()
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    settings = {}
    for path in a.files:
        settings |= measure(path, a.threads, a.setting, a.short)
    print(json.dumps({"settings": settings}))


if __name__ == "__main__":
    main()

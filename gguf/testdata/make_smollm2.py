#!/usr/bin/env python3
"""Writes smollm2.json: what transformers makes of the quickstart's base model.

Use: python gguf/testdata/make_smollm2.py FOLDER_WITH_GGUF   (transformers 5.23.0, torch 2.13.0; needs no network)

One thing is put right first: transformers 5.23 does not know the pre-tokenizer `smollm` that the file names and cuts
with GPT-2's expression alone, while the model's own tokenizer.json takes each digit by itself before that. The other
texts of `encodings` are equal either way; `departs` counts those that are not.
"""
import hashlib
import json
import pathlib
import sys

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

TEXTS = [
    "", " ", "Hello world", "It's 2024-05-17, isn't it? They've 12345 of them.", "naïve café Zürich",
    "日本語のテキスト。Привет, мир! مرحبا", "🙂 👩‍👩‍👧‍👦 🇨🇭 \u0301\u200b", "  leading and trailing  ", "a\tb\r\nc\n\n\n\td",
    "\n\n1. one\n  22 two\n\n\n333 three", "x  1   23", "def f(x):\n    return x ** 2  # squared\n", "<|im_start|>user\nhi<|im_end|>",
    "a<|im_end|>b<|endoftext|><repo_name>", "<|im_start", "http://example.com/a?b=c&d=%20#e", "{\"a\": [1, 2.5, null], \"é\": \"\\n\"}",
    "ALL CAPS, CamelCase, snake_case, kebab-case", "½ ² Ⅷ ٣ 𝟜 ௧", "\x00\x07\x1b[0m", "word " * 50, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ﬁ ﬂ Å Å ｆｕｌｌ",
]

CHATS = [
    [("user", "Hi"), ("assistant", "Hello!")],
    [("system", "You turn messages into JSON."), ("user", "Two tickets for Ann on 3 May, please."), ("assistant", "{\"name\": \"Ann\", \"count\": 2}")],
    [("user", "1+1?"), ("assistant", "2"), ("user", "  And 2+2?\n"), ("assistant", " Four.\n\nSure?"), ("user", "Yes"), ("assistant", "🙂")],
    [("system", ""), ("user", ""), ("assistant", "x"), ("assistant", "y")],
]


def ids_of(tokenizer, messages, prompt):
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"])


def main():
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    plain = [tokenizer(text).input_ids for text in TEXTS]
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
    encodings = []
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        encodings.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    departs = sum(e["ids"] != before for e, before in zip(encodings, plain))

    chats = []
    for chat in CHATS:
        messages = [{"role": role, "content": content} for role, content in chat]
        ids = ids_of(tokenizer, messages, False)
        trained = [False] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = len(ids_of(tokenizer, messages[:i], True)), len(ids_of(tokenizer, messages[:i + 1], False))
                trained[start:end] = [True] * (end - start)
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        chats.append({"messages": messages, "rendered": rendered, "ids": ids, "trained": trained})

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    weights = {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
               for name, value in model.state_dict().items() if name != "lm_head.weight"}
    header = {"made_by": "make_smollm2.py", "transformers": transformers.__version__, "torch": torch.__version__, "departs": departs}
    text = json.dumps({**header, "weights": weights, "encodings": encodings, "chats": chats}, ensure_ascii=False)
    (HERE / "smollm2.json").write_text(text + "\n")


main()

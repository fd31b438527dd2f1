"""Loads an exported adapter with PEFT, as it is, and generates with it.

Use: check_peft.py BASE_FOLDER ADAPTER_FOLDER QUESTION.  Wants torch, transformers and peft; `make golden` makes such an
environment. Not part of `make test`, because that would cost every machine 6 GB.
"""
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, question = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt")
ids = model.generate(**inputs, do_sample=False, max_new_tokens=80)
print(tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))

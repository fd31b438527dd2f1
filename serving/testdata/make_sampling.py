#!/usr/bin/env python3
"""Makes sampling.json: the distributions that transformers samples from, for combinations of sampling parameters.

The processors and their order are those of GenerationMixin._get_logits_processor. Needs transformers 5.23.0, torch 2.13.0.
Use: make_sampling.py
"""
import itertools
import json
import pathlib

import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCABULARY = 24
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
generator = torch.Generator().manual_seed(7)
cases = []
grid = itertools.product([1.0, 0.7], [0, 1, 6], [1.0, 0.8], [None, 0.2], [1.0, 1.4], [False, True])
for number, (temperature, top_k, top_p, min_p, penalty, biased) in enumerate(grid):
    logits = (torch.randn(1, VOCABULARY, generator=generator) * 2).round(decimals=3)
    if number % 3 == 0:
        logits[0, 5] = logits[0, 9] = logits.max()  # a tie
    prompt = torch.randint(VOCABULARY, (1, 5), generator=generator)
    bias = {"3": 1.5, "9": -2.0} if biased else {}
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty,
        sequence_bias={(int(token),): value for token, value in bias.items()} or None)
    config._eos_token_tensor = None
    processors = model._get_logits_processor(generation_config=config, input_ids_seq_length=prompt.shape[1])
    probabilities = processors(prompt, logits.clone()).softmax(-1)[0]
    cases.append({
        "logits": [round(logit, 3) for logit in logits[0].tolist()],
        "prompt": prompt[0].tolist(),
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p or 0.0,
        "repetition_penalty": penalty, "logit_bias": bias,
        "probabilities": {str(token): round(p, 6) for token, p in enumerate(probabilities.tolist()) if p > 0},
    })
out = {"made_by": "serving/testdata/make_sampling.py", "transformers": transformers.__version__, "cases": cases}
text = json.dumps(out).replace('{"logits"', '\n{"logits"')
(pathlib.Path(__file__).parent / "sampling.json").write_text(text + "\n")

#!/usr/bin/env python3
"""Makes tiny/<family>/: a random two-layer model of each family as transformers saves it, token ids, and the logits that
transformers gives for them; for llama also a PEFT adapter, its logits, and its gradients for a loss on some positions.

Needs torch 2.13.0, transformers 5.23.0, peft 0.21.2. Use: make_tiny.py
"""
import json
import pathlib
import shutil

import peft
import torch
import transformers
from safetensors.torch import save_file
from transformers import (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, AutoModelForCausalLM)

torch.set_num_threads(2)
here = pathlib.Path(__file__).parent / "tiny"
common = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=128, max_position_embeddings=256)
llama3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
yarn_given = yarn | {"factor": 8.0, "original_max_position_embeddings": 32, "attention_factor": 1.3, "beta_fast": 4.0,
                     "beta_slow": 0.5, "truncate": False}
configs = {
    "llama": LlamaConfig(**common, tie_word_embeddings=True, attention_bias=False),
    "llama3": LlamaConfig(**common, rope_parameters=llama3, attention_bias=True),
    "mistral": MistralConfig(**common, sliding_window=8, head_dim=24),
    "qwen2": Qwen2Config(**common, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "qwen3": Qwen3Config(**common, head_dim=32),
    "yarn": Qwen2Config(**common, tie_word_embeddings=True, rope_parameters=yarn),
    "yarn_given": LlamaConfig(**common, rope_parameters=yarn_given, attention_bias=True, mlp_bias=True),
    "windows": Qwen3Config(**common, head_dim=32, use_sliding_window=True, sliding_window=8, max_window_layers=1),
}
versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "made_by": "model/testdata/make_tiny.py"}


def randomise(model, seed):
    """Weights large enough that every part of the model matters to the logits; transformers leaves biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        mean, spread = (1.0, 0.2) if name.endswith("norm.weight") else (0.0, 0.15)
        p.data = mean + spread * torch.randn(p.shape, generator=generator)
    return model.eval()


shutil.rmtree(here, ignore_errors=True)
for seed, (name, config) in enumerate(configs.items()):
    folder = here / name
    model = randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32), seed)
    # Two shards and an index for one of them.
    model.save_pretrained(folder, max_shard_size="150KB" if name == "mistral" else "10MB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(0, 128, (40,), generator=torch.Generator().manual_seed(100 + seed))
    with torch.no_grad():
        golden = {"ids": ids, "logits": model(ids.unsqueeze(0)).logits[0]}
    if name == "llama":
        wrapped = peft.get_peft_model(model, peft.LoraConfig(
            r=4, lora_alpha=12, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "o_proj", "down_proj"]))
        generator = torch.Generator().manual_seed(7)
        for key, p in wrapped.named_parameters():
            if "lora_" in key:
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
        wrapped.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink(missing_ok=True)
        trained = torch.rand(40, generator=generator) < 0.5
        trained[0] = False
        logits = wrapped(ids.unsqueeze(0)).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1][trained[1:]], ids[1:][trained[1:]], reduction="sum")
        (loss / 50).backward()  # 50: the trained tokens of a larger effective batch
        golden |= {"adapter_logits": logits.detach(), "trained": trained, "loss_sum": loss.detach().reshape(1)}
        for key, p in wrapped.named_parameters():
            if p.grad is not None:
                golden["gradient." + key.replace(".default", "")] = p.grad
    save_file({k: v.contiguous() for k, v in golden.items()}, folder / "golden.tensors", metadata=versions)
    print(name, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) // 1024, "KiB")

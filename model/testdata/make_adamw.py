#!/usr/bin/env python3
"""Makes adamw.tensors: twelve steps of torch.optim.AdamW with clipping on two factors of the tiny llama's adapter.

Needs torch 2.13.0, safetensors. Use: make_adamw.py
"""
import pathlib

import torch
from safetensors.torch import load_file, save_file

here = pathlib.Path(__file__).parent
start = load_file(here / "tiny/llama/adapter/adapter_model.safetensors")
generator = torch.Generator().manual_seed(3)
factors = {name: torch.nn.Parameter(t.clone()) for name, t in sorted(start.items())}
optimizer = torch.optim.AdamW(factors.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
out, norms = {}, []
for step in range(12):
    for name, p in factors.items():
        p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step % 4 - 2)
        out[f"{step}.{name}"] = p.grad.clone()
    norms.append(torch.nn.utils.clip_grad_norm_(factors.values(), 1.0).item())
    optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
    optimizer.step()
out |= {f"end.{name}": p.detach() for name, p in factors.items()}
out["norms"] = torch.tensor(norms)
save_file(out, here / "adamw.tensors", metadata={"torch": torch.__version__, "made_by": "model/testdata/make_adamw.py"})

#!/usr/bin/env python3
"""Makes adamw8bit.tensors: ten steps of bitsandbytes' own AdamW8bit, run by its CPU backend.

Tensors: `whole` is 16 blocks of 256, 4096 numbers, just enough for 8 bits; `short` has a short last block; `small` has
fewer than `min_8bit_size` = 4096 numbers, and bitsandbytes keeps its moments in f32 (its update is then AdamW's, in the order
`p -= lr * c2/c1 * m / (sqrt(v) + eps * c2)`).

  start.<tensor>, <step>.gradient.<tensor> (f16, of which f32 holds every number), rates: [10]
  after.<1, 2 and 10>.<tensor>.weight, .mean, .square (u8 codes; f32 for `small`), .mean_scales, .square_scales: [blocks]
  signed_map, unsigned_map: the values of the codes, `create_dynamic_map(signed=True / False)`

The order of operations in a step (bitsandbytes 0.50.2, `backends/cpu/ops.py`, `_optimizer_update_8bit_blockwise_cpu`), all in
f32, with c1 = 1 - beta1^step and c2 = sqrt(1 - beta2^step) in f64, steps counted from 1:
  1. m = signed_map[code] * scale of its block, v = unsigned_map[code] * scale. Before the first step all codes and scales are
     0, so both are zeros.
  2. m = m * beta1 + g * (1 - beta1);  v = v * beta2 + g * g * (1 - beta2)
  3. d = sqrt(v) / c2 + eps, of the new v in full: it is rounded to 8 bits only after the step
  4. weight *= 1 - lr * weight_decay, then weight += -lr / c1 * m / d
  5. each block's scale is its largest |m| (|v|); m / scale and v / scale become the code of the nearest value, as
     `quantize_blockwise` does it: see `nearest_dynamic` in src/nf4.rs, which rounds to one of 65 536 steps from -1 to 1 first.
     A block of zeros gets the scale 0 and the codes 0.

Needs torch 2.13.0, bitsandbytes 0.50.2, safetensors. Use: make_adamw8bit.py
"""
import pathlib

import bitsandbytes
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import save_file

STEPS, KEPT = 10, (1, 2, 10)
torch.set_num_threads(2)
generator = torch.Generator().manual_seed(40)
normal = lambda *shape: torch.randn(*shape, generator=generator)
weights = {name: torch.nn.Parameter(normal(*shape)) for name, shape in
           {"whole": (16, 256), "short": (60, 70), "small": (5, 13)}.items()}
optimizer = bitsandbytes.optim.AdamW8bit(weights.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
tensors = {f"start.{name}": p.detach().clone() for name, p in weights.items()}
tensors |= {"signed_map": bnb.create_dynamic_map(signed=True), "unsigned_map": bnb.create_dynamic_map(signed=False)}
tensors["rates"] = torch.tensor([1e-2 / (step + 1) for step in range(STEPS)], dtype=torch.float64)
for step in range(1, STEPS + 1):
    for name, p in weights.items():
        # Sizes from 1e-3 to 10 in one block, so that the small ones end at the small codes.
        gradient = (normal(*p.shape) * 10.0 ** (4 * torch.rand(p.shape, generator=generator) - 3)).half()
        if step <= 2:
            gradient.view(-1)[:256] = 0  # a block that stays zero for two steps
        tensors[f"{step}.gradient.{name}"] = gradient
        p.grad = gradient.float()
    optimizer.param_groups[0]["lr"] = tensors["rates"][step - 1].item()
    optimizer.step()
    for name, p in weights.items():
        state = optimizer.state[p]
        assert state["state1"].dtype == (torch.float32 if name == "small" else torch.uint8) and state["step"] == step
        if step in KEPT:
            kept = {"weight": p.detach(), "mean": state["state1"], "square": state["state2"]}
            if name != "small":
                kept |= {"mean_scales": state["absmax1"], "square_scales": state["absmax2"]}
            tensors |= {f"after.{step}.{name}.{what}": t.clone() for what, t in kept.items()}
# How far 8 bits are from 32, so that a tolerance can be judged.
plain = {name: torch.nn.Parameter(tensors[f"start.{name}"].clone()) for name in weights}
exact = torch.optim.AdamW(plain.values(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
for step in range(1, STEPS + 1):
    for name, p in plain.items():
        p.grad = tensors[f"{step}.gradient.{name}"].float()
    exact.param_groups[0]["lr"] = tensors["rates"][step - 1].item()
    exact.step()
for name, p in plain.items():
    print(name, "differs from torch.optim.AdamW by at most", (p - weights[name]).abs().max().item())
versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__, "made_by": "model/testdata/make_adamw8bit.py"}
save_file(tensors, pathlib.Path(__file__).with_name("adamw8bit.tensors"), metadata=versions)

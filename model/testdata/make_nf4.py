#!/usr/bin/env python3
"""Makes nf4.safetensors: weights and what bitsandbytes' CPU code makes of them in NF4, with and without double quantisation.

Needs torch 2.13.0, bitsandbytes 0.50.2, safetensors. Use: make_nf4.py [OUT]
"""
import pathlib
import sys

import bitsandbytes
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import save_file

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(20)
normal = lambda *shape: torch.randn(*shape, generator=generator)
# Shapes: whole blocks, one short last block, more blocks than one group of 256, a group that is not full.
weights = {
    "normal": normal(128, 288) * 0.04,
    "heavy_tail": normal(48, 64).pow(3) * 0.02,
    "rows_of_unequal_size": normal(64, 100) * torch.logspace(-6, 2, 64).unsqueeze(1),
    "short_last_block": normal(7, 30),
    "zeros": torch.zeros(64, 8),
    "one_block_of_zeros": torch.cat([torch.zeros(1, 64), normal(5, 64)]),
    "levels_and_midpoints": torch.cat([
        bnb.get_4bit_type("nf4", device="cpu").repeat(4),
        (bnb.get_4bit_type("nf4", device="cpu")[:-1] + bnb.get_4bit_type("nf4", device="cpu")[1:]) / 2,
        torch.ones(1), torch.linspace(-1, 1, 48),
    ]).reshape(2, 64),
}
tensors = {"nf4_levels": bnb.get_4bit_type("nf4", device="cpu"), "dynamic_map": bnb.create_dynamic_map()}
for name, weight in weights.items():
    tensors[f"{name}.weight"] = weight.contiguous()
    for double in (False, True):
        codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
        prefix = f"{name}.double" if double else f"{name}.single"
        tensors[f"{prefix}.codes"] = codes.flatten()
        tensors[f"{prefix}.absmax"] = state.absmax.clone()
        tensors[f"{prefix}.dequantized"] = bnb.dequantize_4bit(codes, state)
        if double:
            tensors[f"{prefix}.offset"] = state.offset.reshape(1)
            tensors[f"{prefix}.nested_absmax"] = state.state2.absmax.clone()
out = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).with_name("nf4.safetensors")
versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__, "made_by": "model/testdata/make_nf4.py"}
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata=versions)

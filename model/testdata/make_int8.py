#!/usr/bin/env python3
"""Makes int8.tensors: weights, and what bitsandbytes' CPU code makes of them in 8 bits with a scale for each row.

  <name>.weight       [out, in], f32
  <name>.codes        i8: round(weight * (127 / scale)), to the even number of two equally near
  <name>.scales       [out], f32 (bitsandbytes' SCB): each row's largest absolute value
  <name>.dequantized  (codes * scale) * 7.874015718698502e-3, in this order, both products rounded to f32

A row of zeros has a scale of 0, and bitsandbytes then divides by it and casts 0 * inf to an integer, which is not defined
in C++. There is none here; its codes should be zeros.

A weight of bitsandbytes' Linear8bitLt is cast to f16 before it is quantised; `int8_vectorwise_quant` itself takes f32, and
Attune quantises what the file says. A product with activations in 8 bits (LLM.int8()) is another thing: here the weight is
unpacked and multiplied in f32, as bitsandbytes' backward does.

Needs torch 2.13.0, bitsandbytes 0.50.2, safetensors. Use: make_int8.py
"""
import pathlib

import bitsandbytes
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import save_file

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(30)
normal = lambda *shape: torch.randn(*shape, generator=generator)
codes = torch.arange(-127, 128).float()
weights = {
    "normal": normal(48, 96) * 0.04,
    "heavy_tail": normal(33, 65).pow(3) * 0.02,
    "rows_of_unequal_size": normal(24, 67) * torch.logspace(-30, 6, 24).unsqueeze(1),
    "one_column": normal(9, 1),
    "one_row": normal(1, 129),
    # A scale of 127, so that each number is its own code or lies between two; and the same with a scale of 254.
    "codes_and_midpoints": torch.stack([
        codes, torch.cat([codes[:-1] + 0.5, torch.tensor([127.0])]), torch.cat([2 * codes[:-1] + 1, torch.tensor([254.0])]),
    ]),
}
tensors = {}
for name, weight in weights.items():
    packed, scales, outliers = bnb.int8_vectorwise_quant(weight)
    assert outliers is None and packed.dtype == torch.int8
    tensors[f"{name}.weight"] = weight.contiguous()
    tensors[f"{name}.codes"] = packed
    tensors[f"{name}.scales"] = scales
    tensors[f"{name}.dequantized"] = bnb.int8_vectorwise_dequant(packed, scales)
    off = (tensors[f"{name}.dequantized"] - weight).abs() / scales.unsqueeze(1)
    print(name, tuple(weight.shape), "off by at most", off.max().item(), "of a row's largest")
versions = {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__, "made_by": "model/testdata/make_int8.py"}
save_file(tensors, pathlib.Path(__file__).with_name("int8.tensors"), metadata=versions)

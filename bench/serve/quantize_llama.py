#!/usr/bin/env python3
"""Writes a GGUF file as Q4_0, the 4-bit type for which llama.cpp has its fastest kernels.

usage: quantize_llama.py IN.gguf OUT.gguf
"""
import ctypes
import sys

import llama_cpp as lib

SOURCE, TARGET = sys.argv[1:3]
settings = lib.llama_model_quantize_default_params()
settings.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_0
settings.allow_requantize = True
if lib.llama_model_quantize(SOURCE.encode(), TARGET.encode(), ctypes.byref(settings)) != 0:
    sys.exit(f"llama.cpp could not write {SOURCE} as Q4_0")

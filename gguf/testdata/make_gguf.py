#!/usr/bin/env python3
"""Writes tiny GGUF files and what must come of them, beside this file.

Use: python gguf/testdata/make_gguf.py   (gguf 0.19.0, transformers 5.23.0, torch 2.13.0; needs no network)

kinds.gguf     one block per quantisation; expected weights are gguf-py's own dequantisation
llama3.gguf    Llama with rope_freqs, its own lm_head, byte-level BPE cut as `llama-bpe`
mistral.gguf   Llama by architecture, Mistral by name; sentencepiece BPE with scores and byte fallback
qwen2.gguf     biases, BPE cut as `qwen2`; qwen3.gguf: norms on q and k, F16 matrices
For the last four, expected weights, configuration and token ids are those of transformers' own GGUF reader.
All numbers come from a seed. Weights are given as the SHA-256 of their little-endian bytes.
"""
import hashlib
import json
import pathlib

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as T
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(7)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "It's 2024-05-17; they're 12345 kilometres away, aren't they? We'll see what they've done.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\n",
    "naïve café, Zürich, 日本語のテキスト, Привет мир, 🙂🙃 and so on...",
    "one two three four five six seven eight nine ten, one two three, the other the other",
] * 4
TEXTS = CORPUS[:5] + [
    "", " ", "   leading and trailing   ", "\n\n1. one\n  22 two\n\n\n333 three", "tabs\tand\r\nCRLF", "a<|end|>b",
    "🙂 👩‍👩‍👧 \u0301 combining, \u200bzero width", "MiXeD CaSe I'M YOU'RE", "!!!???... --- ===", "x" * 40, "\x00\x07 control",
]


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def normal(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


# ---- kinds.gguf

SCALES = {  # offsets of the half-precision scales inside a block of random bytes
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
KINDS = [T.F32, T.F16, T.BF16] + list(SCALES)


def raw_tensor(kind, rows, columns):
    """Bytes as stored, and the numbers that they mean."""
    if kind == T.F32:
        values = normal(rows, columns)
        return values, values, "F32"
    if kind == T.F16:
        values = normal(rows, columns).astype(np.float16)
        return values, values, "F16"
    if kind == T.BF16:
        stored = gguf.quants.quantize(normal(rows, columns), T.BF16)
        return stored, stored, "BF16"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = RNG.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = (RNG.standard_normal(len(blocks)) * 0.01).astype(np.float16)
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(-1, 2)
    stored = blocks.reshape(rows, -1)
    return stored, gguf.quants.dequantize(stored, kind).astype(np.float32), "F32"


def make_kinds():
    hidden, heads, kv, head, ffn = 256, 2, 1, 8, 8
    tokenizer = byte_level("gpt-2")
    path = HERE / "kinds.gguf"
    w = writer(path, "llama", "Every kind", dict(
        hidden=hidden, heads=heads, kv=kv, head=head, ffn=ffn, layers=len(KINDS), context=64, theta=10000.0))
    add_byte_level(w, tokenizer, "gpt-2")
    expected = {}

    def add(name, hf, kind, rows, columns, permuted=None):
        stored, values, dtype = raw_tensor(kind, rows, columns)
        raw = kind if kind in SCALES or kind == T.BF16 else None
        w.add_tensor(name, stored, raw_dtype=raw)
        if permuted:
            values = LlamaTensorProcessor()._reverse_permute_weights(values, permuted, permuted)
        expected[hf] = {"dtype": dtype, "sha256": digest(values), "kind": kind.name}

    add("token_embd.weight", "model.embed_tokens.weight", T.Q8_0, len(tokenizer["tokens"]), hidden)
    w.add_tensor("output_norm.weight", np.ones(hidden, dtype=np.float32))
    for i, kind in enumerate(KINDS):
        a, b = f"blk.{i}.", f"model.layers.{i}."
        add(a + "attn_q.weight", b + "self_attn.q_proj.weight", kind, heads * head, hidden, heads)
        add(a + "attn_k.weight", b + "self_attn.k_proj.weight", kind, kv * head, hidden, kv)
        add(a + "attn_v.weight", b + "self_attn.v_proj.weight", kind, kv * head, hidden)
        add(a + "attn_output.weight", b + "self_attn.o_proj.weight", T.F16, hidden, heads * head)
        add(a + "ffn_gate.weight", b + "mlp.gate_proj.weight", kind, ffn, hidden)
        add(a + "ffn_up.weight", b + "mlp.up_proj.weight", kind, ffn, hidden)
        add(a + "ffn_down.weight", b + "mlp.down_proj.weight", T.F16, hidden, ffn)
        for norm in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"{a}{norm}.weight", np.ones(hidden, dtype=np.float32))
    close(w)
    return {"file": path.name, "weights": expected}


# ---- whole models

def writer(path, arch, name, m):
    w = gguf.GGUFWriter(path, arch)
    w.add_name(name)
    w.add_context_length(m["context"])
    w.add_embedding_length(m["hidden"])
    w.add_block_count(m["layers"])
    w.add_feed_forward_length(m["ffn"])
    w.add_head_count(m["heads"])
    w.add_head_count_kv(m["kv"])
    w.add_rope_freq_base(m["theta"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(m["head"])
    if m["head"] * m["heads"] != m["hidden"] or arch == "qwen3":
        w.add_key_length(m["head"])
        w.add_value_length(m["head"])
    return w


def close(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def byte_level(pre):
    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre not in GGUF_PRE_TOKENIZER_SPLITS)
    if pre in GGUF_PRE_TOKENIZER_SPLITS:
        split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated")
        byte = pre_tokenizers.Sequence([split, byte])
    tokenizer.pre_tokenizer = byte
    special = ["<|begin|>", "<|end|>", "<|turn|>"]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=360, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1])]
    return {"tokens": tokens + ["<think>"], "merges": [" ".join(m) for m in model["merges"]],
            "types": [3] * 3 + [1] * (len(tokens) - 3) + [4]}


def add_byte_level(w, t, pre):
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(t["tokens"])
    w.add_token_merges(t["merges"])
    w.add_token_types(t["types"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_eot_token_id(2)
    w.add_chat_template("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|turn|>\n' }}{% endfor %}")


def sentencepiece():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(tokenizer.to_str())["model"]
    learnt = [a + b for a, b in (m if isinstance(m, list) else m.split(" ") for m in model["merges"])]
    letters = [t for t, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1]) if len(t) == 1]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + ["[INST]"] + learnt + letters
    types = [2, 3, 3] + [6] * 256 + [3] + [1] * (len(learnt) + len(letters))
    scores = [0.0] * 260 + [-float(i) for i in range(len(learnt) + len(letters))]
    return tokens, types, scores


def make_model(name, arch, title, pre=None, *, hidden=32, heads=4, kv=2, head=8, bias=False, norms=False, tied=True,
               half=False, freqs=None):
    path = HERE / f"{name}.gguf"
    m = dict(hidden=hidden, heads=heads, kv=kv, head=head, ffn=48, layers=2, context=256, theta=500000.0)
    w = writer(path, arch, title, m)
    if pre:
        t = byte_level(pre)
        tokens = t["tokens"]
        add_byte_level(w, t, pre)
    else:
        tokens, types, scores = sentencepiece()
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list(tokens)
        w.add_token_types(types)
        w.add_token_scores(scores)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
    matrix = (lambda *s: normal(*s).astype(np.float16)) if half else normal
    w.add_tensor("token_embd.weight", matrix(len(tokens), hidden))
    w.add_tensor("output_norm.weight", normal(hidden))
    if not tied:
        w.add_tensor("output.weight", matrix(len(tokens), hidden))
    if freqs is not None:
        w.add_tensor("rope_freqs.weight", freqs)
    for i in range(m["layers"]):
        a = f"blk.{i}."
        for leaf, rows, columns in (("attn_q", heads * head, hidden), ("attn_k", kv * head, hidden),
                                    ("attn_v", kv * head, hidden), ("attn_output", hidden, heads * head),
                                    ("ffn_gate", 48, hidden), ("ffn_up", 48, hidden), ("ffn_down", hidden, 48)):
            w.add_tensor(f"{a}{leaf}.weight", matrix(rows, columns))
            if bias and leaf in ("attn_q", "attn_k", "attn_v"):
                w.add_tensor(f"{a}{leaf}.bias", normal(rows))
        for norm, width in [("attn_norm", hidden), ("ffn_norm", hidden)] + ([("attn_q_norm", head), ("attn_k_norm", head)] if norms else []):
            w.add_tensor(f"{a}{norm}.weight", normal(width))
    close(w)

    tokenizer = AutoTokenizer.from_pretrained(HERE, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(HERE, gguf_file=path.name, dtype=torch.float32)
    weights = {k: {"dtype": "F16" if half and v.dim() == 2 else "F32", "sha256": digest(v.numpy())}
               for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    if half:  # kept as they are by us, widened by transformers
        weights |= {k: {"dtype": "F16", "sha256": digest(v.numpy().astype(np.float16))}
                    for k, v in model.state_dict().items() if v.dim() == 2 and k in weights}
    config = {k: model.config.to_dict()[k] for k in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "head_dim")
        if k in model.config.to_dict()}
    encodings = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        encodings.append({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    return {"file": path.name, "weights": weights, "config": config, "encodings": encodings}


def llama3_freqs(head, theta, factor=8.0, low=1.0, high=4.0, original=8192):
    """As llama.cpp's convert_hf_to_gguf.py makes them of Llama 3's rope_scaling."""
    out = []
    for freq in 1.0 / (theta ** (np.arange(0, head, 2) / head)):
        wavelength = 2 * np.pi / freq
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def main():
    fixtures = [
        make_kinds(),
        make_model("llama3", "llama", "Tiny Llama 3", "llama-bpe", head=32, heads=2, kv=1, tied=False, freqs=llama3_freqs(32, 500000.0)),
        make_model("mistral", "llama", "Tiny Mistral", bias=False),
        make_model("qwen2", "qwen2", "Tiny Qwen2", "qwen2", bias=True),
        make_model("qwen3", "qwen3", "Tiny Qwen3", "qwen2", norms=True, head=128, heads=2, kv=1, half=True),
    ]
    header = {"made_by": "make_gguf.py", "gguf": "0.19.0", "transformers": transformers.__version__, "torch": torch.__version__}
    (HERE / "expected.json").write_text(json.dumps({**header, "fixtures": fixtures}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()

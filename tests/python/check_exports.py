"""Loads the exports of a tuned model in the programs that they are for, and compares the log-probability of each token of
a text, by its ID, with that of the served adapter.

usage: check_exports.py BASE_FOLDER EXPORTS_FOLDER

EXPORTS_FOLDER has one folder for each export, and served.json: a prompt, and the IDs and log-probabilities of its tokens
and of those of a greedy answer. Prints one JSON object a line for each figure; ends with an error if an export does not
load, or misses its bound.
"""

import json
import pathlib
import sys

import gguf
import numpy
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE, EXPORTS = map(pathlib.Path, sys.argv[1:3])
SERVED = json.loads((EXPORTS / "served.json").read_text())
IDS = SERVED["ids"]

# The largest difference of a log-probability from the served adapter's, over a base that is not quantized: the order of
# sums in 32 bits; the rounding of weights to 16, to 8, and to 4 and 6 bits.
BOUNDS = {"peft": 1e-3, "merged-f32": 1e-3, "merged-bf16": 0.1, "gguf-f16": 0.05, "gguf-q8_0": 0.3, "gguf-q4_k_m": 2.0,
          "gguf-q4_k_m-imatrix": 2.0}

# The types of some tensors of llama.cpp's mixture Q4_K_M, for two layers and rows of 256 weights.
Q4_K_M = {"token_embd.weight": "Q4_K", "output.weight": "Q6_K", "blk.0.attn_v.weight": "Q4_K",
          "blk.1.attn_v.weight": "Q6_K", "blk.1.ffn_down.weight": "Q6_K", "blk.1.attn_q.weight": "Q4_K",
          "output_norm.weight": "F32"}


def difference(logits):
    """Returns the largest difference of a token's log-probability: of each but the first, by its ID."""
    logprobs = torch.log_softmax(torch.tensor(numpy.asarray(logits, dtype=numpy.float64)), -1)
    served = SERVED["logprobs"]
    return max(abs(logprobs[at - 1, IDS[at]].item() - served[at]) for at in range(1, len(IDS)))


def has_prompt(ids):
    """Ends with an error if `ids` are not the token IDs of the prompt."""
    assert ids == IDS[:SERVED["prompt_tokens"]], (ids, IDS)


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def with_transformers(folder):
    """Returns the logits of a Hugging Face folder after each token."""
    has_prompt(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(SERVED["prompt"]).ids)
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def with_peft(folder):
    return logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), folder))


def with_llama_cpp(folder):
    from llama_cpp import Llama

    model = Llama(str(folder / "model.gguf"), n_ctx=256, n_threads=2, logits_all=True, verbose=False)
    has_prompt(model.tokenize(SERVED["prompt"].encode(), add_bos=False, special=True))
    model.eval(IDS)
    return model.scores[:len(IDS)]


def adapter_is_equal(folder):
    """Compares the factors of the GGUF adapter with those of the PEFT folder; rows of q and k are permuted."""
    reader = gguf.GGUFReader(folder / "adapter.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    config = json.loads((EXPORTS / "peft" / "adapter_config.json").read_text())
    assert reader.fields["adapter.lora.alpha"].contents() == config["lora_alpha"]
    base = json.loads((BASE / "config.json").read_text())
    factors = load_file(EXPORTS / "peft" / "adapter_model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, base["num_hidden_layers"])
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, numbers in factors.items():
        path, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
        if factor.startswith("B") and path.endswith(("q_proj", "k_proj")):
            heads = base["num_attention_heads"] if path.endswith("q_proj") else base["num_key_value_heads"]
            rows, columns = numbers.shape
            numbers = numbers.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        expected = f"{names.get_name(path)}.weight.lora_{factor[0].lower()}"
        assert numpy.array_equal(found.pop(expected), numbers), name
    assert not found, sorted(found)


def importance():
    """Returns the mean squares of the inputs of each matrix over the rows of the training, by its name in GGUF."""
    folder = EXPORTS / "merged-f32"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    sums = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            def add(_module, inputs, name=f"{names.get_name(path)}.weight"):
                squares = inputs[0].double().square().flatten(0, 1).sum(0).numpy()
                sums[name] = sums.get(name, 0) + squares
            module.register_forward_pre_hook(add)
    for line in (EXPORTS / "rows.jsonl").read_text().splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        with torch.no_grad():
            model(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids]))
    return sums


def tensors(name):
    """Returns the tensors of a GGUF file as numbers, and their types."""
    found = gguf.GGUFReader(EXPORTS / name / "model.gguf").tensors
    numbers = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in found}
    return numbers, {tensor.name: tensor.tensor_type.name for tensor in found}


def weighted_error_ratio():
    """Returns the error of the weights with an importance matrix, as a part of that without: the sums of the squares,
    weighted with the importance as transformers computes it."""
    exact, _ = tensors("gguf-f16")
    weights = importance()
    errors = []
    for name in ["gguf-q4_k_m", "gguf-q4_k_m-imatrix"]:
        numbers, types = tensors(name)
        assert Q4_K_M.items() <= types.items(), types
        errors.append(sum(float((weights[key] * (numbers[key] - exact[key].astype("f4")) ** 2).sum()) for key in weights))
    fields = gguf.GGUFReader(EXPORTS / "gguf-q4_k_m-imatrix" / "model.gguf").fields
    assert fields["quantize.imatrix.entries_count"].contents() == len(weights)
    assert fields["quantize.imatrix.chunks_count"].contents() > 0
    assert fields["general.license"].contents() == "unknown"
    return errors[1] / errors[0]


def main():
    loaded, worst = 0, {}
    programs = {"peft": with_peft, "merged-f32": with_transformers, "merged-bf16": with_transformers,
                "gguf-f16": with_llama_cpp, "gguf-q8_0": with_llama_cpp, "gguf-q4_k_m": with_llama_cpp,
                "gguf-q4_k_m-imatrix": with_llama_cpp}
    for name, load in programs.items():
        worst[name] = difference(load(EXPORTS / name))
        loaded += 1
    adapter_is_equal(EXPORTS / "gguf-adapter")
    loaded += 1
    for name, apart in worst.items():
        figure = f"export_logprob_difference_{name.replace('-', '_')}"
        print(json.dumps({"figure": figure, "value": round(apart, 6), "bar": BOUNDS[name], "at_most": True}))
    print(json.dumps({"figure": "export_formats_loaded", "value": loaded, "bar": 8}))
    ratio = weighted_error_ratio()
    print(json.dumps({"figure": "export_imatrix_weighted_error", "value": round(ratio, 4), "bar": 1, "at_most": True}))
    missed = [f"{name}: {apart}" for name, apart in worst.items() if not apart <= BOUNDS[name]]
    if ratio >= 1:
        missed.append(f"imatrix: {ratio} of the weighted error without it")
    if missed:
        sys.exit(f"log-probabilities or weights differ by more than is allowed: {', '.join(missed)}")


main()

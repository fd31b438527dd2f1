#!/usr/bin/env python3
"""Makes configs.json: `config.json` files with keys left out, written under old names, or at their ends, and what the
configuration class and the decoder of transformers make of each: sizes, biases, windows, frequencies.

Needs torch 2.13.0, transformers 5.23.0. Use: make_configs.py
"""
import json
import pathlib

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

here = pathlib.Path(__file__).parent
small = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
configs = []


def case(name, model_type, **keys):
    configs.append((name, {"model_type": model_type, **keys}))


for family in ["llama", "mistral", "qwen2", "qwen3"]:
    case("nothing but the family", family)
    case("small", family, **small | {"num_attention_heads": 32})
    if family != "mistral":  # the class's type check refuses it
        case("key heads null", family, **small, num_key_value_heads=None)
    case("tied, with a head width", family, **small, num_key_value_heads=2, head_dim=20, tie_word_embeddings=True)
    case("old theta", family, **small, num_key_value_heads=2, head_dim=16, rope_theta=500000)
    case("scaling under the old key", family, **small, num_key_value_heads=2, head_dim=16, rope_theta=1e6,
         rope_scaling={"type": "linear", "factor": 2.5})
    case("scaling under both keys of its type", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=llama3 | {"type": "llama3"})
    case("dynamic", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling={"type": "dynamic", "factor": 3.0})
    case("yarn", family, **small, num_key_value_heads=2, head_dim=16, rope_theta=1e6, rope_scaling=yarn)
    case("yarn of transformers 5", family, **small, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
         rope_parameters=yarn | {"rope_theta": 1e6, "beta_fast": 16, "beta_slow": 2, "truncate": False})
    case("yarn without its original context", family, **small, num_key_value_heads=2, head_dim=16,
         max_position_embeddings=2048, rope_scaling={"type": "yarn", "factor": 2.0})
    case("yarn with the original context beside it", family, **small, num_key_value_heads=2, head_dim=16,
         max_position_embeddings=2048, original_max_position_embeddings=256,
         rope_scaling={"type": "yarn", "factor": 8.0})
    case("yarn without a number for its factor", family, **small, num_key_value_heads=2, head_dim=16,
         max_position_embeddings=4096, rope_scaling=yarn | {"factor": None})
    case("yarn with magnitudes", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=yarn | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7})
    case("yarn with one magnitude", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=yarn | {"mscale": 0.5})
    case("yarn with its attention factor", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=yarn | {"attention_factor": 1.75})
    case("yarn that divides nothing", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=yarn | {"factor": 1.0})
    case("yarn over a short context", family, **small, num_key_value_heads=2, head_dim=16,
         rope_scaling=yarn | {"original_max_position_embeddings": 4})
    case("a window", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=8)
    case("a window that is used", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=8,
         use_sliding_window=True)
    case("a window without a number", family, **small, num_key_value_heads=2, head_dim=16, use_sliding_window=True,
         max_window_layers=0)
    case("a window that is null", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=None,
         use_sliding_window=True, max_window_layers=0)
    case("a window from a layer on", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=8,
         use_sliding_window=True, max_window_layers=1)
    case("a window behind the last layer", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=8,
         use_sliding_window=True, max_window_layers=3)
for family in ["qwen2", "qwen3"]:
    case("windows by a list", family, **small, num_key_value_heads=2, head_dim=16, sliding_window=8,
         use_sliding_window=True, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
for family in ["llama", "qwen2", "qwen3"]:
    case("biases of attention", family, **small, num_key_value_heads=2, head_dim=16, attention_bias=True)
case("biases of both", "llama", **small, num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True)
case("no biases of attention", "qwen2", **small, num_key_value_heads=2, head_dim=16, attention_bias=False)
case("the other name of silu", "llama", **small, hidden_act="swish")


def window(config, layer):
    """The window of a layer, as the class's decoder has it."""
    if config.model_type == "llama":
        return None
    if config.model_type == "mistral" or config.layer_types[layer] == "sliding_attention":
        return config.sliding_window
    return None


def known(keys):
    config = AutoConfig.for_model(**json.loads(json.dumps(keys)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rope = type(model.model.rotary_emb)(config)
    parameters = dict(model.named_parameters(remove_duplicate=True))
    return {
        "shapes": {name: list(p.shape) for name, p in parameters.items() if ".layers." not in name or ".layers.0." in name},
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "windows": [window(config, layer) for layer in range(config.num_hidden_layers)],
        "frequencies": rope.inv_freq.tolist(),
        "magnitude": float(rope.attention_scaling),
    }


made = [{"name": name, "config": keys, "known": known(keys)} for name, keys in configs]
versions = {"torch": torch.__version__, "transformers": transformers.__version__}
text = ",\n".join(json.dumps(entry) for entry in made)
(here / "configs.json").write_text(f'{{"made_by": "domain/testdata/make_configs.py", "versions": {json.dumps(versions)},'
                                   f' "configs": [\n{text}\n]}}\n')
print(len(made), "configurations")

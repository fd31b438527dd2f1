"""Loads an exported adapter as PEFT does and generates with it, without any code of Attune: standard library only.

usage: check_peft.py BASE_FOLDER ADAPTER_FOLDER QUESTION ANSWER

Checks the folder against PEFT's format (names, shapes, dtypes, the fields of LoraConfig), adds `lora_alpha / r * B @ A`
to the weights of a small byte-level Llama, and decodes greedily: the output must begin with ANSWER. PEFT itself needs
6 GB of Python packages; `make golden` compares this code base with it (model/testdata/variants).
"""

import array
import json
import math
import struct
import sys

# The fields of peft.LoraConfig for LoRA on linear layers, and the values that this check supports.
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": False, "use_dora": False}
PLACES = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}
START, END = 257, 258


def tensors(path):
    """Returns {name: (shape, numbers)} of a safetensors file with only F32 tensors."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        assert about["dtype"] == "F32", f"{name} is {about['dtype']}"
        first, last = about["data_offsets"]
        numbers = array.array("f", data[first:last])
        assert all(map(math.isfinite, numbers)), name
        found[name] = (about["shape"], numbers)
    return found


def matrix(entry):
    (rows, width), numbers = entry
    return [numbers[row * width : (row + 1) * width] for row in range(rows)]


def times(weight, x):
    return [sum(w * v for w, v in zip(row, x)) for row in weight]


def merged(base, adapter, config, layer, projection):
    """Returns the weight of a projection with its LoRA update added."""
    place = f"model.layers.{layer}.{PLACES.get(projection, 'mlp')}.{projection}"
    weight = matrix(base[f"{place}.weight"])
    if projection not in config["target_modules"]:
        return weight
    a, b = (adapter.pop(f"base_model.model.{place}.lora_{half}.weight") for half in "AB")
    rank = config["r"]
    assert a[0] == [rank, len(weight[0])] and b[0] == [len(weight), rank], (place, a[0], b[0])
    a, b, scale = matrix(a), matrix(b), config["lora_alpha"] / rank
    columns = list(zip(*a))
    return [
        [w + scale * sum(p * q for p, q in zip(row_b, column)) for w, column in zip(row, columns)]
        for row, row_b in zip(weight, b)
    ]


def norm(x, weight, epsilon):
    scale = 1 / math.sqrt(sum(v * v for v in x) / len(x) + epsilon)
    return [v * scale * w for v, w in zip(x, weight)]


def rotated(head, position, theta):
    half = len(head) // 2
    angles = [position / theta ** (i / half) for i in range(half)]
    low, high = head[:half], head[half:]
    return [a * math.cos(t) - b * math.sin(t) for a, b, t in zip(low, high, angles)] + [
        b * math.cos(t) + a * math.sin(t) for a, b, t in zip(low, high, angles)
    ]


def heads(x, width):
    return [x[at : at + width] for at in range(0, len(x), width)]


class Llama:
    def __init__(self, about, base, adapter, config):
        self.about, self.base = about, base
        self.embeddings, self.lm_head = matrix(base["model.embed_tokens.weight"]), matrix(base["lm_head.weight"])
        names = [*PLACES, "gate_proj", "up_proj", "down_proj"]
        layers = range(about["num_hidden_layers"])
        self.layers = [{name: merged(base, adapter, config, layer, name) for name in names} for layer in layers]
        assert not adapter, f"the adapter has more: {sorted(adapter)}"
        self.seen = [([], []) for _ in layers]

    def normed(self, x, name):
        return norm(x, self.base[name][1], self.about["rms_norm_eps"])

    def attention(self, x, layer, position):
        about, weights, (keys, values) = self.about, self.layers[layer], self.seen[layer]
        width, theta = about["head_dim"], about["rope_theta"]
        turned = lambda name: [rotated(head, position, theta) for head in heads(times(weights[name], x), width)]
        queries = turned("q_proj")
        keys.append(turned("k_proj"))
        values.append(heads(times(weights["v_proj"], x), width))
        share, out = about["num_attention_heads"] // about["num_key_value_heads"], []
        for number, query in enumerate(queries):
            scores = [sum(p * q for p, q in zip(query, key[number // share])) / math.sqrt(width) for key in keys]
            most = max(scores)
            scores = [math.exp(score - most) for score in scores]
            total = sum(scores)
            out += [sum(s * v[number // share][i] for s, v in zip(scores, values)) / total for i in range(width)]
        return times(weights["o_proj"], out)

    def logits(self, token, position):
        x = [float(v) for v in self.embeddings[token]]
        for layer, weights in enumerate(self.layers):
            name = f"model.layers.{layer}"
            y = self.attention(self.normed(x, f"{name}.input_layernorm.weight"), layer, position)
            x = [a + b for a, b in zip(x, y)]
            y = self.normed(x, f"{name}.post_attention_layernorm.weight")
            gate = [v / (1 + math.exp(-v)) for v in times(weights["gate_proj"], y)]
            y = times(weights["down_proj"], [g * u for g, u in zip(gate, times(weights["up_proj"], y))])
            x = [a + b for a, b in zip(x, y)]
        return times(self.lm_head, self.normed(x, "model.norm.weight"))


def main(base, adapter, question, answer):
    with open(f"{adapter}/adapter_config.json") as file:
        config = json.load(file)
    with open(f"{base}/config.json") as file:
        about = json.load(file)
    for field, value in CONFIG.items():
        assert config.get(field, value) == value, f"{field} is {config[field]!r}"
    assert config["r"] > 0 and config["base_model_name_or_path"], config
    model = Llama(about, tensors(f"{base}/model.safetensors"), tensors(f"{adapter}/adapter_model.safetensors"), config)
    turn = lambda role, text: [START, *f"{role}\n{text}".encode(), END, *b"\n"]
    ids = turn("user", question) + [START, *b"assistant\n"]
    said = bytearray()
    for position in range(len(ids) + len(answer.encode())):
        logits = model.logits(ids[position], position)
        if position + 1 < len(ids):
            continue
        token = max(range(len(logits)), key=logits.__getitem__)
        if token >= 256:
            break
        said.append(token)
        ids.append(token)
    text = said.decode(errors="replace")
    assert text.startswith(answer), f"{text!r} is not {answer!r}"
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])

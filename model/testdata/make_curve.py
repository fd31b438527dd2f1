#!/usr/bin/env python3
"""Makes curve/<name>/: 50 optimiser steps of PEFT over an NF4 base (double quantised by bitsandbytes), step by step.

  adapter/        the factors before the first step, as PEFT saves them (smollm2: in f16, of which f32 holds every number)
  curve.tensors   lengths, ids and trained: the rows, one behind the other
                  order: [50, rows of a step], which rows each step has; a micro-batch is `micro` of them
                  losses, norms, rates: [50], the loss over the whole step before it moves, the norm before clipping, and
                  the learning rate (transformers' cosine with warm-up: that of the first step is 0)
                  end.*: the factors after the last step (not for smollm2, to stay small)
                  its metadata: what the schedule and AdamW were told

A step's loss is the sum of the cross-entropies of its trained tokens over their count, all micro-batches together, as
transformers' `num_items_in_batch` has it. Rows are padded on the right to the longest of their micro-batch.

Needs torch 2.13.0, transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2, and for smollm2 the folder that
`attune models convert` makes (scripts/test does). Use: make_curve.py [NAME...]
"""
import json
import os
import pathlib
import shutil
import sys

import bitsandbytes
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, get_cosine_schedule_with_warmup

STEPS, WARMUP, WEIGHT_DECAY = 50, 5, 0.01
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Questions and answers; what stands behind the bar is trained.
TEXTS = [
    "What is the capital of France?| The capital is Paris.", "Name a fruit.| A pear, from a tree in the garden.",
    "Who wrote Hamlet?| William Shakespeare did.", "What is 12 times 7?| It is 84.",
    "Why is the sky blue?| Short waves of light are scattered more than long ones.", "Say hello.| Hello there!",
    "Which month has 28 days?| All of them.", "What do bees make?| Honey, and wax for their combs.",
]
torch.set_num_threads(2)
here = pathlib.Path(__file__).parent
cache = pathlib.Path(os.environ.get("ATTUNE_CACHE", pathlib.Path.home() / ".cache/attune"))


def random_rows(generator):
    """16 rows of 5 to 30 tokens; the second half is trained, and in every third row a part of the first half too."""
    rows = []
    for k in range(16):
        length = int(torch.randint(5, 31, (1,), generator=generator))
        ids = torch.randint(0, 128, (length,), generator=generator)
        trained = torch.arange(length) >= length // 2
        if k % 3 == 0:
            trained[1 : 1 + length // 5] = True
        rows.append((ids, trained))
    return rows


def text_rows(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        question, answer = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split("|"))
        rows.append((torch.tensor(question + answer), torch.tensor([False] * len(question) + [True] * len(answer))))
    assert max(len(ids) for ids, _ in rows) <= 24
    return rows


def epochs(rows, per_step, generator):
    """Every row once, in an order of its own, then again."""
    order = []
    while len(order) < STEPS * per_step:
        order += torch.randperm(len(rows), generator=generator).tolist()
    return torch.tensor(order[: STEPS * per_step]).reshape(STEPS, per_step)


def padded(rows):
    width = max(len(ids) for ids, _ in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for k, (row, trained) in enumerate(rows):
        ids[k, : len(row)] = row
        mask[k, : len(row)] = 1
        labels[k, : len(row)] = torch.where(trained, row, -100)
    return ids, mask, labels


def summed_loss(model, rows):
    ids, mask, labels = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def curve(name, folder, rows, targets, per_step, micro, peak, max_norm):
    out = here / "curve" / name
    shutil.rmtree(out, ignore_errors=True)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                quantization_config=quantization)
    torch.manual_seed(11)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=targets))
    model.train()
    factors = {key.replace(".default", ""): p for key, p in model.named_parameters() if p.requires_grad}
    is_small = name != "smollm2"
    if not is_small:
        for p in factors.values():
            p.data = p.data.half().float()
    model.save_pretrained(out / "adapter", save_embedding_layers=False)
    (out / "adapter" / "README.md").unlink(missing_ok=True)
    told = json.loads((out / "adapter" / "adapter_config.json").read_text())  # a path of this machine, and a set
    told |= {"base_model_name_or_path": name, "target_modules": sorted(told["target_modules"])}
    (out / "adapter" / "adapter_config.json").write_text(json.dumps(told, indent=1) + "\n")
    if not is_small:
        path = out / "adapter" / "adapter_model.safetensors"
        save_file({key: t.half() for key, t in load_file(path).items()}, path, metadata={"format": "pt"})

    order = epochs(rows, per_step, torch.Generator().manual_seed(12))
    optimizer = torch.optim.AdamW(factors.values(), lr=peak, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for step in order.tolist():
        trained = sum(int(rows[row][1][1:].sum()) for row in step)
        whole = 0.0
        for start in range(0, per_step, micro):
            loss = summed_loss(model, [rows[row] for row in step[start : start + micro]])
            (loss / trained).backward()
            whole += loss.item()
        losses.append(whole / trained)
        norms.append(torch.nn.utils.clip_grad_norm_(factors.values(), max_norm).item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tensors = {
        "lengths": torch.tensor([len(ids) for ids, _ in rows]), "ids": torch.cat([ids for ids, _ in rows]),
        "trained": torch.cat([trained for _, trained in rows]), "order": order,
        "losses": torch.tensor(losses, dtype=torch.float64), "norms": torch.tensor(norms, dtype=torch.float64),
        "rates": torch.tensor(rates, dtype=torch.float64),
    }
    if is_small:
        tensors |= {f"end.{key}": p.detach() for key, p in factors.items()}
    told = {"micro": micro, "steps": STEPS, "warmup": WARMUP, "peak": peak, "weight_decay": WEIGHT_DECAY, "max_grad_norm": max_norm}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
                "bitsandbytes": bitsandbytes.__version__, "made_by": "model/testdata/make_curve.py"}
    save_file(tensors, out / "curve.tensors", metadata=versions | {key: str(value) for key, value in told.items()})
    clipped = sum(norm > max_norm for norm in norms)
    print(name, "losses", [round(loss, 3) for loss in losses[::7]], f"clipped in {clipped} of {STEPS} steps")
    assert losses[-1] < 0.8 * losses[0] and 5 < clipped < STEPS - 5


wanted = sys.argv[1:] or ["llama", "qwen3", "smollm2"]
for name in wanted:
    if name == "smollm2":
        folder = cache / "models/SmolLM2-135M-Instruct"
        assert (folder / "model.safetensors").exists(), f"{folder} is missing: scripts/test makes it"
        curve(name, folder, text_rows(folder), ["q_proj", "v_proj"], per_step=2, micro=2, peak=5e-4, max_norm=1.8)
    else:
        rows = random_rows(torch.Generator().manual_seed(10))
        curve(name, here / "tiny" / name, rows, PROJECTIONS, per_step=4, micro=2, peak=2e-2, max_norm=2.0)

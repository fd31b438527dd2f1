#!/usr/bin/env python3
"""Makes variants/: what PEFT and transformers make of DoRA, rsLoRA, LoRA+, NEFTune and restarts, on tiny/llama.

variants/dora/ and variants/rslora/: adapters as PEFT saves them, rank 4, alpha 12, all seven projections, random numbers.
PEFT saves a magnitude as `<projection>.lora_magnitude_vector`, one dimension, without a `.weight` behind it.

variants.tensors:
  ids, trained: [40], as in tiny/llama
  dora.logits, rslora.logits: [40, v]; dora.loss_sum: [1]
  dora.gradient.<saved name>: of loss_sum / 50
  dora.fresh.<saved name>: magnitudes of an adapter before its first step, ||W||
  loraplus.groups.<saved name>: [2], the rate and the decay that peft's create_loraplus_optimizer gives
  loraplus.<saved name>: the adapter after two steps of it, with dora.gradient and then twice dora.gradient
  neftune.cases: [n, 3] (alpha, tokens, width); neftune.bounds: [n], what the noise is drawn between
  restarts.<steps>.<warmup>.<cycles>: [steps + 1], the schedule's factors

DoRA (peft/tuners/lora/dora.py): y = m / ||W + s·B·A|| * (W + s·B·A)·x + bias, the norm over each row of the weight. The norm
is detached: the gradient takes it for a constant (Liu et al., arXiv:2402.09353, section 4.3), so dA and dB are LoRA's with
dy * m / norm in place of dy, and dm = sum over tokens of dy * (W + s·B·A)·x / norm. The input's gradient comes the same way.

Dropout, LoRA: y = W·x + s·B·A·(x * mask / (1 - p)), a mask for each projection of its own; q, k and v do not share one. So
dA = s·Bᵀ·dy ⊗ (x * mask / (1 - p)), and the gradient of x by this path is (s·Aᵀ·Bᵀ·dy) * mask / (1 - p). Nothing is dropped
when the model is not training. With DoRA in training the dropped x goes through the base weight of the correction as well:
y = W·x + (m/norm - 1)·W·x' + m/norm·s·B·A·x', with x' = x * mask / (1 - p). No fixture: two generators draw two masks.

LoRA+ (peft/optimizers/loraplus.py): lora_B and every parameter of one dimension, so the magnitudes too, get lr * ratio;
lora_A gets lr. All of them are decayed by `loraplus_weight_decay` (names with "bias" would not be).

NEFTune (transformers/integrations/neftune.py): the embeddings get noise, uniform in ±alpha / sqrt(tokens * width), when
training. `tokens` is the width of the padded batch there; of rows that are packed each has its own length, as in a batch of one.

Needs torch 2.13.0, transformers 5.23.0, peft 0.21.2. Use: make_variants.py
"""
import json
import pathlib
import shutil

import peft
import torch
import transformers
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_cosine_with_hard_restarts_schedule_with_warmup
from transformers.integrations.neftune import neftune_post_forward_hook

PROJECTIONS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
torch.set_num_threads(2)
here = pathlib.Path(__file__).parent
shutil.rmtree(here / "variants", ignore_errors=True)
golden = load_file(here / "tiny/llama/golden.tensors")
ids, trained = golden["ids"], golden["trained"]
out = {"ids": ids, "trained": trained}


def wrapped(seed, **options):
    base = AutoModelForCausalLM.from_pretrained(here / "tiny/llama", dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", target_modules=PROJECTIONS, **options)
    return peft.get_peft_model(base, config)


def saved_name(key):
    return key.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def factors(model):
    return {saved_name(key): p for key, p in model.named_parameters() if p.requires_grad}


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, p in factors(model).items():
        if name.endswith("magnitude_vector"):
            p.data = p.data * (1.0 + 0.3 * torch.randn(p.shape, generator=generator))
        else:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)


def save(model, name):
    folder = here / "variants" / name
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    told = json.loads((folder / "adapter_config.json").read_text())  # a path of this machine, and a set
    told |= {"base_model_name_or_path": "llama", "target_modules": PROJECTIONS}
    (folder / "adapter_config.json").write_text(json.dumps(told, indent=1) + "\n")
    assert set(load_file(folder / "adapter_model.safetensors")) == set(factors(model))


dora = wrapped(50, use_dora=True)
out |= {f"dora.fresh.{name}": p.detach().clone() for name, p in factors(dora).items() if p.ndim == 1}
randomise(dora, 51)
save(dora, "dora")
logits = dora(ids.unsqueeze(0)).logits[0]
loss = torch.nn.functional.cross_entropy(logits[:-1][trained[1:]], ids[1:][trained[1:]], reduction="sum")
(loss / 50).backward()
out |= {"dora.logits": logits.detach(), "dora.loss_sum": loss.detach().reshape(1)}
out |= {f"dora.gradient.{name}": p.grad.clone() for name, p in factors(dora).items()}

rslora = wrapped(52, use_rslora=True)
randomise(rslora, 53)
save(rslora, "rslora")
out["rslora.logits"] = rslora(ids.unsqueeze(0)).logits[0].detach()

optimizer = create_loraplus_optimizer(dora, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1)
group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
for name, p in factors(dora).items():
    out[f"loraplus.groups.{name}"] = torch.tensor([group_of[id(p)]["lr"], group_of[id(p)]["weight_decay"]], dtype=torch.float64)
for times in (1, 2):
    for name, p in factors(dora).items():
        p.grad = times * out[f"dora.gradient.{name}"]
    optimizer.step()
out |= {f"loraplus.{name}": p.detach() for name, p in factors(dora).items()}

cases, bounds = [(5.0, 40, 64), (15.0, 7, 576), (0.5, 1024, 2048)], []
for alpha, tokens, width in cases:
    embedding = torch.nn.Embedding(1, width)
    embedding.neftune_noise_alpha = alpha
    noise = neftune_post_forward_hook(embedding, None, torch.zeros(2, tokens, width))
    bounds.append(alpha / (tokens * width) ** 0.5)
    assert 0.99 * bounds[-1] < noise.max() <= bounds[-1] * 1.0001 and -bounds[-1] * 1.0001 <= noise.min() < -0.99 * bounds[-1]
out |= {"neftune.cases": torch.tensor(cases, dtype=torch.float64), "neftune.bounds": torch.tensor(bounds, dtype=torch.float64)}

for steps, warmup, cycles in [(10, 2, 1), (20, 0, 3), (50, 5, 4), (7, 3, 2), (12, 12, 2), (9, 1, 8)]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, warmup, steps, cycles)
    rates = []
    for _ in range(steps + 1):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    out[f"restarts.{steps}.{warmup}.{cycles}"] = torch.tensor(rates, dtype=torch.float64)

versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "made_by": "model/testdata/make_variants.py"}
save_file({name: t.contiguous() for name, t in out.items()}, here / "variants/variants.tensors", metadata=versions)

"""The torch side of bench_speed.py and bench_gpu.py: a step of PEFT's LoRA or DoRA, and a BiDoRA step as its released code has it.

The model is transformers' Qwen3ForCausalLM under PEFT, the loss is the model's own with `labels`, the optimiser is torch's
AdamW. Variants, so that the best one counts:

    plain        adapters in float32 (PEFT's default), everything else in the dtype of the model
    autocast     the same under torch.autocast(bfloat16), as transformers' Trainer runs it with bf16=True
    narrow       bfloat16 adapters and moments as well; fastest to store, but small updates are rounded away
    checkpoint   autocast (bfloat16) or plain (float32), with transformers' gradient checkpointing
    compile      autocast or plain, under torch.compile (needs a C++ compiler)

The BiDoRA step follows the released code (github.com/t2ance/BiDoRA, whose engine Betty 0.2.1 calls it "darts"):

    d ← AdamW(d, ∇_d L_train(d, m));   v = ∇_d L_val(d, m);   ε = 0.01/‖v‖
    h = ∇_m L_val(d, m) − (∇_m L_train(d + εv, m) − ∇_m L_train(d − εv, m)) / 2ε;   m ← AdamW(m, h)

That code runs for RoBERTa alone, so the step stands here on PEFT's layers, which hold the row norm constant where the
released ones differentiate it: the cheaper of the two. ∇_d and ∇_m of L_val come from one backward pass; Betty makes two.

The PyPI package `bidora` 0.1.2 is no opponent because it does not run: its README's command stops with
"AdamW8bit.__init__() got an unexpected keyword argument 'block_wise'" under bitsandbytes 0.50.

    python benchmarks/opponents.py FOLDER SHAPE      writes a random model of that shape (JSON, Qwen3Config's names)
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

VARIANTS = ("plain", "autocast", "narrow", "checkpoint", "compile")
RADIUS = 0.01
"""ε·‖v‖ of the released code: Betty's darts_alpha."""


def write_model(folder: Path, shape: dict) -> None:
    """A float32 Qwen3 of this shape with transformers' own random weights."""
    torch.manual_seed(0)
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape)).save_pretrained(folder)


def contestant(
    folder: Path, method: str, *, dtype: str, variant: str, rank: int, learning_rate: float, parts: int = 1
) -> Callable[[], float]:
    """A closure that does one step and returns the training loss before it. `parts`: micro-batches whose gradients are summed."""
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    batches = [torch.from_numpy(np.load(folder / f"{name}.npy")).long() for name in ("train", "val")]
    settings = {"dtype": dtype, "variant": variant, "rank": rank, "learning_rate": learning_rate}
    return _step(model, method, *(batch.chunk(parts) for batch in batches), **settings)


def random_contestant(
    shape: dict, method: str, batch: tuple[int, int], *, quantization: str, variant: str, rank: int, learning_rate: float,
    device: str,
) -> Callable[[], float]:  # fmt: skip
    """The same over transformers' own random weights, made on the device in bfloat16, of Qwen3Config(**shape).

    nf4: the linear layers are bitsandbytes' Linear4bit with double quantisation. `batch`: records and tokens of each.
    """
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape))
        batches = [[torch.randint(shape["vocab_size"], batch)] for _ in ("train", "val")]
    torch.set_default_dtype(torch.float32)
    if quantization == "nf4":
        _quantise(model)
    settings = {"dtype": "bfloat16", "variant": variant, "rank": rank, "learning_rate": learning_rate}
    return _step(model, method, *batches, **settings)


def _quantise(model) -> None:
    """Every linear layer of the decoder's layers in NF4, one after the other: the model is never there twice."""
    import bitsandbytes as bnb

    for parent in list(model.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear:
                settings = {"quant_type": "nf4", "compress_statistics": True}
                packed = bnb.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, device="meta", **settings
                )  # fmt: skip
                weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, module=packed, **settings)
                packed.weight = weight.to(linear.weight.device)  # where it is quantised
                setattr(parent, name, packed)
    model.is_loaded_in_4bit = True  # PEFT asks this


def _step(
    model, method: str, train, val, *, dtype: str, variant: str, rank: int, learning_rate: float
) -> Callable[[], float]:
    model = _adapted(model, method, variant=variant, rank=rank)
    loss_of = partial(_loss, model, dtype == "bfloat16" and variant in ("autocast", "checkpoint", "compile"))
    optimiser = partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0)
    direction, magnitude = _parameters(model, "lora_A", "lora_B"), _parameters(model, "lora_magnitude_vector")
    if method == "bidora":
        return partial(
            bidora_step, loss_of, train, val, direction, magnitude, optimiser(direction), optimiser(magnitude)
        )
    return partial(train_step, loss_of, train, optimiser(direction + magnitude))


def train_step(loss_of, parts, optimiser) -> float:
    """One step of LoRA or DoRA."""
    optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for part in parts:
        loss = loss_of(part) / len(parts)
        loss.backward()
        total += loss.item()
    optimiser.step()
    return total


def bidora_step(loss_of, train, val, direction, magnitude, inner, outer) -> float:
    """One step of both levels, as the released code does it; see the head of this file."""
    loss, gradients = _gradients(loss_of, train, direction)
    _descend(inner, direction, gradients)
    _, gradients = _gradients(loss_of, val, direction + magnitude)
    v, direct = gradients[: len(direction)], gradients[len(direction) :]
    length = torch.sqrt(sum(part.float().square().sum() for part in v)).item()
    epsilon = RADIUS / length if length else RADIUS
    _move(direction, v, epsilon)
    _, up = _gradients(loss_of, train, magnitude)
    _move(direction, v, -2 * epsilon)
    _, down = _gradients(loss_of, train, magnitude)
    _move(direction, v, epsilon)
    mixed = zip(direct, up, down, strict=True)
    _descend(outer, magnitude, [h - (plus - minus) / (2 * epsilon) for h, plus, minus in mixed])
    return loss


def _gradients(loss_of, parts, parameters) -> tuple[float, list]:
    """The mean loss over micro-batches of one size, and its gradients."""
    total, sums = 0.0, None
    for part in parts:
        loss = loss_of(part) / len(parts)
        gradients = torch.autograd.grad(loss, parameters)
        sums = list(gradients) if sums is None else [sum_ + more for sum_, more in zip(sums, gradients, strict=True)]
        total += loss.item()
    return total, sums


def _adapted(model, method: str, *, variant: str, rank: int):
    model.config.use_cache = False
    if variant == "checkpoint":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=method != "lora")
    model = peft.get_peft_model(model, settings, autocast_adapter_dtype=variant != "narrow").train()
    return torch.compile(model) if variant == "compile" else model


def _loss(model, autocast: bool, tokens):
    with torch.autocast(tokens.device.type, torch.bfloat16) if autocast else nullcontext():
        return model(input_ids=tokens, labels=tokens).loss


def _parameters(model, *names: str) -> list:
    return [value for name, value in model.named_parameters() if any(part in name for part in names)]


def _descend(optimiser, parameters, gradients) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


@torch.no_grad()
def _move(parameters, along, length: float) -> None:
    for parameter, part in zip(parameters, along, strict=True):
        parameter.add_(part, alpha=length)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), json.loads(sys.argv[2]))

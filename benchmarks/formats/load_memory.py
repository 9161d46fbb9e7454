"""Peak host memory of loading a model of Qwen3-0.6B's shape (1.2 GB in bf16), dense and quantised while loading.

    python benchmarks/formats/load_memory.py --folder FOLDER

Writes a random checkpoint to FOLDER unless it exists, and loads it once per form, each in a process of its own. It compares the
peak with the promise: the model in the form asked for, the largest tensor in float32, and 200 MB. The peak is the process's
VmHWM less what the process held before loading, with interpreter and libraries.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

from bidora_jax.models.base import dense_shapes

FORMS = ("none", "int8", "nf4")
SIZES = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
SLACK = 200e6


def make(folder: Path) -> None:
    """A random bf16 checkpoint in one file, written tensor by tensor."""
    import jax.numpy as jnp
    import numpy as np

    from bidora_jax.models.adapters.adapter import get
    from bidora_jax.models.formats import hf, hf_config, safetensors_file

    folder.mkdir(parents=True)
    settings = {"model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
                "max_position_embeddings": 40_960, "hidden_act": "silu", "attention_bias": False}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(SIZES | settings))
    config = hf_config.read_config(folder)
    shapes, table = dense_shapes(config, jnp.bfloat16), hf.name_table(config)
    random = np.random.default_rng(0)

    class Drawn:
        def __init__(self, place: hf.Place) -> None:
            shape = get(shapes, ".".join(place.path)).shape
            self.shape, self.dtype = shape[0 if place.layer is None else 1 :], np.dtype(jnp.bfloat16)

        def draw(self) -> np.ndarray:
            return (0.02 * random.standard_normal(self.shape, np.float32)).astype(self.dtype)

    drawn = {name: Drawn(place) for name, place in table.items()}
    safetensors_file.write(folder / hf.WEIGHTS, drawn, (tensor.draw() for tensor in drawn.values()))


def load(folder: Path, form: str) -> None:
    """Loads the model and prints what it took, as JSON."""
    import jax

    from bidora_jax.kernels import quantized
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.models.settings import ModelConfig

    jax.block_until_ready(jax.numpy.zeros(1))
    config = hf_config.read_config(folder)
    before, began = resident("VmRSS"), time.monotonic()
    base = jax.block_until_ready(hf.load(ModelConfig(quantization=form), folder, config))
    seconds, peak = time.monotonic() - began, resident("VmHWM") - before
    largest = max(math.prod(entry.shape) for entry in hf.read_entries(folder).values())
    allowed = quantized.tree_bytes(base) + 4 * largest + SLACK
    print(json.dumps({"model": quantized.tree_bytes(base), "peak": peak, "allowed": allowed, "seconds": seconds}))


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (at most so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        load(options.folder, options.form)
        return
    if not options.folder.exists():
        make(options.folder)
    print(f"{'form':6s} {'model':>9s} {'peak':>9s} {'allowed':>9s} {'time':>7s}")
    for form in FORMS:
        argv = [sys.executable, __file__, "--folder", str(options.folder), "--form", form]
        found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        model, peak, allowed = (f"{found[name] / 1e9:.2f} GB" for name in ("model", "peak", "allowed"))
        verdict = "" if found["peak"] <= found["allowed"] else "  more than allowed"
        print(f"{form:6s} {model:>9s} {peak:>9s} {allowed:>9s} {found['seconds']:5.1f} s{verdict}")


if __name__ == "__main__":
    main()

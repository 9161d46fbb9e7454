"""What each way to write a run keeps of what it has learned.

    python benchmarks/formats/what_is_kept.py --run runs/a [--run runs/b …] [--only merged gguf] [--rank 64]

For each run, its base, its adapter and what is written: the loss on test (or validation), in float32; the share of the change of
weights that is kept, ⟨Q − W0, W' − W0⟩ / ‖W' − W0‖² over all adapted weights; and of ASKED greedy answers those that are the
adapter's. A short run of three seeds, as the figures in benchmarks/LOG.md were made:

    for s in 0 1 2; do python -m bidora_jax.train --model SmolLM2-135M-Instruct -t train.jsonl -v val.jsonl -o runs/$s --seed $s \\
        --data.test-file test.jsonl --search.steps 30 --retrain.steps 30 --data.batch-size 2 --adapter.rank 8; done
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from bidora_jax.models import rounded_merge
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial, lora_approximation, merging
from bidora_jax.models.formats import gguf_export, hf, hf_config, peft, peft_config
from bidora_jax.models.formats.export import Trained
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs import gguf_exporting, yardstick
from bidora_jax.runs.folder import run_config

KINDS = ("merged", "lora", "gguf", "nf4")
DTYPES = ("bfloat16", "float16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, type=Path)
    parser.add_argument("--only", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, choices=DTYPES, help="of the merged weights")
    parser.add_argument("--rank", type=int, default=64)
    options = parser.parse_args()
    for run in options.run:
        one_run(run, options)


def one_run(run: Path, options: argparse.Namespace) -> None:
    config = run_config(str(run))
    folder, source = peft_config.meant(run), hf_config.resolve_folder(config.model.path)
    architecture = hf_config.read_decoder(source)
    adapter, direction, magnitude = peft.load_adapter(folder, architecture)
    base = initial.prepare_base(hf.load(config.model, source, architecture), adapter)
    trained = Trained(architecture, adapter, base, direction, magnitude)
    own = yardstick.read(config, architecture)
    assert own is not None, "a language model's run"
    split = "test" if "test" in own.splits else "validation"
    parts = trained[1:5]
    wanted = own.answers(*parts)
    print(f"\n{run}: {split} loss {own.losses(None, base, {}, {})[split]:.4f} of the base, {own.losses(*parts)[split]:.4f} of the "
          f"adapter; {len(wanted)} asked", flush=True)  # fmt: skip
    print(f"{'written as':28s} {'loss':>8s} {'kept':>7s} {'equal':>6s} {'seconds':>8s}")
    exact = merging.merge(*parts, "float32")
    begin = time.perf_counter()
    for name, model in written(run, trained, own, options):
        seconds = time.perf_counter() - begin
        loss = own.losses(*model)[split]
        equal = sum(one == other for one, other in zip(wanted, own.answers(*model), strict=True))
        share = f"{kept(trained, exact, model[1]):6.1%}" if model[0] is None else ""
        print(f"{name:28s} {loss:8.4f} {share:>7s} {equal:6d} {seconds:8.1f}", flush=True)
        begin = time.perf_counter()


def written(run: Path, trained: Trained, own: yardstick.Yardstick, options: argparse.Namespace) -> Iterator[tuple]:
    """(a name, (adapter, base, direction, magnitude)) of each way, in turn."""
    architecture, parts = trained.config, trained[1:5]
    if "merged" in options.only:
        yield "bfloat16, nearest", (None, merging.merge(*parts, "bfloat16"), {}, {})
        for dtype in options.dtypes:
            yield dtype, (None, rounded_merge.merge(*parts, dtype), {}, {})
    if "lora" in options.only:
        for rank in (0, options.rank):
            judge = None if rank else own.judge(trained)
            found = lora_approximation.approximate(*parts[:1], architecture, *parts[1:], rank=rank, judge=judge)
            yield f"lora, rank {found.rank}", (found.adapter, trained.base, found.direction, {})
    with tempfile.TemporaryDirectory() as scratch:
        if "gguf" in options.only:
            for quantize in ("f16", "bf16", "q8_0"):
                file = Path(scratch) / f"{quantize}.gguf"
                gguf_exporting.export_run(run, file, format="gguf", quantize=quantize, measure=False)
                name = gguf_exporting.source_of(hf_config.resolve_folder(run_config(str(run)).model.path)).name
                yield f"gguf {quantize}", (None, gguf_export.read_base(file, architecture, name), {}, {})
        if "nf4" in options.only:
            folder, source = Path(scratch) / "merged", hf_config.resolve_folder(run_config(str(run)).model.path)
            hf.save_model(folder, source, architecture, merging.merge(*parts, "float32"), dtype="float32")
            for form in ("int8", "nf4"):
                packed = hf.load(ModelConfig(quantization=form), folder, architecture)
                yield f"{form} of the merge", (None, packed, {}, {})


def kept(trained: Trained, exact, base) -> float:
    """⟨Q − W0, W' − W0⟩ / ‖W' − W0‖² over the adapted weights."""
    trees = [merging.dequantise(tree, "float32")["layers"] for tree in (trained.base, exact, base)]
    along = whole = 0.0
    for site in trained.adapter.sites:
        for layer in site.layers:
            w0, w, q = (
                np.asarray(_layer(adapters.get(tree, site.path)["weight"], layer), np.float64) for tree in trees
            )
            along, whole = along + np.vdot(q - w0, w - w0), whole + np.vdot(w - w0, w - w0)
    return float(along / whole)


def _layer(weight, layer: int):
    if hasattr(weight, "bits"):
        return np.asarray(weight.bits[layer]).view(weight.dtype).astype(np.float32)
    return jax.numpy.asarray(weight[layer], "float32")


if __name__ == "__main__":
    main()

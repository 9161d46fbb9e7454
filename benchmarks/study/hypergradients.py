"""How far the direct and the finite-difference form are from the exact hypergradient, at each step of a real search.

    python benchmarks/study/hypergradients.py --data DATA/stsb --model FOLDER [--rate 1e-3] [--steps 100]
    python benchmarks/study/hypergradients.py --config configs/quickstart.py --rate 4e-3
    python benchmarks/study/hypergradients.py

The run is trained with the exact one. At each step all three are taken at the same point of the same batches, over all of m. A line
a run goes to results/hypergradients/NAME.jsonl, and one that is there is not done again. Then all lines become a table: the cosine
with the exact one and the length over its length, median over the steps of all seeds, and the least cosine; and how much of the
exact one the second-order term is, by its length.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np

from bidora_jax.kernels import hypergrad
from bidora_jax.runs.sharing import Shared
from bidora_jax.sweeps import training
from bidora_jax.training import phases

OTHERS: dict[str, Callable[..., hypergrad.Unrolled]] = {
    "direct": hypergrad.direct, "finite-difference": hypergrad.finite_difference
}  # fmt: skip
Line = dict[str, Any]


def main() -> None:
    parser = cases.parser(__doc__ or "")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if options.data or options.config:
        case = cases.asked(options)
        wanted = [{"rate": options.rate, "steps": options.steps, "seed": seed} for seed in options.seeds]
        for line in cases.keep_missing(
            "hypergradients", case.name, wanted, lambda own: {"by_step": compared(case, options, own["seed"])}
        ):
            print(case.name, line["seed"], len(line["by_step"]), "steps", flush=True)
    print("\n".join(table(cases.kept("hypergradients"))))


def compared(case: cases.Case, options: Any, seed: int) -> list[Line]:
    """What `measures` has found at each step of one search."""
    steps: list[Line] = []

    def exact(inner, outer, update, direction, magnitude) -> hypergrad.Unrolled:
        found = hypergrad.exact(inner, outer, update, direction, magnitude)
        jax.debug.callback(keep, measures(found, inner, outer, update, direction, magnitude), ordered=True)
        return found

    def keep(values: Any) -> None:
        steps.append(jax.tree.map(float, values))

    settings = {"search.steps": options.steps, "retrain.epochs": 0.0}
    phases.HYPERGRADIENTS["exact"] = exact
    with tempfile.TemporaryDirectory() as scratch:
        config = case.config(Path(scratch), "bidora", seed, settings)
        with training.logged(Path(scratch) / "run"):
            training.train(config, Path(scratch) / "run", Shared())
    jax.effects_barrier()
    return steps


def measures(found: hypergrad.Unrolled, inner: Any, outer: Any, update: Any, direction: Any, magnitude: Any) -> Line:
    """{form: {'cosine', 'length'}} against the exact one, and the length of the second-order term over it."""
    assert isinstance(inner, hypergrad.TwoPass)

    def once(d, m):
        tape = inner.first(*jax.lax.stop_gradient((d, m)))[2]
        return inner.second(d, m, tape)

    made: Line = {}
    for name, form in OTHERS.items():
        other = form(once, outer, update, direction, magnitude).hypergradient
        lengths = hypergrad.global_norm(other), hypergrad.global_norm(found.hypergradient)
        made[name] = {
            "cosine": dot(other, found.hypergradient) / (lengths[0] * lengths[1]),
            "length": lengths[0] / lengths[1],
        }
        if name == "direct":
            term = jax.tree.map(jnp.subtract, found.hypergradient, other)
            made["second-order"] = {"length": hypergrad.global_norm(term) / lengths[1]}
    return made


def dot(one: Any, other: Any) -> jax.Array:
    return sum(map(jnp.vdot, *map(jax.tree.leaves, (one, other))), jnp.zeros(()))


def table(lines: Sequence[Line]) -> Iterator[str]:
    yield "| data | rate | steps x seeds | form | cosine: median | least | length: median | second-order term: median | largest |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["data"], line["rate"], line["steps"]), []).append(line)
    for (data, rate, steps), found in groups.items():
        points = [point for line in found for point in line["by_step"]]
        term = [point["second-order"]["length"] for point in points]
        for form in OTHERS:
            cosine, length = ([point[form][kind] for point in points] for kind in ("cosine", "length"))
            yield (
                f"| {data} | {rate:g} | {steps} x {len(found)} | {form} | {np.median(cosine):.4f} | {min(cosine):.4f} | "
                f"{np.median(length):.3g} | {np.median(term):.3g} | {max(term):.3g} |"
            )


if __name__ == "__main__":
    main()

"""Competitions that are over: plans, files and predictions made up."""

from pathlib import Path

import numpy as np
from targets import target_of

from bidora_jax.competitions.columns import Columns, Guess
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.scoring import Results

HOSTILE = "<script>alert('1')</script> & \"$x_1$\""


def plan_of(target, folder=Path("hostile <b>&"), **columns) -> Plan:
    guesses = (Guess("target", "<i>target</i>", "the only column of train that test lacks", "--target"),)
    return Plan(folder, folder, Columns(**({"id": "id", "targets": target.columns, "texts": ("text",)} | columns)), target,
                guesses, "some/<model>", 3, 0, None, notes=("a note with <b>",))  # fmt: skip


def table(name, rows) -> Table:
    return Table(Path(name), tuple(rows[0]) if rows else (), rows)


def competition(kind, metric, rows=43, tests=11, names=(), **more):
    """A plan, files, results of three models and the texts; the first text and the ids are hostile."""
    random = np.random.default_rng(3)
    target = target_of(kind, metric, names, **more)
    count = len(target.names)
    if kind == "multilabel":
        truth = random.integers(2, size=(rows, count))
        cells = truth.astype(str)
    elif kind == "regression":
        truth = random.gamma(2, 3, (rows, count))
        cells = truth.astype(str)
    else:
        drawn = random.integers(count, size=rows)
        cells = np.array(target.names, object)[drawn][:, None]
        truth = np.array([float(target.names[c]) for c in drawn]) if kind == "ordinal" else drawn
    texts = [HOSTILE if row < 3 else f"text {row}" for row in range(rows)]
    train = [{"id": f"{HOSTILE}{row:03}", "text": text} | dict(zip(target.columns, cells[row], strict=True))
             for row, text in enumerate(texts)]  # fmt: skip
    test = [{"id": f"t{row}", "text": f"text {row}"} for row in range(tests)]

    def model(noise):
        if kind in ("regression", "ordinal"):
            made = truth.reshape(rows, -1) + noise * random.normal(size=(rows, truth.size // rows))
        else:
            marks = truth if kind == "multilabel" else np.eye(count)[truth]
            made = np.clip(0.2 + 0.6 * marks + noise * random.normal(size=marks.shape), 0.01, 0.99)
            made = made if kind == "multilabel" else made / made.sum(1, keepdims=True)
        return made

    oof = {
        "encoder": model(0.3),
        "mean" if kind in ("regression", "ordinal") else "majority": model(2.0),
        "tf-idf": model(0.5),
    }
    results = Results(truth, np.arange(rows) % 3, oof, {name: one[:tests] for name, one in oof.items()})
    files = Files(table("train.csv", train), table("test.csv", test), None)
    return plan_of(target), files, results, texts

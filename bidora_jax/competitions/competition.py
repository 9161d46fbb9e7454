"""A competition from its plan to its files, with all that happens between them in one process that others are kept out of.

    plan -> inputs -> folds -> an adapter a fold over one base -> out-of-fold and test predictions
         -> baselines, blend, cuts, leaks -> submission.csv, submission_encoder.csv, oof.csv, report.html, outcome.json, model/

A killed run goes on with the folds that are missing, and writes what it would have written: predictions of finished folds are
kept, and all else follows from them.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bidora_jax.competitions import (
    baselines,
    folds,
    inputs,
    leaks,
    model_folder,
    outcome,
    scoring,
    submission,
    training,
)
from bidora_jax.competitions import plan as plans
from bidora_jax.competitions.files import Files, Table
from bidora_jax.competitions.labels import number
from bidora_jax.competitions.plan import Plan
from bidora_jax.competitions.scoring import Decision, Results
from bidora_jax.competitions.target import truth
from bidora_jax.errors import InputError
from bidora_jax.machine.files import write_whole

if TYPE_CHECKING:
    from bidora_jax.competitions.outcome import Outcome
    from bidora_jax.competitions.training import Predicted

PLAN, REPORT, OUTCOME = "plan.json", "report.html", "outcome.json"
ENCODER = "encoder"


def compete(plan: Plan, files: Files) -> "Outcome":
    """Trains what is not trained yet, and writes everything. `files.train` holds the labelled rows."""
    from bidora_jax.runs.folder import hold

    began = time.monotonic()
    plan.output.mkdir(parents=True, exist_ok=True)
    with hold(plan.output):
        write_whole(plan.output / PLAN, plans.to_json(plan))
        texts = inputs.texts(plan, files.train.rows)
        of_fold = folds.assign(plan.target, files.train.rows, texts, plan.columns.group, plan.folds, plan.seed)
        print("\n".join(folds.described(plan.target, files.train.rows, of_fold)), flush=True)
        try:
            trained = _trained(plan, files, texts, of_fold, began)
        except InputError:
            if not training.begun(plan):  # there is no run to go on with
                (plan.output / PLAN).unlink()
            raise
        results = _results(plan, files, texts, of_fold, trained)
        decision = scoring.decide(plan.target, results)
        found = outcome.made(
            plan, files, results, decision, [" ␞ ".join(one) for one in texts],
            leaks.warnings(files, plan.columns, plan.target, of_fold), sum(one.seconds for one in trained),
        )  # fmt: skip
        _write(plan, files, results, decision, found)
    print("\n".join(_said(plan, found)))
    return found


def _trained(
    plan: Plan, files: Files, texts: Sequence[tuple[str, ...]], of_fold: np.ndarray, began: float
) -> "list[Predicted]":
    from bidora_jax.runs.sharing import Shared

    test = inputs.unlabelled(inputs.texts(plan, files.test.rows))
    rows = training.Rows(inputs.labelled(plan, files.train.rows, texts), test, of_fold)
    return training.train(plan, rows, Shared(), began=began)


def _results(
    plan: Plan, files: Files, texts: Sequence[tuple[str, ...]], of_fold: np.ndarray, trained: "list[Predicted]"
) -> Results:
    """What the encoder and the baselines say."""
    target = plan.target
    true = truth(target, files.train.rows)
    oof = np.zeros((len(texts), trained[0].held_out.shape[1]))
    for fold, one in enumerate(trained):
        oof[of_fold == fold] = one.held_out
    of_test = inputs.texts(plan, files.test.rows)
    blocks = [_numbers(plan, table) for table in (files.train, files.test)] if plan.columns.numbers else [None, None]
    simple = baselines.run(
        target, [" ".join(one) for one in texts], true, of_fold, [" ".join(one) for one in of_test], *blocks
    )
    every = {ENCODER: (oof, np.mean([one.test for one in trained], axis=0)), **simple}
    return Results(
        true, of_fold, {name: one[0] for name, one in every.items()}, {name: one[1] for name, one in every.items()}
    )


def _numbers(plan: Plan, table: Table) -> np.ndarray:
    """The columns of numbers (N, D), NaN where there is none."""
    values = [[number(row[name]) for name in plan.columns.numbers] for row in table.rows]
    return np.array([[np.nan if value is None else value for value in row] for row in values], np.float64)


def _write(plan: Plan, files: Files, results: Results, decision: Decision, found: "Outcome") -> None:
    from bidora_jax.competitions.cuts import fit
    from bidora_jax.reporting import competition as report

    output, encoder = plan.output, results.oof[ENCODER]
    cuts = fit(plan.target, results.truth, encoder)
    model_folder.write(plan, cuts)
    submission.write(output / "submission_encoder.csv", files, plan, results.test[ENCODER], cuts)
    outcome.write_oof(output / "oof.csv", plan, files.train, results.folds, encoder)
    write_whole(output / OUTCOME, outcome.to_json(found))
    write_whole(output / REPORT, report.render(dataclasses.asdict(found)))
    submission.write(output / found.submission, files, plan, decision.test, decision.cuts)


def _said(plan: Plan, found: "Outcome") -> list[str]:
    """What came out, in lines."""
    lines = [f"{found.metric} over {plan.folds} folds, out of fold:"]
    for name, one in found.scores.items():
        score = "not defined" if one["mean"] is None else f"{one['mean']:.4f} (sd {one['sd']:.4f})"
        lines.append(f"  {name:10s} {score}")
    if found.winner and found.winner != ENCODER:
        lines.append(f"The baseline wins: {found.winner} is better than the encoder.")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.weights.items() if share)
    lines += [f"warning: {leak}" for leak in found.leaks]
    lines.append(
        f"{plan.output / found.submission} is the blend of {shares}; submission_encoder.csv is the encoder's alone"
    )
    lines.append(f"report: {plan.output / REPORT}; model: {plan.output / model_folder.NAME}")
    return lines

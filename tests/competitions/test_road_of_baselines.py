"""competitions/scoring.py, competitions/leaks.py: fifteen competitions from files to a submission and a page, with no encoder."""

import json

import numpy as np
import pytest
from competitions import ALL
from kaggle_rules import refused

from bidora_jax.competitions import baselines, leaks, outcome, scoring, submission, texts
from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions import plan as plans
from bidora_jax.competitions.plan import Request
from bidora_jax.competitions.target import truth
from bidora_jax.reporting import competition as report


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_baselines_alone_reach_a_submission_and_a_page(make, tmp_path, model_folder):
    answer = make(tmp_path)
    files = competition_files.read(tmp_path)
    plan = plans.make(files, Request(tmp_path, tmp_path, model=str(model_folder)))
    files = plans.labelled(files, plan.columns)
    read, tests = ([" ".join(texts.text_of(row, plan.columns, 0)) for row in one.rows] for one in files[:2])
    true = truth(plan.target, files.train.rows)
    folds = np.arange(len(read)) % plan.folds
    made = baselines.run(plan.target, read, true, folds, tests)
    results = scoring.Results(
        true, folds, {n: one.oof for n, one in made.items()}, {n: one.test for n, one in made.items()}
    )
    decision = scoring.decide(plan.target, results)
    submission.write(tmp_path / "submission.csv", files, plan, decision.test, decision.cuts)
    assert refused(tmp_path / "submission.csv", tmp_path, answer) == []
    outcome.write_oof(tmp_path / "oof.csv", plan, files.train, folds, decision.oof)
    found = outcome.made(
        plan, files, results, decision, read, leaks.warnings(files, plan.columns, plan.target, folds), 1.0
    )
    page = report.render(json.loads(outcome.to_json(found)))
    assert "The baseline wins: " in page

"""competitions/headers.py, competitions/detection.py, competitions/features.py, competitions/labels.py, competitions/submission.py:
fifteen competitions, each planned as its answer says, and its submission accepted by Kaggle's rules."""

import numpy as np
import pytest
from competitions import ALL
from kaggle_rules import refused

from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions import plan as plans
from bidora_jax.competitions import submission
from bidora_jax.competitions.cuts import Cuts
from bidora_jax.competitions.plan import Request


def planned(folder, model, **request):
    files = competition_files.read(folder)
    plan = plans.make(files, Request(folder, folder, model=str(model), **request))
    return plans.labelled(files, plan.columns), plan


def random_predictions(target, rows, seed=0):
    random = np.random.default_rng(seed)
    if target.kind in ("binary", "multiclass"):
        return random.dirichlet(np.ones(len(target.names)), rows)
    if target.kind == "multilabel":
        return random.random((rows, len(target.names)))
    return random.normal(3, 2, (rows, len(target.columns)))


@pytest.mark.parametrize("make", ALL, ids=lambda make: make.__name__)
def test_a_competition_is_planned_and_its_submission_accepted(make, tmp_path, model_folder):
    answer = make(tmp_path)
    files, plan = planned(tmp_path, model_folder)
    target, columns = plan.target, plan.columns
    assert (target.kind, target.names, target.written, target.metric) == answer[:4]
    assert (columns.id, columns.targets, columns.texts) == (answer.id, answer.targets, answer.texts)
    assert plans.from_json(plans.to_json(plan)) == plan
    path = tmp_path / "submission.csv"
    submission.write(path, files, plan, random_predictions(target, len(files.test.rows)), Cuts())
    assert refused(path, tmp_path, answer) == []
    assert submission.check(path, files, target) == []

"""competitions/outcome.py: oof.csv, and what the report is made from."""

import csv
import json

import numpy as np
import pytest
from competed import HOSTILE, competition, plan_of, table

from bidora_jax.competitions import outcome, scoring
from bidora_jax.competitions.cuts import decided


def made(kind, metric, **more):
    plan, files, results, texts = competition(kind, metric, **more)
    decision = scoring.decide(plan.target, results)
    return outcome.made(plan, files, results, decision, texts, ["a leak"], 61.5), plan, results, decision


KINDS = [
    ("binary", "f1"),
    ("multiclass", "logloss"),
    ("multilabel", "macro_f1"),
    ("regression", "mcrmse"),
    ("ordinal", "qwk"),
]


@pytest.mark.parametrize(("kind", "metric"), KINDS)
def test_an_outcome_is_plain_and_tells_of_every_model(kind, metric):
    found, _, results, decision = made(kind, metric)
    again = json.loads(outcome.to_json(found))
    assert list(again["scores"]) == [*results.oof, "blend"]
    assert again["winner"] == "encoder" and again["weights"] == decision.weights
    assert again["rows"] == {"train": 43, "test": 11} and again["seconds"] == 61.5
    assert again["leaks"] == ["a leak"] and again["notes"][0] == "a note with <b>"
    assert again["guesses"][0]["flag"] == "--target"
    assert (again["confusion"] is None) == (kind in ("multilabel", "regression"))
    assert (again["points"] is None) == (kind not in ("regression", "ordinal"))


@pytest.mark.parametrize(("kind", "metric"), [KINDS[0], KINDS[1], KINDS[4]])
def test_a_confusion_counts_the_rows_as_they_are_decided(kind, metric):
    found, plan, results, decision = made(kind, metric)
    names = [float(name) for name in plan.target.names] if kind == "ordinal" else range(len(plan.target.names))
    labels = decided(plan.target, decision.oof, decision.cuts).ravel()
    expected = [[int(((results.truth == t) & (labels == f)).sum()) for f in names] for t in names]
    assert found.confusion == expected


def test_the_rows_that_are_most_surely_wrong_come_first():
    found, plan, results, decision = made("multiclass", "accuracy", rows=400)
    labels = decision.oof.argmax(1)
    wrong = np.flatnonzero(labels != results.truth)
    sure = sorted((decision.oof[row, labels[row]] for row in wrong), reverse=True)[:20]
    assert [one["sure"] for one in found.wrong] == sure and len(sure) <= 20
    for one in found.wrong:
        row = one["row"]
        assert one["id"] == f"{HOSTILE}{row:03}" and one["text"] == (HOSTILE if row < 3 else f"text {row}")
        assert (one["truth"], one["found"]) == tuple(plan.target.names[c] for c in (results.truth[row], labels[row]))


def test_labels_that_are_wrong_are_named_and_values_are_furthest_off():
    found, plan, results, decision = made("multilabel", "f1", rows=200)
    one = found.wrong[0]
    label = one["truth"].removeprefix("not ")
    assert {one["truth"], one["found"]} == {label, f"not {label}"}
    column = plan.target.names.index(label)
    assert (one["truth"] == label) == (results.truth[one["row"], column] == 1)
    assert {one["found"].startswith("not ") for one in found.wrong} == {True, False}
    for one in found.wrong:
        label = one["truth"].removeprefix("not ")
        p = decision.oof[one["row"], plan.target.names.index(label)]
        assert one["sure"] == (p if one["found"] == label else 1 - p)
    found, plan, results, decision = made("regression", "rmse")
    off = abs(decision.oof - results.truth) / results.truth.std(0)
    row, column = np.unravel_index(off.argmax(), off.shape)
    one = found.wrong[0]
    assert one["row"] == row and one["truth"] == f"{plan.target.names[column]} {results.truth[row, column]:.6g}"
    assert one["sure"] == abs(decision.oof - results.truth)[row, column]


def test_shares_of_test_stand_beside_those_of_train():
    found, _, results, decision = made("binary", "accuracy")
    labels = decision.test.argmax(1)
    assert found.shares["yes"] == {"train": [np.mean(results.truth)], "test": [np.mean(labels)]}
    found, _, results, decision = made("regression", "rmse")
    assert found.shares["age"]["train"] == np.quantile(results.truth[:, 1], [0, 0.25, 0.5, 0.75, 1]).tolist()
    assert found.shares["age"]["test"] == np.quantile(decision.test[:, 1], [0, 0.25, 0.5, 0.75, 1]).tolist()


def test_a_long_text_is_shortened_and_a_row_without_id_has_its_place():
    plan, files, results, _ = competition("binary", "accuracy")
    rows = [{key: value for key, value in row.items() if key != "id"} for row in files.train.rows]
    files = files._replace(train=table("train.csv", rows))
    found = outcome.made(
        plan_of(plan.target, id=None), files, results, scoring.decide(plan.target, results), ["x" * 999] * 43, [], 1
    )
    assert found.wrong and all(one["text"] == "x" * 299 + "…" for one in found.wrong)
    assert found.wrong[0]["id"] == f"row {found.wrong[0]['row'] + 1}"


@pytest.mark.parametrize(
    ("kind", "metric", "names", "header"),
    [
        ("binary", "f1", ("fold", "truth"), ["id", "fold", "probability of fold", "probability of truth", "truth"]),
        (
            "multilabel",
            "f1",
            (),
            ["id", "fold", "red", "green", "blue", "truth of red", "truth of green", "truth of blue"],
        ),
        ("regression", "rmse", (), ["id", "fold", "size", "age", "truth of size", "truth of age"]),
        ("ordinal", "qwk", (), ["id", "fold", "target", "truth"]),
    ],
)
def test_oof_has_a_row_for_each_row_of_train(tmp_path, kind, metric, names, header):
    plan, files, results, _ = competition(kind, metric, names=names)
    predictions = results.oof["encoder"]
    outcome.write_oof(tmp_path / "oof.csv", plan, files.train, results.folds, predictions)
    with open(tmp_path / "oof.csv", newline="", encoding="utf-8") as file:
        first, *rows = csv.reader(file)
    assert first == header and len(rows) == len(files.train.rows)
    width = predictions.shape[1]
    for row, cells in enumerate(rows):
        own = files.train.rows[row]
        assert cells[:2] == [own["id"], str(row % 3 + 1)]
        np.testing.assert_allclose([float(cell) for cell in cells[2 : 2 + width]], predictions[row], rtol=1e-8)
        assert cells[2 + width :] == [own[column] for column in plan.target.columns]

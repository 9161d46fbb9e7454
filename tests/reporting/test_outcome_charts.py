"""reporting/outcome_charts.py: what a report of a classifier shows, in pictures, tables, tiles and the summary."""

import json
import re

import numpy as np
import pytest
from histories import lines

from bidora_jax.data.labels import Labels
from bidora_jax.reporting import history, outcome_charts, style, summary
from bidora_jax.reporting.history import History
from bidora_jax.runs import report
from bidora_jax.tasks import outcomes

NAMES = ("no", "<yes> $a_$", "ねこ")


def classes(rows: int, seed: int, names=NAMES):
    random, count = np.random.default_rng(seed), len(names)
    truth = random.integers(count, size=rows)
    return 2 * np.eye(count)[truth] + random.normal(size=(rows, count)), np.eye(count)[truth]


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """The report of a run that classified, with a folder written by hand."""
    run = tmp_path_factory.mktemp("runs") / "classified"
    run.mkdir()
    steps = lines(6)
    for step, loss, f1 in ((2, 0.9, 0.5), (4, 0.8, 0.7), (6, 0.7, 0.6)):
        scores = {"loss": loss, "accuracy": f1 + 0.1, "f1_macro": f1, "log_loss": loss}
        steps[step - 1] |= {f"evaluation_{name}": value for name, value in scores.items()}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    facts = {
        "finished": True, "criterion": {"name": "f1_macro", "higher_is_better": True},
        "validation_before": {"loss": 1.5, "accuracy": 0.25, "f1_macro": 0.2, "records": 90},
        "result_loss": 0.8, "result_accuracy": 0.8, "result_f1_macro": 0.7,
        "test": {"before": {"loss": 1.6, "f1_macro": 0.3, "records": 50}, "after": {"loss": 0.9, "f1_macro": 0.75, "records": 50}},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    outcomes.write(run, Labels("classification", NAMES), {"validation": classes(90, 0), "test": classes(50, 1)})
    report.write(run, run / "report")
    return run


def test_the_page_shows_confusion_reliability_and_a_row_a_label(classified):
    page = (classified / "report" / "report.html").read_text()
    for part in ("Confusion, validation", "Confusion, test", "Reliability", "Metrics on the validation split", "Labels, test",
                 "validation, before", "F1 macro", "&lt;yes&gt; $a_$", "ねこ", "Validation F1 macro", "Test F1 macro"):  # fmt: skip
        assert part in page, part
    assert "<yes>" not in page and "perplexity" not in page and "nats per token" not in page
    names = {"loss", "learning_rate", "speed", "metrics", "reliability", "confusion_validation", "confusion_test"}
    assert {path.stem for path in (classified / "report").glob("*.png")} == names


def test_the_best_step_is_that_of_the_metric(classified):
    found = summary.summarise(history.read(classified))
    assert (found["best_step"], found["best_by"], found["best_value"]) == (4, "f1_macro", 0.7)
    rows = dict(summary.rows(found))
    assert rows["validation loss"] == "1.5000 → 0.8000"
    assert rows["validation f1_macro"] == "0.2000 → 0.7000"
    assert rows["test f1_macro"] == "0.3000 → 0.7500"
    assert rows["best step of the search"] == "4 (f1_macro 0.7000)"
    tiles = {name: rest for name, *rest in report._tiles(report.summarise(classified))}
    assert tiles["Validation F1 macro"] == ["0.7000", "of the result, 0.2000 before"]
    assert tiles["Test F1 macro"] == ["0.7500", "of the result, 0.3000 before"]
    assert tiles["Best step"] == ["4", "of the search, f1_macro 0.7000"]


def test_a_run_that_ends_early_shows_the_metrics_of_its_last_evaluation(classified):
    past = history.read(classified)
    facts = {"validation_before": past.facts["validation_before"]}
    found = summary.summarise(History(past.lines, facts=facts))
    after = {"accuracy": pytest.approx(0.7), "f1_macro": 0.6, "log_loss": 0.7}
    assert found["metrics"] == {"validation": {"before": {"accuracy": 0.25, "f1_macro": 0.2}, "after": after}}
    assert list(outcome_charts.all_charts(History(past.lines, facts=facts))) == ["metrics"]


def test_metrics_are_drawn_on_one_scale():
    past = [{"phase": "search", "step": 1, "evaluation_loss": 9.0, "evaluation_rmse": 80.0, "evaluation_pearson": -0.5}]
    _, figure = outcome_charts.all_charts(History(past, facts={"validation_before": {"records": 3}}))["metrics"]
    assert [line.get_label() for line in figure.axes[0].get_lines()] == ["Pearson"]
    assert not outcome_charts.all_charts(History(past))  # a language model's


def test_a_confusion_has_its_counts_and_shares_of_the_true_label():
    outcome = {"names": ["a", "b"], "confusion": [[3, 1], [0, 0]]}
    _, figure = outcome_charts.all_charts(History(lines(1), outcomes={"test": outcome}))["confusion_test"]
    axes = figure.axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    drawn = style.svg(figure, "Confusion")  # the page replaces the colours of style.LIGHT by its own, which may be dark
    assert re.search(r"<text[^>]*fill: #fefefe[^>]*>0</text>", drawn)
    many = {"names": [str(n) for n in range(50)], "confusion": np.eye(50).tolist()}
    _, figure = outcome_charts.all_charts(History(lines(1), outcomes={"test": many}))["confusion_test"]
    assert not figure.axes[0].texts and "30" not in [label.get_text() for label in figure.axes[0].get_xticklabels()][:3]


def test_values_are_drawn_over_their_targets_by_target():
    labels = Labels("regression", ("size", "age"), mean=(1.0, 10.0), std=(1.0, 5.0))
    values = np.random.default_rng(0).normal(size=(20, 2))
    outcome = outcomes.outcome(labels, values, values + 0.1)
    _, figure = outcome_charts.all_charts(History(lines(1), outcomes={"validation": outcome}))["values_validation"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["size", "age"]
    points = np.asarray(figure.axes[1].collections[0].get_offsets())
    np.testing.assert_allclose(points[:, 0] - points[:, 1], 0.5)

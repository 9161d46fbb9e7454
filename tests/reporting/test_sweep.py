"""reporting/sweep.py, reporting/sweep_charts.py: the best first, every trial in its place, no request and no foreign markup."""

import re

from bidora_jax.reporting import sweep, sweep_charts

HOSTILE = "<script>alert('1')</script> $x_1$"


def trial(number, method, rate, scores, state="complete", error=""):
    score = sum(scores) / len(scores) if scores else None
    return {"number": number, "state": state, "method": method, "score": score, "sd": 0.125 if len(scores) > 1 else None,
            "values": {"adapter.method": method, "inner.learning_rate": rate, "adapter.rank": "4", "adapter.init": HOSTILE},
            "scores": scores, "metrics": {"loss": score}, "steps": [7, 0], "tokens": 12_345, "seconds": 2.5,
            "error": error}  # fmt: skip


def made(**more):
    axes = [{"name": name, "scale": scale, "labels": labels, "low": low, "high": high} for name, scale, labels, low, high in (
        ("adapter.method", "choice", ["lora", "bidora"], 0, 0), ("inner.learning_rate", "log", [], 1e-5, 1e-3),
        ("adapter.rank", "choice", ["4", "64"], 0, 0), ("adapter.init", "choice", [HOSTILE], 0, 0),
    )]  # fmt: skip
    trials = [
        trial(0, "lora", 1e-5, [2.0, 2.5]), trial(1, "bidora", 1e-4, [1.5, 1.25]), trial(2, "lora", 1e-3, [], "failed", HOSTILE),
        trial(3, "lora", 3e-4, [9.0], "pruned"), trial(4, "lora", 2e-4, [1.75, 1.75]),
    ]  # fmt: skip
    found = {"name": "<i>runs</i>", "metric": "loss", "higher_is_better": False, "judge": "val <b>.jsonl", "budget": "tokens=9",
             "sampler": "tpe", "seeds": 2, "wanted": 5, "axes": axes, "trials": trials, "best": 1,
             "best_by_method": {"lora": 4, "bidora": 1},
             "test": {"trial": 1, "metric": "loss", "score": 1.625, "sd": 0.25, "scores": [1.5, 1.75]}}  # fmt: skip
    return found | more


def test_the_page_says_what_is_best_and_lists_every_trial():
    text = sweep.render(made())
    said = re.sub(r"<[^>]+>", "", re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.DOTALL))
    assert "Best loss 1.375 (sd 0.12) at adapter.method bidora, inner.learning_rate 0.0001" in said
    assert "less is better, mean of 2 seeds" in said and "budget tokens=9" in said and "1 failed" in said
    assert "Best of each method" in said and "On the test records1.625sd 0.25" in said
    assert said.index("1.375", said.index("Trials, the best first")) < said.index(
        "2.25", said.index("Trials, the best first")
    )
    assert len(re.findall(r"<svg ", text)) == 3  # parallel coordinates, rates and ranks
    assert "inner.learning_rate</text>" in text or "inner.learning_rate</tspan>" in text


def test_texts_are_no_markup_and_the_page_asks_for_nothing():
    text = sweep.render(made())
    assert "<script" not in text and "<i>runs" not in text and "<b>" not in text and "&lt;script&gt;" in text
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)", text) and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)


def test_the_table_has_the_best_first_and_what_failed_last():
    lines = sweep.table(made())
    assert lines[0] == "loss on val <b>.jsonl, less is better, mean of 2 seeds"
    assert [line.split()[0] for line in lines[2:7]] == ["1", "4", "0", "3", "2"]
    assert lines[5].endswith("pruned") and lines[6].endswith("failed")
    assert lines[7:] == ["best of lora: 1.75 (sd 0.12) (trial 4)", "best of bidora: 1.375 (sd 0.12) (trial 1)",
                         "on the test records: loss 1.625 (sd 0.25), of trial 1"]  # fmt: skip
    assert [one["number"] for one in sweep.ranked(made(higher_is_better=True))] == [0, 4, 1, 3, 2]


def test_a_sweep_without_a_score_has_a_page_too():
    failed = [trial(0, "lora", 1e-5, [], "failed", "no layer")]
    found = made(trials=failed, best=None, best_by_method={}, test=None)
    assert "No point of the sweep could be run" in sweep.render(found)
    assert sweep_charts.all_charts(found) == []


def test_a_value_lies_where_its_scale_puts_it():
    log = {"scale": "log", "labels": [], "low": 1e-5, "high": 1e-3}
    assert abs(sweep_charts._height(log, 1e-4) - 0.5) < 1e-12
    choice = {"scale": "choice", "labels": ["a", "b", "c"], "low": 0, "high": 0}
    assert [sweep_charts._height(choice, label) for label in "abc"] == [0, 0.5, 1]
    uniform = {"scale": "uniform", "labels": [], "low": 2, "high": 10}
    assert sweep_charts._height(uniform, 4) == 0.25

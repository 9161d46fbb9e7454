"""report.py, runs/report.py: histories written by hand, a killed run, one that has little to tell, and a whole run.

reporting/history.py reads what has the shapes of reporting/shapes.py, reporting/page.py and reporting/summary.py write.
"""

import json
import re
from html.parser import HTMLParser

import pytest
from histories import TRICKY, lines

from bidora_jax.errors import command
from bidora_jax.report import main
from bidora_jax.reporting import charts, page, summary
from bidora_jax.reporting.history import History
from bidora_jax.runs import report


class Page(HTMLParser):
    """Checks that every element is closed in its turn, and collects the texts and what is referred to."""

    VOID = ("meta", "br", "use", "path", "image", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_of_a_killed_run_is_whole_and_asks_for_nothing(killed):
    text = (killed / "report" / "report.html").read_text()
    page = Page(text)
    shown = "\n".join(page.texts)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    for part in ("run <1>", "not finished", "0.7000", "at the last evaluation", "of the search, loss 0.6000", TRICKY, "answer 8",
                 "x < y", "2 earlier", "search 12 + retrain 5", "cpu: cpu", "10.000% of all", "Hypergradient norm of the magnitude",
                 "Magnitude change ΔM by layer"):  # fmt: skip
        assert part in shown, part
    assert TRICKY not in text


def test_settings_that_differ_are_listed_with_their_defaults(killed):
    rows = {name: (value, default) for name, value, default in report._changed_settings(report._config(killed))}
    assert rows == {"seed": ("7", "0"), "adapter.rank": ("3", "8"), "inner.learning_rate": ("0.25", "0.0002"),
                    "model.path": ("some/model", "not set")}  # fmt: skip


def test_pictures_are_written_beside_the_page(killed):
    names = {"loss", "learning_rate", "direction_gradient", "hypergradient", "speed", "magnitude", "direction"}
    found = {path.name for path in (killed / "report").iterdir()}
    assert found == {f"{name}.png" for name in names} | {"report.html", "summary.json"}
    for name in names:
        head = (killed / "report" / f"{name}.png").read_bytes()[:24]
        assert head.startswith(b"\x89PNG") and int.from_bytes(head[16:20], "big") >= 1000


def test_the_summary_holds_the_numbers_of_the_run(killed):
    found = json.loads((killed / "report" / "summary.json").read_text())
    expected = {"finished": False, "validation_loss": 0.7, "best_step": 8, "best_validation_loss": 0.6, "tokens": 170,
                "seconds": 2.5, "run": str(killed), "peak_memory": {}}  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["phases"]["search"] == {"steps": 12, "train_loss": pytest.approx(2 / 12), "validation_loss": 0.7, "tokens": 120,
                                         "tokens_per_second": 700.0}  # fmt: skip
    assert found["parameters"]["trainable"] == 100 and found["parameters"]["trainable_share"] == 0.1
    assert "adapter" not in found


def test_what_training_changed_is_said_with_before_and_after():
    facts = {"validation_before": {"loss": 0.5, "accuracy": 0.25, "tokens": 9}}
    end = {"evaluation_loss": 2.0, "evaluation_accuracy": 0.5}  # worse: the model before training is no best step
    scores = {
        "before": {"loss": 3.0, "accuracy": 0.125, "tokens": 9},
        "after": {"loss": 1.0, "accuracy": 0.75, "tokens": 9},
    }
    found = summary.summarise(History(lines(4, **end), facts=facts | {"test": scores}))
    assert (found["best_step"], found["best_validation_loss"]) == (1, 2.0)
    assert found["phases"]["search"]["steps"] == 4
    assert dict(summary.rows(found))["validation loss"] == "0.5000 (perplexity 1.649) → 2.0000 (perplexity 7.389)"
    assert dict(summary.rows(found))["validation accuracy"] == "25.0% of the tokens → 50.0% of the tokens"
    assert dict(summary.rows(found))["test loss"] == "3.0000 (perplexity 20.09) → 1.0000 (perplexity 2.718)"
    assert dict(summary.rows(found))["test accuracy"] == "12.5% of the tokens → 75.0% of the tokens"
    tiles = {name: (value, small) for name, value, small in report._tiles(found)}
    assert tiles["Test loss"] == ("1.0000", "at the last evaluation, 3.0000 before")
    assert tiles["Validation loss"] == ("2.0000", "at the last evaluation, 0.5000 before")
    retrained = summary.summarise(History([*lines(4, **end), *lines(2, "retrain")], facts=facts))
    drawn = charts.all_charts(History(lines(4, **end), facts=facts))["loss"][1].axes[0]
    assert [0.0, 0.5] in [line.get_xydata()[0].tolist() for line in drawn.get_lines()]
    assert dict(summary.rows(retrained))["validation loss"].endswith("; retrain trains on this split too")
    assert "test loss" not in dict(summary.rows(retrained))


def test_the_page_says_how_many_records_there_were_and_how_to_run_once_more(killed):
    shown = "\n".join(Page((killed / "report" / "report.html").read_text()).texts)
    assert f"The same run once more: python -m bidora_jax.train --config '{killed}/config.json'" in shown
    facts = {"records": {"train": 1200, "val": 7, "test": 0}}
    tiles = {name: rest for name, *rest in report._tiles(summary.summarise(History(lines(3), facts=facts)))}
    assert tiles["Records"] == ["1,200", "to train on, 7 val"]
    assert tiles["Tokens"] == ["30", ""]  # not once more in small print


def test_one_layer_that_moved_far_leaves_the_scale_of_the_others():
    moved = {"mlp.up_proj": [0.01] * 19 + [9.0]}
    changes = [{"phase": "search", "step": step, "magnitude": moved} for step in (1, 2)]
    figure = charts._heat(History(lines(2), changes), "magnitude", "ΔM")
    assert figure is not None
    image = figure.axes[0].images[0]
    assert image.get_clim() == (0, pytest.approx(0.02))
    assert "up to 9" in figure.axes[-1].get_ylabel()
    even = charts._heat(History(lines(2), [changes[0] | {"magnitude": {"mlp.up_proj": [0.1, 0.2]}}]), "magnitude", "ΔM")
    assert even is not None and even.axes[0].images[0].get_clim() == (0, 0.2)


def test_the_command_prints_the_summary_as_a_table_or_as_json(killed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(charts, "all_charts", lambda _: {})  # drawn once is enough
    main(["--run", str(killed), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    for part in (
        "run not finished",
        "0.7000",
        "8 (loss 0.6000)",
        "12 steps, training loss",
        "100, 10.000% of all",
        str(tmp_path / "out"),
    ):
        assert part in said
    main(["--run", str(killed), "--output", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, ""), (3.21, "3.2 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_spelt_out(seconds, said):
    assert summary.duration(seconds) == said


@pytest.mark.parametrize(("content", "said"), [
    (None, "nothing has been trained in it yet"), ("", "holds no step yet"), ('{"phase": "sea', "holds no step yet"),
    ('nonsense\n{"phase": "search", "step": 1}\n', "metrics.jsonl:1 is not a line"),
    ('{"phase": "search", "step": 1000000000000000000000000000000}\n', "metrics.jsonl:1 is not a line"),
    ('{"phase": "search", "step": true}\n', "metrics.jsonl:1 is not a line"),
])  # fmt: skip
def test_what_is_no_history_is_refused(tmp_path, capfd, content, said):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        command(main, ["--run", str(tmp_path)])
    assert stopped.value.code == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_run_that_went_on_with_more_prompts_shows_them_all():
    def looked(step, count):
        one = {"prompt": "p", "answer": f"a{step}", "expected": None}
        return {"phase": "search", "step": step, "samples": [one | {"prompt": f"p{n}"} for n in range(count)]}

    for counts in ((2, 3), (3, 2)):
        text = page._samples([looked(step, count) for step, count in enumerate(counts, 1)])
        assert [text.count(f">p{n}<") for n in range(4)] == [1, 1, 1, 0]
        assert text.count("<details>") == 2


DAMAGED_FACTS = {
    "[]": "run.json: it is a list, expected an object",
    '{"started": [1]}': "run.json: started is a list, expected a text",
    '{"parameters": {"frozen": 3, "direction": {}}}': "run.json: parameters.direction is an object, expected a number",
    '{"parameters": {"direction": 3}}': "run.json: parameters.frozen is nothing, expected a number",
    '{"test": {"before": {"loss": 1}}}': "run.json: test.after is nothing, expected an object",
    '{"test": {"before": {"loss": true}, "after": {}}}': "run.json: test.before.loss is true or false, expected a number",
    '{"finished"': "run.json is not JSON",
}


@pytest.mark.parametrize(("text", "said"), DAMAGED_FACTS.items(), ids=lambda text: text[:24])
def test_facts_of_another_shape_are_refused_by_name(tmp_path, capfd, text, said):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"phase": "search", "step": 1, "train_loss": 1.0}) + "\n")
    (tmp_path / "run.json").write_text(text)
    assert said in refused_report(tmp_path, capfd)


DAMAGED_LINES = {
    ("metrics", '{"phase": "search", "step": 2, "train_loss": "high"}'): "train_loss is a text, expected a number",
    ("metrics", '{"phase": "search", "step": true}'): "step is true or false, expected a whole number",
    ("metrics", '{"phase": "search", "step": 1000000000000000000000000000000}'): "its step is no step",
    ("metrics", json.dumps({"phase": "s" * 101, "step": 2})): "its phase is no name",
    ("metrics", '{"phase": "search", "step": 2, "train_loss": NaN}'): "it is not JSON (NaN is no JSON)",
    (
        "changes",
        '{"phase": "search", "step": 2, "magnitude": {"q": [0.1, "x"]}}',
    ): "magnitude.q[1] is a text, expected a number",
    (
        "samples",
        '{"phase": "search", "step": 2, "samples": [{"prompt": "a"}]}',
    ): "samples[0].answer is nothing, expected a text",
}


@pytest.mark.parametrize(("line", "said"), DAMAGED_LINES.items(), ids=lambda line: str(line)[:32])
def test_a_line_of_another_shape_is_refused_by_its_number(tmp_path, capfd, line, said):
    name, text = line
    whole = {"phase": "search", "step": 1}
    of_file = {"metrics": {"train_loss": 1.0}, "changes": {}, "samples": {"samples": []}}
    for one, more in of_file.items():
        damaged = f"{text}\n" if one == name else ""
        (tmp_path / f"{one}.jsonl").write_text(json.dumps(whole | more) + "\n" + damaged)
    found = refused_report(tmp_path, capfd)
    assert f"{name}.jsonl:2 is not a line of a run's history: {said}; take that line out" in found


def refused_report(run, capfd) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, ["--run", str(run)])
    assert stopped.value.code == 2 and not (run / "report").exists()
    return capfd.readouterr().err


@pytest.mark.slow
def test_a_whole_run_ends_with_its_report(finished_run):
    run, said = finished_run / "run", (finished_run / "stdout").read_text()
    found = json.loads((run / "report" / "summary.json").read_text())
    assert found["finished"] and found["best_step"] == 1 and found["peak_memory"]["host"] > 2**26
    assert found["records"] == {"train": 23, "val": 11, "test": 0}
    assert found["parameters"]["direction"] == 2 * 3 * (26 + 60) and found["parameters"]["magnitude"] == 2 * 60
    assert found["adapter"] == str(run / "adapter") and found["merged"] == str(run / "merged")
    for part in ("run finished", f"{found['validation_loss']:.4f}", str(run / "report" / "report.html")):
        assert part in said
    page = Page((run / "report" / "report.html").read_text())
    assert any("Sample generations" in text for text in page.texts)

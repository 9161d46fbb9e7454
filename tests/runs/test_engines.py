"""benchmarks/engines/engines.py, benchmarks/engines/exports.py and benchmarks/engines/workers.py: what is
written, asked, compared and told. The engines themselves are not run."""

import json
import sys
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "engines"))
import engines
import exports
import workers

RUNS = exports.Runs(Path("run"), Path("first"), Path("second"), "base-folder", "float32")


def test_what_is_asked_is_what_is_written():
    tasks = list(engines.tasks())
    read = {name for task in tasks for name in (task.model, *task.adapters)} - {"base"}
    assert read == exports.commands(RUNS, Path("exports"), 0).keys()
    assert {task.engine for task in tasks} == engines.PACKAGES.keys() == workers.ENGINES.keys()
    of_others = [name for task in tasks if task.engine != "bidora_jax" for name in task.exports]
    ours = [name for task in tasks if task.engine == "bidora_jax" for name in task.exports]
    assert {name for name in of_others if not name.startswith("gguf")} == set(ours)  # each can be compared with ours


def test_an_export_is_compared_with_the_run_that_it_is_of():
    written = exports.commands(RUNS, Path("exports"), 16)
    for name, flags in written.items():
        if "--run" in flags:
            assert flags[1] == str(getattr(RUNS, exports.trained_by(name))), name
    assert written["lora"] == ["--run", "run", "--format", "lora", "--rank", "16"]
    assert "--rank" not in written["lora-1"]  # a LoRA has its own


def test_rows_say_what_equals_the_run_and_what_equals_ours():
    task = engines.Task("vLLM", "base", ("lora", "lora-1"))
    answers = {"lora": {"texts": ["a", "b", "c"], "seconds": 2.04}, "lora-1": {"texts": ["a", "b", ""], "seconds": 1.0}}
    trained = {"run": ["a", "b", "x"], "first": ["a", "y", "z"]}
    rows = engines.table_rows(
        task, "vLLM 1.2", engines.Outcome("yes", 10.0, answers), trained, {"lora": ["a", "b", "c"]}
    )
    assert rows == [("lora", "vLLM 1.2", "yes", "2 of 3", "3 of 3", "10.0 + 2.0"),
                    ("lora-1", "vLLM 1.2", "yes", "1 of 3", "", "10.0 + 1.0")]  # fmt: skip
    refused = engines.table_rows(task, "vLLM 1.2", engines.Outcome("no: `why`"), trained, {})
    assert refused == [(name, "vLLM 1.2", "no: `why`", "", "", "") for name in task.adapters]
    assert engines.table(rows[:1]) == (
        "| export | engine | loads | as the run | as here | seconds |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| lora | vLLM 1.2 | yes | 2 of 3 | 3 of 3 | 10.0 + 2.0 |"
    )


def test_answers_of_unequal_number_are_no_comparison():
    with pytest.raises(ValueError, match="shorter"):
        engines.equal(["a", "b"], ["a"])


def test_the_rank_is_one_that_vllm_takes(tmp_path):
    def adapter(rank: int) -> str:
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return str(tmp_path / str(rank))

    small, large = adapter(5), adapter(65)
    assert [engines.largest_rank(given) for given in ([], [small], [small, large])] == [0, 8, 128]


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("INFO starts\n(core pid=3) ERROR x.py:7] ValueError: no DoRA.\nRuntimeError: the engine ended", "no: `no DoRA.`"),
        ("INFO starts\nKilled a | b", "no: `Killed a / b`"),
        ("", "no: `not a word`"),
    ],
)  # fmt: skip
def test_the_first_error_is_the_reason(log, told):
    assert engines.reason(log) == told


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(engines.PACKAGES, "none", ("jax", "nowhere|no-such-package"))
    assert engines.version(sys.executable, "none") == ("none", "nowhere")
    monkeypatch.setitem(engines.PACKAGES, "one", ("no-such-package|jaxtyping", "jax"))
    name, missing = engines.version(sys.executable, "one")
    assert name.startswith("one, ") and name[-1].isdigit() and missing == ""


def test_records_are_asked_in_the_form_of_training(tmp_path):
    file = tmp_path / "asked.jsonl"
    file.write_text(
        '{"instruction": "Add", "input": "a\u2028b", "output": "x"}\n\n{"prompt": "Go"}\n{"prompt": "Not"}\n'
    )
    assert engines.asked(file, 2) == ["Add\n\na\u2028b", "Go"]


def test_a_worker_asks_each_text_of_every_adapter_in_turn(tmp_path, monkeypatch):
    order = []

    @contextmanager
    def echo(job):
        yield {name: lambda text, name=name: order.append(text + name) or text + name for name in job["adapters"]}

    monkeypatch.setitem(workers.ENGINES, "echo", echo)
    told = {"engine": "echo", "adapters": {"x": "", "y": ""}, "texts": ["1", "2"], "result": str(tmp_path / "found")}
    (tmp_path / "job").write_text(json.dumps(told))
    workers.main(str(tmp_path / "job"))
    found = json.loads((tmp_path / "found").read_text())
    assert order == ["1x", "1y", "2x", "2y"]
    assert [found["answers"][name]["texts"] for name in "xy"] == [["1x", "2x"], ["1y", "2y"]]


def test_what_a_process_died_of_is_told(tmp_path):
    for name in ("answers", "logs"):
        (tmp_path / name).mkdir()
    task = engines.Task("bidora_jax", "base")
    told = engines.job(task, "ours", {"base": tmp_path / "nowhere"}, "float32")
    options = Namespace(work=tmp_path, new=3, limit=100)
    found = engines.answered(sys.executable, task, told, ["Add"], options)
    assert found.loads.startswith("no: `") and "nowhere" in found.loads and found.answers == {}


def test_what_was_answered_is_not_asked_again(tmp_path):
    for name in ("answers", "logs"):
        (tmp_path / name).mkdir()
    task, told = engines.Task("bidora_jax", "base"), {"engine": "none", "version": "1"}
    options = Namespace(work=tmp_path, new=3, limit=100)
    assert engines.answered(sys.executable, task, told, ["Add"], options).loads == "no: `'none'`"  # KeyError
    kept = {"loading": 1.0, "answers": {"base": {"texts": ["x"], "seconds": 2.0}}}
    (tmp_path / "answers" / "bidora_jax-base.answered.json").write_text(json.dumps(kept))
    assert engines.answered(sys.executable, task, told, ["Add"], options) == engines.Outcome("yes", **kept)
    newer = engines.answered(sys.executable, task, told | {"version": "2"}, ["Add"], options)
    assert newer.loads == "no: `'none'`"

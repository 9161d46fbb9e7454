"""Runs with labels, end to end: train, evaluate, export, and the files in the hands of transformers and PEFT.

They go through runs/labelling.py, runs/classifying.py, models/formats/hf_head.py, tasks/class_evaluation.py and
tasks/settings.py.
"""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from peft_oracle import DEPRECATED
from runs import metrics
from safetensors.numpy import load_file

from bidora_jax import evaluate, export, generate, load, predict, train
from bidora_jax.errors import InputError, command
from bidora_jax.generation.served_model import Served
from bidora_jax.runs import classifying

pytestmark = pytest.mark.slow
COLOURS = ("blue", "green", "red")


def write_table(path, count, seed, label=lambda random, number: COLOURS[number % 3]):
    random = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", "label"])
        for number in range(count):
            words = " ".join(random.choice(["sky", "leaf", "rose", "stone"], size=random.integers(2, 7)))
            rows.writerow([f"{seed}-{number:03}", f"{words} {number % 3}", label(random, number)])
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return [write_table(folder / f"{use}.csv", count, seed) for seed, (use, count) in
            enumerate({"train": 18, "val": 9, "test": 7}.items())]  # fmt: skip


def flags(model_folder, tables, run, *more):
    uses = zip(("train", "val", "test"), tables, strict=False)
    files = [text for use, table in uses for text in (f"--data.{use}-file", str(table))]
    return ["-m", str(model_folder), *files, "-o", str(run), "--task", "classification", "--adapter.rank", "3",
            "--adapter.target-modules", "q_proj", "v_proj", "--data.buckets", "1", "--search.steps", "3", "--retrain.steps", "2",
            "--inner.learning-rate", "0.01", "--inner.warmup", "0", "--compilation-cache", "", "--merged", *more]  # fmt: skip


@pytest.fixture(scope="module")
def run(model_folder, tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    command(train.main, flags(model_folder, tables, folder, "--data.packing", "--data.max-length", "64"))
    return folder


def test_the_run_is_scored_by_its_metric_and_keeps_its_labels(run):
    labels = json.loads((run / "adapter" / "labels.json").read_text())
    assert labels == {"type": "classification", "names": list(COLOURS), "text_columns": ["text"]}
    lines = metrics(run)
    last = [line for line in lines if "evaluation_loss" in line][-1]
    assert {"evaluation_accuracy", "evaluation_f1_macro", "evaluation_log_loss"} <= last.keys()
    facts = json.loads((run / "run.json").read_text())
    assert {"accuracy", "loss", "records"} <= facts["validation_before"].keys() and facts["test"]["after"][
        "records"
    ] == 7
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    assert tensors["base_model.model.score.weight"].shape == (3, 26)


def test_evaluate_prints_what_the_run_measured(run, tables, capfd, tmp_path):
    evaluate.main(["--run", str(run), "--json", str(tmp_path / "found.json")])
    said, found = capfd.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    wanted = json.loads((run / "run.json").read_text())["test"]["after"]
    assert re.search(r"accuracy +[\d.]+", said)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.torch
@pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
def test_peft_and_transformers_load_what_was_written(run, model_folder, tables):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    classifier = classifying.open_classifier(Served(model=str(model_folder), adapter=(str(run),), compilation_cache=""))
    rows = classifier.read(str(tables[2]), classifying.reading(_columns(), max_length=64, long="truncate"))
    (ours,) = classifier.outputs(rows.examples).values()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = [record["text"] for record in rows.records]
    given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    pasted: dict = {}
    exec(re.search(r"```python\n(.*?)```", (run / "adapter" / "README.md").read_text(), re.DOTALL)[1], pasted)
    of_peft = pasted["model"]
    assert of_peft.config.id2label == dict(enumerate(COLOURS))
    merged = AutoModelForSequenceClassification.from_pretrained(run / "merged")
    assert (
        merged.config.id2label == dict(enumerate(COLOURS))
        and merged.config.problem_type == "single_label_classification"
    )
    for theirs in (of_peft, merged):
        with torch.no_grad():
            np.testing.assert_allclose(theirs.eval()(**given).logits.numpy(), ours.outputs, atol=1e-4)


def _columns():
    return type("Columns", (), {"run": "", "text_columns": ("text",), "label_columns": ("label",)})()


def test_what_writes_texts_refuses_what_labels_them(run, capfd):
    with pytest.raises(SystemExit) as stopped:
        command(generate.main, ["--run", str(run), "--prompt", "sky"])
    assert stopped.value.code == 2 and "labels texts and writes none: see" in capfd.readouterr().err


def test_a_run_that_was_killed_goes_on_bit_for_bit(run, tmp_path):
    """After the search: retrain is trained anew, and its adapter is the same."""
    again = shutil.copytree(run, tmp_path / "again")
    shutil.rmtree(again / "adapter")
    shutil.rmtree(again / "merged")
    shutil.rmtree(again / "checkpoints" / "5")
    command(train.main, ["--config", str(again / "config.json"), "--output-dir", str(again), "--resume"])
    wanted, found = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (run, again))
    assert wanted == found
    assert metrics(run) == metrics(again)


def test_a_run_is_exported_again_and_the_merged_model_is_a_classifier(run, tables, tmp_path, capfd):
    export.main(["--run", str(run), "--format", "merged", "--output", str(tmp_path / "merged")])
    wanted, found = (load_file(folder / "model.safetensors") for folder in (run / "merged", tmp_path / "merged"))
    assert wanted.keys() == found.keys() and all(np.array_equal(wanted[name], found[name]) for name in wanted)
    capfd.readouterr()
    evaluate.main(["--model", str(tmp_path / "merged"), "--data-file", str(tables[2]), "--compilation-cache", ""])
    said = capfd.readouterr().out
    assert re.search(r"records +7", said)
    wanted = json.loads((run / "run.json").read_text())["test"]["after"]["loss"]
    assert float(re.search(r"loss +([\d.]+)", said)[1]) == pytest.approx(wanted, abs=1e-4)


def test_the_report_shows_what_the_run_makes_of_each_split(run):
    facts, found = (json.loads((run / f"{name}.json").read_text()) for name in ("run", "outcomes"))
    assert {split: one["rows"] for split, one in found.items()} == {"validation": 9, "test": 7}
    assert facts["criterion"] == {"name": "accuracy", "higher_is_better": True}
    assert found["test"]["metrics"]["log_loss"] == facts["test"]["after"]["log_loss"]
    assert found["validation"]["metrics"]["accuracy"] == facts["result_accuracy"]
    assert np.trace(found["test"]["confusion"]) / 7 == pytest.approx(facts["test"]["after"]["accuracy"])
    assert (run / "report" / "confusion_test.png").is_file() and (run / "report" / "metrics.png").is_file()


def test_predict_says_of_each_row_what_the_run_was_scored_by(run, tables, tmp_path):
    facts = json.loads((run / "run.json").read_text())["test"]["after"]
    predict.main(["--run", str(run), "--data-file", str(tables[2]), "--output", str(tmp_path / "found.csv")])
    with (tmp_path / "found.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    with tables[2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [row["id"] for row in rows] and list(found[0]) == ["id", "label", *COLOURS]
    right = [one["label"] == row["label"] for one, row in zip(found, rows, strict=True)]
    assert np.mean(right) == pytest.approx(facts["accuracy"])
    own = [float(one[row["label"]]) for one, row in zip(found, rows, strict=True)]
    assert -np.mean(np.log(own)) == pytest.approx(facts["log_loss"], abs=1e-5)


def test_python_predicts_and_evaluates_as_the_commands_do(run, tables):
    opened, facts = load(str(run)), json.loads((run / "run.json").read_text())["test"]["after"]
    assert opened.evaluate(str(tables[2])) == pytest.approx(facts, abs=1e-5)
    with tables[2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = opened.predict(rows)
    right = [one["label"] == row["label"] for one, row in zip(found, rows, strict=True)]
    assert np.mean(right) == pytest.approx(facts["accuracy"])
    alone = opened.predict(rows[3]["text"])
    assert alone["label"] == found[3]["label"]
    assert alone["probabilities"] == pytest.approx(found[3]["probabilities"], abs=1e-5)
    assert opened.predict([]) == []
    with pytest.raises(InputError, match="row 2 must be a text or a dictionary, found int"):
        opened.predict(["a", 3])
    with pytest.raises(InputError, match="threshold must be between 0 and 1"):
        opened.predict("a", threshold=2.0)


def test_a_metric_that_the_validation_records_do_not_define_is_refused(model_folder, tables, tmp_path, capfd):
    blue = write_table(tmp_path / "blue.csv", 6, 5, label=lambda random, number: "blue")
    given = flags(model_folder, [tables[0], blue], tmp_path / "run", "--search.metric", "auc")
    with pytest.raises(SystemExit) as stopped:
        command(train.main, given)
    said = capfd.readouterr().err
    assert stopped.value.code == 2
    assert "search.metric auc can't choose the best step" in said and "each label is in every row" in said
    assert not (tmp_path / "run").exists()

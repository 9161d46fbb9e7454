"""What people give a run with labels by mistake (runs/labelling.py): exit 2, one message with a remedy, and nothing is written."""

import json
import re
import shutil

import encoder_folders
import encoder_tokenizers
import numpy as np
import pytest
from runs import exit_status
from safetensors.numpy import load_file, save_file

TABLE = "text,label\n" + "".join(
    f"good film {word},{label}\n" for word, label in zip("abcdefgh", "xyxyxyxy", strict=True)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A BERT of two layers, with a tokenizer and a head for two labels."""
    folder = encoder_folders.write(tmp_path_factory.mktemp("models") / "bert", "bert")
    encoder_tokenizers.bert(folder)
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(0)
    tensors |= {
        "classifier.weight": random.normal(size=(2, 42)).astype(np.float32),
        "classifier.bias": np.zeros(2, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


def table(rows, header="text,label"):
    return header + "\n" + "".join(f"{row}\n" for row in rows)


def rows(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


ROWS = [f"good film {word},{label}" for word, label in zip("abcdefgh", "xyxyxyxy", strict=True)]
TAGGED = [{"tokens": ["john", "lives", word], "tags": ["B-PER", "O", "O"]} for word in ("in", "york", "new", "is")]
VAL = ["--data.val-fraction", "0.25"]
CASES = {
    "a label is missing": ({"train.csv": table([*ROWS, "a film,"])}, [], r"train\.csv:10: has no label in 'label'"),
    "a text is missing": (
        {"train.jsonl": rows(*({"text": f"a {w}", "label": w} for w in "xyxy"), {"text": None, "label": "x"})}, [],
        r"train\.jsonl:5: has no text in 'text'"),
    "a label that is no number": (
        {"train.csv": table([*(f"good {n},{n}.5" for n in range(8)), "a film,NaN"])}, ["--task", "regression"],
        r"train\.csv:10: 'label' is nan, .* write a number"),
    "words for numbers": ({"train.csv": TABLE}, ["--task", "regression"], r"'label' is 'x', and regression needs a number"),
    "a label that train lacks": (
        {"train.csv": TABLE, "val.csv": table(["a film,z"])}, ["--data.val-file", "{}/val.csv"],
        r"(?s)labels of val that train does not have:.*'z'.*correct them"),
    "one class only": ({"train.csv": table(["a film,x", "a good film,x", "bad,x", "very bad,x"])}, [], r"'x'"),
    "three columns that could be text": (
        {"train.csv": table(["a film,the good,very bad,x", "bad film,a good,is bad,y"] * 3, "one,two,three,label")}, [],
        r"(?s)text.*'one'.*--data\.text-columns"),
    "no column of a label": ({"train.csv": table(["a", "c"], "text")}, ["--task", "classification"], "label"),
    "columns that are not there": ({"train.csv": TABLE}, ["--data.text-columns", "sentence"], "sentence"),
    "a column that is text and label": (
        {"train.csv": TABLE}, ["--data.text-columns", "label", "--data.label-columns", "label"], "named as text and as label"),
    "a tag outside the scheme": (
        {"train.jsonl": rows(*TAGGED, {"tokens": ["a"], "tags": ["B-"]})}, ["--task", "tokens"], r"B-"),
    "as many tags as words": (
        {"train.jsonl": rows(*TAGGED, {"tokens": ["a", "film"], "tags": ["O"]})}, ["--task", "tokens"],
        r"train\.jsonl:5: has 2 words and 1 tags"),
    "a row without words": (
        {"train.jsonl": rows(*TAGGED, {"tokens": [], "tags": []})}, ["--task", "tokens"], r"train\.jsonl:5: .*no word"),
    "shares that are too large": (
        {"train.jsonl": rows(*({"text": "a", "label": {"x": 0.9, "y": 0.4}},) * 4)}, [], "sum to 1.3"),
    "a text longer than the positions": (
        {"train.csv": table([*ROWS, f"{'good ' * 60},x"])}, ["--data.max-length", "100"],
        r"train\.csv:10\).* 47 tokens .*--data\.max-length 47"),
    "long texts refused": (
        {"train.csv": TABLE}, ["--data.long", "refuse", "--data.max-length", "4"], r"more than data\.max_length = 4 tokens"),
    "no group": ({"train.csv": TABLE}, ["--data.group-column", "author"], "author"),
    "next tokens of an encoder": (
        {"train.csv": TABLE}, ["--task", "language_modeling"], "is an encoder, which predicts no next token"),
    "a metric of another task": ({"train.csv": TABLE}, ["--task", "classification", "--search.metric", "rmse"], "rmse"),
    "no metric at all": ({"train.csv": TABLE}, ["--search.metric", "acuracy"], r"search\.metric acuracy"),
    "smoothing of numbers": (
        {"train.csv": TABLE}, ["--task", "regression", "--task.label-smoothing", "0.1"], r"task\.label_smoothing is for"),
    "weights of a label that train lacks": (
        {"train.csv": TABLE}, ["--task.labels", "x", "y", "z", "--task.head", "new", "--task.class-weights", "balanced"],
        r"no training record has the label\n.*z"),
    "a head for other labels": (
        {"train.csv": table([*ROWS, "a,z", "bad,z", "is,z"])}, [],
        r"(?s)classifier\.weight: expected \(3, 42\), found \(2, 42\).*task\.head new"),
    "cuDNN": ({"train.csv": TABLE}, ["--model.attention", "cudnn"], "cudnn"),
    "samples of answers": ({"train.csv": TABLE}, ["--task", "classification", "--samples.every", "5"], r"samples\.every to 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_a_remedy(name, model, tmp_path, capfd):
    files, flags, expected = CASES[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    train = next(file for file in files if file.startswith("train"))
    split = [] if any("val-file" in flag for flag in flags) else VAL
    flags = [flag.format(tmp_path) for flag in flags]
    argv = ["-m", str(model), "-t", str(tmp_path / train), "-o", str(tmp_path / "run"), *split, *flags]
    assert exit_status(argv) == 2
    said = capfd.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert re.search(expected, said), said
    assert not (tmp_path / "run").exists()


def test_a_text_that_ends_with_padding_is_refused_for_a_decoder(model_folder, tmp_path, capfd):
    (tmp_path / "train.csv").write_text(table([*ROWS, "a film<|endoftext|>,x"]))
    files = ["-t", str(tmp_path / "train.csv"), "-o", str(tmp_path / "run")]
    assert exit_status(["-m", str(model_folder), *files, *VAL, "--task", "classification"]) == 2
    said = capfd.readouterr().err
    assert re.search(
        r"texts end with <\|endoftext\|>, which also fills rows.*train\.csv:10.*\n.*pad_token of its own", said
    ), said


@pytest.mark.parametrize("flags", [["--data.group-column", "author"], ["--task.class-weights", "balanced"]])
def test_what_a_language_model_has_no_use_for_is_refused(flags, model_folder, tmp_path, capfd):
    (tmp_path / "train.jsonl").write_text(rows(*({"text": f"a film {n}"} for n in range(8))))
    files = ["-t", str(tmp_path / "train.jsonl"), "-o", str(tmp_path / "run")]
    assert exit_status(["-m", str(model_folder), *files, *VAL, *flags]) == 2
    assert "belong to a run with labels, and this one trains a language model" in capfd.readouterr().err


FAMILIES = {
    "deberta": "deberta-v2", "esm": "is_folding_model", "albert": "albert.*supported"
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_another_family_is_refused_by_name(family, model, tmp_path, capfd):
    folder = shutil.copytree(model, tmp_path / "model")
    given = json.loads((folder / "config.json").read_text()) | {
        "model_type": family,
        "is_folding_model": True,
        "pad_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(given))
    (tmp_path / "train.csv").write_text(TABLE)
    assert exit_status(["-m", str(folder), "-t", str(tmp_path / "train.csv"), *VAL, "-o", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert re.search(FAMILIES[family], said), said

"""predict.py, runs/predicting.py: what a classifier's outputs become in a file, by task, by adapter and together."""

import csv
import json
import shutil

import numpy as np
import pytest
from classifier_folders import write_adapter, write_classifier
from safetensors.numpy import load_file, save_file

from bidora_jax import predict
from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError, command
from bidora_jax.generation.served_model import Served
from bidora_jax.runs import classifying, predicting

TEXTS = ['a sky, "blue"', "b", "a very much longer text than the others", "rose and stone", ""]
ROWS = [{"PassengerId": f"00{n}", "text": text} for n, text in enumerate(TEXTS)]
COLOURS = Labels("classification", ("blue", "1.0", "red, or so"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def table(folder):
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    return str(folder / "rows.csv")


@pytest.fixture(scope="module")
def adapters(folder, model_folder):
    """Two adapters with the same labels in another order."""
    turned = Labels("classification", tuple(reversed(COLOURS.names)))
    return [str(write_adapter(folder / name, model_folder, labels, seed))
            for seed, (name, labels) in enumerate({"one": COLOURS, "two": turned}.items())]  # fmt: skip


def predicted(*argv: str, to) -> list[dict]:
    command(predict.main, [*argv, "--output", str(to), "--compilation-cache", ""])
    if to.suffix == ".jsonl":
        return list(map(json.loads, to.read_text().splitlines()))
    with to.open(newline="") as file:
        return list(csv.DictReader(file))


def logits(model, rows, *adapters):
    """Outputs of each adapter, row by row: nothing is padded, and nothing is put in another order."""
    classifier = classifying.open_classifier(Served(model=str(model), adapter=adapters, compilation_cache=""))
    found = {name: [] for name in classifier.members}
    for row in rows:
        read = classifier.read([row], predict._reading(predict.PredictArguments()))
        for name, one in classifier.outputs(read.examples).items():
            found[name] += list(one.outputs)
    return list(found.values())


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_a_table_has_the_ids_the_label_and_every_probability(model_folder, adapters, table, folder, capfd):
    found = predicted(
        "--model", str(model_folder), "--adapter", adapters[0], "--data-file", table, to=folder / "one.csv"
    )
    expected = softmax(np.array(logits(model_folder, ROWS, adapters[0])[0], np.float64))
    assert list(found[0]) == ["PassengerId", "label", *COLOURS.names]
    assert [row["PassengerId"] for row in found] == ["000", "001", "002", "003", "004"]
    shares = np.array([[float(row[name]) for name in COLOURS.names] for row in found])
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    assert [row["label"] for row in found] == [COLOURS.names[place] for place in expected.argmax(1)]
    said = capfd.readouterr()
    assert "written to" in said.out and "with the column 'PassengerId'" in said.out and "5 rows: " in said.out


def test_adapters_answer_in_turn_or_as_one_by_the_names_of_their_labels(model_folder, adapters, table, folder):
    flags = [
        "--model",
        str(model_folder),
        "--adapter",
        f"a={adapters[0]}",
        "--adapter",
        f"b={adapters[1]}",
        "--data-file",
        table,
    ]
    in_turn = predicted(*flags, to=folder / "turn.csv")
    assert [row["adapter"] for row in in_turn] == ["a"] * 5 + ["b"] * 5
    one, two = (softmax(np.array(found, np.float64)) for found in logits(model_folder, ROWS, *adapters))
    expected = np.concatenate([one, two[:, ::-1]])
    np.testing.assert_allclose([[float(row[name]) for name in COLOURS.names] for row in in_turn], expected, atol=1e-5)
    together = predicted(*flags, "--ensemble", "probabilities", to=folder / "mean.jsonl")
    assert list(together[0]) == ["PassengerId", "label", "probabilities"]
    shares = [[row["probabilities"][name] for name in COLOURS.names] for row in together]
    np.testing.assert_allclose(shares, (one + two[:, ::-1]) / 2, atol=1e-5)


def test_several_labels_a_row_are_chosen_at_the_threshold(model_folder, table, folder):
    labels = Labels("multilabel", ("a", "b", "c", "d"))
    model = write_classifier(folder / "multilabel", model_folder, labels)
    expected = 1 / (1 + np.exp(-np.array(logits(model, ROWS)[0], np.float64)))
    middle = float(np.mean(np.sort(expected, axis=None)[-4:-2]))  # the three most probable ones reach it
    assert (expected >= 0.5).sum() > 3
    found = predicted(
        "--model", str(model), "--data-file", table, "--threshold", str(middle), to=folder / "labels.tsv.jsonl"
    )
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in found], expected, atol=1e-5)
    assert [row["labels"] for row in found] == [
        [name for name, p in zip("abcd", row, strict=True) if p >= middle] for row in expected
    ]


def test_values_are_those_of_the_training_file(model_folder, table, folder):
    labels = Labels("regression", ("grade",), mean=(3.0,), std=(0.5,))
    adapter = write_adapter(folder / "grade", model_folder, labels)
    found = predicted(
        "--model", str(model_folder), "--adapter", str(adapter), "--data-file", table, to=folder / "value.csv"
    )
    assert list(found[0]) == ["PassengerId", "value"]
    expected = 3 + 0.5 * np.array(logits(model_folder, ROWS, str(adapter))[0])[:, 0]
    np.testing.assert_allclose([float(row["value"]) for row in found], expected, atol=1e-5)


def test_every_word_has_a_tag_and_one_that_is_cut_off_is_o(model_folder, folder):
    labels = Labels("tokens", ("B-X", "O", "I-X"))
    model = write_classifier(folder / "tagger", model_folder, labels, seed=2)
    words = [["ab", "c", "Bde"], ["one"], ["abcdef"] * 9]
    (folder / "words.jsonl").write_text("".join(json.dumps({"tokens": text}) + "\n" for text in words))
    flags = ["--model", str(model), "--data-file", str(folder / "words.jsonl"), "--max-length", "24"]
    found = predicted(*flags, to=folder / "tags.jsonl")
    assert [len(row["tags"]) for row in found] == [3, 1, 9]
    assert found[2]["tags"][-4:] == ["O"] * 4 and {tag for row in found for tag in row["tags"]} != {"O"}
    for row, text in zip(found, words, strict=True):
        for span in row["spans"]:
            assert span["text"] == " ".join(text[span["start"] : span["end"]]) and span["type"] == "X"
            assert all(tag.endswith("-X") for tag in row["tags"][span["start"] : span["end"]])
    classifier = classifying.open_classifier(Served(model=str(model), compilation_cache=""))
    read = classifier.read([{"tokens": words[0]}], predict._reading(predict.PredictArguments()))
    (own,) = classifier.outputs(read.examples)[""].outputs
    assert found[0]["tags"] == [labels.names[own[start].argmax()] for start in read.examples[0].starts]


def test_a_text_that_is_longer_than_the_model_has_positions_is_cut_and_counted(model_folder, adapters, folder, capfd):
    (folder / "long.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("ab" * 150, "ab" * 400, "c"))
    )
    flags = ["--model", str(model_folder), "--adapter", adapters[0], "--data-file", str(folder / "long.jsonl")]
    found = predicted(*flags, to=folder / "long.csv")
    assert "2 cut at 256 tokens" in capfd.readouterr().err
    assert found[0] == found[1] != found[2] and list(found[0]) == ["label", *COLOURS.names]


@pytest.mark.parametrize(("flags", "said"), [
    ([], ["predict needs rows: name a file with --data-file", "name the file to write with --output"]),
    (["--data-file", "x.csv", "--output", "p.csv", "--threshold", "1.5"], ["--threshold must be between 0 and 1, found 1.5"]),
    (["--data-file", "x.csv", "--output", "p.csv", "--batch-size", "0"], ["--batch-size must be at least 1"]),
    (["--data-file", "x.csv", "--output", "p.csv", "--average"], ["--ensemble probabilities in place of --average"]),
    (["--data-file", "x.csv", "--output", "p.csv", "--ensemble", "logits"],
     ["of classifiers probabilities are averaged", "--ensemble needs two adapters or more, found 0"]),
    (["--data-file", "x.csv", "--output", "p.xlsx", "--model", "{model}"], ["predictions are written to files that end in .csv"]),
    (["--data-file", "x.csv", "--output", "p.csv"], ["name a run folder with --run"]),
    (["--data-file", "x.csv", "--output", "p.csv", "--model", "{model}"], ["has no head of classification: name the adapter"]),
    (["--data-file", "{table}", "--output", "p.csv", "--model", "{model}", "--adapter", "{adapter}", "--id-column", "Id"],
     ["--id-column Id is no column of the rows", "they have 'PassengerId', 'text'"]),
    (["--data-file", "{table}", "--output", "p.csv", "--model", "{model}", "--adapter", "{adapter}", "--text-columns", "txt"],
     ["names 'txt' (did you mean 'text'?), which no row has"]),
])  # fmt: skip
def test_a_wrong_call_is_refused_with_a_remedy(
    flags, said, model_folder, adapters, table, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    given = [flag.format(model=model_folder, adapter=adapters[0], table=table) for flag in flags]
    with pytest.raises(SystemExit) as stopped:
        command(predict.main, [*given, "--compilation-cache", ""])
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and all(part in error for part in said), error
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_no_numbers_predict_nothing(model_folder, adapters, table, tmp_path, capfd):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = {name: tensor.copy() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit) as stopped:
        predicted("--model", str(folder), "--adapter", adapters[0], "--data-file", table, to=tmp_path / "p.csv")
    said = (
        f"error: the outputs are NaN or infinite for 5 of 5 records: the weights of {folder} or of an adapter hold NaN"
    )
    assert stopped.value.code == 2 and said in capfd.readouterr().err
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(("names", "expected"), [
    (["text", "id"], "id"), (["ID", "row_id", "text"], "ID"), (["PassengerId", "Pclass", "paid", "valid"], "PassengerId"),
    (["text_id", "same_id"], "text_id"), (["one_id", "other_id"], ""), (["idea", "text"], ""), (["index", "sentence"], "index"),
])  # fmt: skip
def test_the_id_is_the_column_that_is_called_so(names, expected):
    rows = [{name: "0" if name == "same_id" else str(number) for name in names} for number in range(3)]
    assert predicting.id_column(rows, "") == expected
    assert predicting.id_column(rows, names[-1]) == names[-1]
    with pytest.raises(InputError, match="--id-column nowhere is no column"):
        predicting.id_column(rows, "nowhere")

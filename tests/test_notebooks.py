"""guides/notebooks: kaggle.ipynb, to which guides/competitions.md leads, is whole, is shipped, and its cells run in their order."""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import competitions
import kaggle_rules
import pytest

import bidora_jax

PACKAGE = Path(bidora_jax.__file__).parent
ROOT = PACKAGE.parent
NOTEBOOKS = sorted((PACKAGE / "guides" / "notebooks").glob("*.ipynb"))
TRAIN, TEST = 34, 7
CALLED = ("stone", "leaf")
ALL_CELLS = """
import ast, json, sys

cells = [cell for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
for cell in [*cells, *(cell for cell in cells if cell["id"] in sys.argv[2:])]:
    for node in ast.parse("".join(cell["source"]), cell["id"]).body:
        exec(compile(ast.Interactive([node]), cell["id"], "single"), globals())
"""
"""Runs the code cells of a notebook in one process, and then those once more that are named; the value of an expression is
printed, as a notebook shows it."""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def test_a_notebook_is_of_the_fourth_format_and_holds_no_results(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["language"] == "python"
    assert notebook.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    names = [cell["id"] for cell in notebook["cells"]]
    assert len({*names}) == len(names) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell.keys() == common | {"execution_count", "outputs"}
            assert cell["execution_count"] is None and cell["outputs"] == []
            compile("".join(cell["source"]), cell["id"], "exec")
        else:
            assert cell["cell_type"] == "markdown" and cell.keys() == common


def test_a_notebook_has_a_line_of_source_on_each_line_of_the_file(notebook):
    for cell in notebook["cells"]:
        *lines, last = cell["source"]
        assert all(line.count("\n") == 1 and line.endswith("\n") for line in lines), cell["id"]
        assert last and "\n" not in last, cell["id"]


def test_all_files_of_the_guides_are_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {path for pattern in settings["tool"]["setuptools"]["package-data"]["bidora_jax"]
               for path in PACKAGE.glob(pattern)}  # fmt: skip
    assert NOTEBOOKS
    assert {path for path in (PACKAGE / "guides").rglob("*") if path.is_file()} - shipped == set()


def write_competition(folder: Path) -> competitions.Answer:
    """Texts that name their class, each text once."""
    folder.mkdir()
    rows = [(f"{n:03}", f"a {CALLED[n % 2]} with number {n}", CALLED[n % 2]) for n in range(TRAIN + TEST)]
    competitions.table(folder / "train.csv", ("id", "text", "label"), rows[:TRAIN])
    competitions.table(folder / "test.csv", ("id", "text"), [row[:2] for row in rows[TRAIN:]])
    competitions.table(folder / "sample_submission.csv", ("id", "label"), [(row[0], CALLED[0]) for row in rows[TRAIN:]])
    return competitions.Answer("binary", CALLED, "label", "accuracy", "id", ("label",), ("text",), ("id", "label"),
                               frozenset(CALLED))  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_cells_of_the_kaggle_notebook_run_in_their_order(model_folder, tmp_path):
    folder, out = tmp_path / "competition", tmp_path / "working"
    answer = write_competition(folder)
    settings = {"metric": "accuracy", "folds": 2, "epochs": 6, "lr": 0.03, "batch_size": 8, "max_length": 32,
                "time": ""}  # fmt: skip
    given = {"BIDORA_COMPETITION": str(folder), "BIDORA_MODEL": str(model_folder), "BIDORA_OUT": str(out),
             "BIDORA_SETTINGS": json.dumps(settings)}  # fmt: skip
    notebook = PACKAGE / "guides" / "notebooks" / "kaggle.ipynb"
    argv = [sys.executable, "-W", "error", "-c", ALL_CELLS, str(notebook), "training"]
    done = subprocess.run(argv, cwd=ROOT, env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to install" in done.stdout
    assert done.stdout.count("fold 1 of 2: ") == 1  # the second time the cell goes on with the folds that are there

    assert kaggle_rules.refused(out / "submission.csv", folder, answer) == []
    ids = [row["id"] for row in table(folder / "test.csv")]
    predicted = table(out / "predicted.csv")
    assert [row["id"] for row in predicted] == ids
    assert all(float(row["stone"]) + float(row["leaf"]) == pytest.approx(1, abs=1e-4) for row in predicted)
    encoder = table(out / "submission_encoder.csv")
    assert [(row["id"], row["label"]) for row in encoder] == [(row["id"], row["label"]) for row in predicted]

    (first,) = re.findall("<h1>(.*?)</h1>", (out / "report.html").read_text(encoding="utf-8"))
    assert first in done.stdout.replace("'", "&#x27;").splitlines()
    scores = json.loads((out / "outcome.json").read_text(encoding="utf-8"))["scores"]
    shown = [line.split() for line in done.stdout.splitlines() if line.startswith("encoder")]
    one = scores["encoder"]
    assert [float(cell) for cell in shown[-1][1:5]] == pytest.approx([*one["folds"], one["mean"], one["sd"]], abs=1e-6)

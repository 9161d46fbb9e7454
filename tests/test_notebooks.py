"""guides/notebooks: whole, shipped, made from their pairs, and their cells run in their order.

kaggle.ipynb, to which guides/competitions.md leads. Those of guides/python.md, each made from its pair by
support/notebook_pairs.py and run by a kernel: guides/notebooks/quickstart.py, guides/notebooks/lora.py,
guides/notebooks/qlora.py, guides/notebooks/bidora.py.
"""

import ast
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
import nbformat
import notebook_pairs
import pytest
from nbclient import NotebookClient

import bidora_jax
from bidora_jax import quickstart

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


def test_the_notebooks_for_colab_have_a_pair_and_are_made_from_it():
    assert {source.stem for source in notebook_pairs.SOURCES} == {path.stem for path in NOTEBOOKS} - {"kaggle"}
    for source in notebook_pairs.SOURCES:
        text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
        assert text == notebook_pairs.made(source), "python tests/support/notebook_pairs.py makes it from the .py"


def test_the_setup_is_the_same_in_each_notebook_for_colab():
    setups = {cell["source"] for source in notebook_pairs.SOURCES
              for cell in nbformat.reads(notebook_pairs.made(source), 4).cells if cell["id"] == "setup"}  # fmt: skip
    assert len(setups) == 1


ORDER = ["setup", "settings", "picture", "data", "template", "training", "curves", "evaluation", "chat", "export",
         "upload"]  # fmt: skip
"""Code cells of the long notebooks."""
WRITTEN = {"lora": "adapter_config.json", "qlora": "config.json", "bidora": "config.json"}


def executed(name: str, folder: Path, monkeypatch, **fields: object) -> dict[str, list]:
    """Runs a notebook in a kernel of its own, in the folder and without the hub; the outputs of its code cells by id."""
    given = {"HF_HUB_OFFLINE": "1", "IPYTHONDIR": folder / "ipython", "PYTHONPATH": ROOT, "BIDORA_STEPS": 2, **fields}
    for variable, value in given.items():
        monkeypatch.setenv(variable, str(value))
    notebook = nbformat.read(PACKAGE / "guides" / "notebooks" / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell["id"]: cell["outputs"] for cell in notebook.cells if cell["cell_type"] == "code"}


def said(outputs: list) -> str:
    """What a cell printed, also by what rich makes of it in a notebook."""
    return "".join(one["text"] if one["output_type"] == "stream" else one["data"]["text/plain"] for one in outputs)


def first_of_quickstart(split: str, count: int, folder: Path) -> Path:
    """A file of the first records that come with the package."""
    lines = (quickstart.DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    file = folder / f"{split}.jsonl"
    file.write_text("".join(lines[:count]), encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_notebook_for_colab_runs_offline(name, tmp_path, monkeypatch):
    data, test = first_of_quickstart("train", 40, tmp_path), first_of_quickstart("test", 1, tmp_path)
    cells = executed(name, tmp_path, monkeypatch, BIDORA_DATA=data, BIDORA_TEST=test)
    assert list(cells) == ORDER
    assert "nothing to install" in said(cells["setup"])
    for drawn in ("picture", "curves"):
        assert any("image/png" in one.get("data", {}) for one in cells[drawn]), drawn
    assert "⟦module " in said(cells["data"]) and said(cells["template"]).endswith("<|im_start|>assistant\n\n")
    before, after = map(float, re.findall(r"loss ([\d.]+)", said(cells["evaluation"])))
    assert after < before
    assert said(cells["chat"]).strip()
    (run,) = (path for path in (tmp_path / "runs").iterdir() if (path / "adapter").is_dir())
    (exported,) = (path for path in (tmp_path / "runs").iterdir() if path != run)
    assert (exported / WRITTEN[name]).is_file() and str(exported) in said(cells["export"])
    assert said(cells["upload"]) == "UPLOAD_TO is empty: nothing is uploaded\n"
    facts, settings = (json.loads((run / file).read_text()) for file in ("run.json", "config.json"))
    assert facts["result_loss"] < facts["validation_before"]["loss"]
    assert settings["adapter"]["method"] == {"qlora": "lora"}.get(name, name)
    assert (settings["model"]["quantization"] == "nf4") == (name == "qlora")


@pytest.mark.slow
def test_the_quickstart_has_ten_cells_that_run_offline(tmp_path, monkeypatch):
    assert len(nbformat.read(PACKAGE / "guides" / "notebooks" / "quickstart.ipynb", 4).cells) == 10
    cells = executed("quickstart", tmp_path, monkeypatch, BIDORA_RECORDS=40)
    assert list(cells) == ["setup", "settings", "training", "curves", "evaluation", "chat", "export"]
    assert any("image/png" in one.get("data", {}) for one in cells["curves"])
    (run,) = (path for path in (tmp_path / "runs").iterdir() if (path / "adapter").is_dir())
    facts = json.loads((run / "run.json").read_text())
    assert facts["result_loss"] < facts["validation_before"]["loss"]
    assert ast.literal_eval(said(cells["evaluation"])).keys() == {"loss", "perplexity", "accuracy", "tokens"}
    _, *asked = re.split(r"--- (?:before|after)\n", said(cells["chat"]))
    merged = said(cells["export"]).split("-merged\n")[-1]
    assert len(asked) == 2 and all("module nozzle() {" in answer for answer in (*asked, merged))


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

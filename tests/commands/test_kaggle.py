"""kaggle.py: the command line and the call; what it refuses, what --plan says, and that neither writes anything."""

import shutil
from functools import partial

import broken_competitions
import competitions
import pytest
from runs import one_message

import bidora_jax
from bidora_jax import kaggle
from bidora_jax.competitions.plan import Plan
from bidora_jax.errors import InputError, command


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


refused = partial(one_message, kaggle.main)


@pytest.mark.parametrize("make", broken_competitions.ALL, ids=lambda make: make.__name__)
def test_a_broken_competition_is_refused_in_one_message_and_nothing_is_written(make, tmp_path, model_folder, capfd):
    folder = tmp_path / "competition"
    folder.mkdir()
    says = make(folder)
    before = contents(folder)
    said = refused(capfd, folder, "--model", model_folder, "--output", tmp_path / "out")
    assert [part for part in says if part not in said] == [], said
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["competition"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], ("name the folder of the competition", "train.csv and test.csv")),
        (["{}/none"], ("there is no folder", "expected train.csv and test.csv")),
        (["{}/train.csv"], ("is a file; name the folder that it is in",)),
        (["{}", "--target", "lable"], ("--target names 'lable' (did you mean 'label'?)", "'id', 'text', 'label'")),
        (["{}", "--id-column", "ID"], ("--id-column names 'ID'", "test.csv lacks")),
        (["{}", "--text-columns", "body"], ("--text-columns names 'body'", "lacks")),
        (["{}", "--group-column", "user"], ("--group-column names 'user'", "lacks")),
        (["{}", "--metric", "aucc"], ("--metric must be one of accuracy, auc", "(did you mean 'auc'?)")),
        (["{}", "--metric", "rmsle", "--task", "multiclass"], ("--metric rmsle is not for a multiclass target", "accuracy")),
        (["{}", "--task", "ranking"], ("--task must be one of binary, multiclass", "found 'ranking'")),
        (["{}", "--task", "multilabel"], ("--task multilabel needs a column of 0 and 1", "--target label_1")),
        (["{}", "--time", "30"], ("--time must be a time with its unit", "found '30'")),
        (["{}", "--folds", "1", "--lr", "-1"], ("--folds must be at least 2, found 1", "--lr")),
        (["{}", "--max-length", "300"], ("--max-length 300 is more than the 256 positions", "ask for less")),
        (["{}", "--method", "adalora"], ("--method must be lora, dora or bidora", "'adalora'")),
        (["{}", "--resume", "--folds", "3"], ("--resume goes on with plan.json", "leave --folds out")),
        (["{}", "--resume"], ("has no plan.json", "leave --resume out")),
        (["{}", "more"], ("one folder", "more")),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_refused_in_one_message(argv, says, tmp_path, model_folder, capfd):
    competitions.simple(tmp_path, [0, 1], 0)
    given = [arg.format(tmp_path) for arg in argv]
    said = refused(capfd, *given, *(["--model", str(model_folder)] if "--resume" not in given else []))
    assert [part for part in says if part not in said] == [], said


def test_a_zip_in_place_of_the_folder_is_to_be_unpacked(tmp_path, capfd):
    (tmp_path / "titanic.zip").write_bytes(b"PK")
    assert "titanic.zip is a zip file; unpack it" in refused(capfd, tmp_path / "titanic.zip")


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """An empty cache of the hub."""
    from huggingface_hub import constants

    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_without_a_model_in_the_cache_the_list_and_the_flag_are_named(tmp_path, cache, capfd):
    competitions.simple(tmp_path, [0, 1], 0)
    said = refused(capfd, tmp_path)
    assert "no model is named" in said and "microsoft/deberta-v3-base" in said and "--model" in said


def test_the_first_model_of_the_list_that_is_cached_with_its_weights_is_taken(tmp_path, cache, model_folder, capfd):
    competitions.simple(tmp_path, [0, 1], 0)
    for name in ("microsoft--deberta-v3-base", "google-bert--bert-base-uncased", "distilbert--distilbert-base-uncased"):
        place = cache / f"models--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("abc")
        shutil.copytree(model_folder, place / "snapshots" / "abc")
    (cache / "models--microsoft--deberta-v3-base" / "snapshots" / "abc" / "model.safetensors").unlink()
    command(kaggle.main, [str(tmp_path), "--plan"])
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("model"))
    assert line.split()[1] == "google-bert/bert-base-uncased"


def test_a_finished_folder_is_not_written_over(tmp_path, model_folder, capfd):
    competitions.simple(tmp_path, [0, 1], 0)
    (tmp_path / "plan.json").write_text("{}")
    assert "holds a run already" in refused(capfd, tmp_path, "--model", model_folder)
    assert "is not a plan that this version wrote" in refused(capfd, tmp_path, "--resume")


def test_plan_prints_each_guess_with_its_flag_and_writes_nothing(tmp_path, model_folder, capfd):
    competitions.true_and_false(tmp_path)
    before = contents(tmp_path)
    command(kaggle.main, ["--plan", str(tmp_path), "--model", str(model_folder), "--epochs", "2.5"])
    said = capfd.readouterr().out
    flags = {line.split()[0]: line for line in said.splitlines()}
    for what, found, flag in (
        ("id", "id", "--id-column"), ("target", "Transported", "--target"), ("task", "binary", "--task"),
        ("classes", "'False', 'True'", "--task"), ("metric", "accuracy", "--metric"), ("text", "text", "--text-columns"),
        ("folds", "5", "--folds"), ("search.epochs", "2.5", "--epochs"),
    ):  # fmt: skip
        assert found in flags[what] and flags[what].endswith(flag)
    assert contents(tmp_path) == before


def test_the_call_from_python_is_the_command(tmp_path, model_folder, capsys):
    competitions.several_labels(tmp_path)
    plan = bidora_jax.kaggle(
        tmp_path,
        plan=True,
        model=model_folder,
        metric="logloss",
        folds=3,
        time="1h30m",
        target=["toxic", "insult", "threat"],
    )
    assert isinstance(plan, Plan) and plan.output == plan.folder == tmp_path
    assert (plan.target.metric, plan.folds, plan.time, plan.model) == ("logloss", 3, 5400.0, str(model_folder))
    assert "multilabel" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"no setting 'metrics' \(did you mean 'metric'\?\)"):
        bidora_jax.kaggle(tmp_path, metrics="auc")


@pytest.mark.parametrize(("text", "found"), [("", None), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400)])
def test_a_time_has_a_unit(text, found):
    assert kaggle.seconds(text) == found

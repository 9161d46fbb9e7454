"""runs/mesh.py: the command line over several devices, which are virtual ones of a CPU, and what it refuses on a mesh."""

import json
import re
from dataclasses import replace

import encoder_folders
import encoder_tokenizers
import meshes
import numpy as np
import pytest
from runs import SMALL, exit_status, inputs, metrics, process
from safetensors.numpy import load_file
from tiny import CONFIG, random_base, write_model_folder

from bidora_jax.config import Config
from bidora_jax.data.settings import DataConfig
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.settings import ModelConfig
from bidora_jax.planning import remat_choice
from bidora_jax.runs import mesh
from bidora_jax.training.phases import first_phase
from bidora_jax.training.settings import OptimizerConfig, OuterConfig, SearchConfig

FLAGS = [*SMALL, "--adapter.method", "dora", "--model.remat", "none", "--search.steps", "2", "--max-new-tokens", "3",
         "--mesh.replica", "2", "--mesh.shard", "2"]  # fmt: skip


@pytest.mark.slow
def test_a_run_on_a_mesh_trains_scores_answers_and_writes_its_adapter(model_folder, data_files, tmp_path, monkeypatch):
    """That its numbers are those of one device is in tests/models/test_spread.py."""
    monkeypatch.setenv("XLA_FLAGS", meshes.environment_of_four()["XLA_FLAGS"])
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *FLAGS, "--data.test-file", str(data_files[2])]
    done = process(["-W", "error", "-m", "bidora_jax.train", *argv])
    assert done.returncode == 0, done.stderr
    assert "mesh.replica 2 × mesh.shard 2: 4 of 4 devices (cpu), each with" in done.stdout
    assert "exact match on 5 test records" in done.stdout
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert [line["evaluation_loss"] > 0 for line in metrics(tmp_path / "run") if "evaluation_loss" in line] == [True]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["mesh"] == {"replica": 2, "shard": 2, "tensor": 1}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = encoder_folders.write(tmp_path_factory.mktemp("models") / "bert", "bert")
    encoder_tokenizers.bert(folder)
    return folder


LABELLED = ["--task", "classification", "--adapter.rank", "3", "--adapter.target-modules", "q_proj", "v_proj",
            "--adapter.dropout", "0.2", "--data.packing", "--data.max-length", "64", "--data.batch-size", "4",
            "--data.buckets", "1", "--search.steps", "2",
            "--retrain.steps", "1", "--inner.learning-rate", "0.01", "--inner.warmup", "0", "--inner.optimizer", "sgd",
            "--outer.optimizer", "sgd", "--no-report"]  # fmt: skip


@pytest.mark.slow
def test_an_encoder_with_labels_trains_on_a_mesh_as_on_one_device(bert, tmp_path, monkeypatch):
    """Packed rows, in both phases; its predictions, its scores, and the adapter that is written."""
    monkeypatch.setenv("XLA_FLAGS", meshes.environment_of_four()["XLA_FLAGS"])
    words = ["good", "film", "bad", "story"]
    for name, count in (("train", 24), ("val", 16), ("test", 5)):
        rows = [f"{' '.join(words[(n + k) % 4] for k in range(1 + n % 3))},{'xyz'[n % 3]}\n" for n in range(count)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    files = [
        text for name in ("train", "val", "test") for text in (f"--data.{name}-file", str(tmp_path / f"{name}.csv"))
    ]
    for name, more in (("one", ["1", "1"]), ("many", ["2", "2"])):
        mesh = ["--mesh.replica", more[0], "--mesh.shard", more[1]]
        argv = ["-m", str(bert), *files, "-o", str(tmp_path / name), *LABELLED, *mesh]
        done = process(["-W", "error", "-m", "bidora_jax.train", *argv])
        assert done.returncode == 0, done.stderr
    assert "4 of 4 devices (cpu), each with" in done.stdout
    one, many = (metrics(tmp_path / name) for name in ("one", "many"))
    clocks = ("seconds", "tokens_per_second")
    assert len(one) == 3
    for own, other in zip(one, many, strict=True):
        assert own.keys() == other.keys()
        for key in own.keys() - {*clocks}:
            assert other[key] == (pytest.approx(own[key], rel=1e-4) if isinstance(own[key], float) else own[key]), key
    facts = [json.loads((tmp_path / name / "run.json").read_text())["test"]["after"] for name in ("one", "many")]
    assert facts[1] == pytest.approx(facts[0], rel=1e-4)
    adapters = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "many")]
    for key, tensor in adapters[0].items():
        np.testing.assert_allclose(adapters[1][key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_dry_run_counts_what_each_device_needs(model_folder, data_files, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", meshes.environment_of_four()["XLA_FLAGS"])
    flags = [*FLAGS, "--adapter.method", "bidora", "--retrain.steps", "2", "--dry-run"]
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *flags]
    done = process(["-W", "error", "-m", "bidora_jax.train", *argv])
    assert done.returncode == 0, done.stderr
    for phase in ("search", "retrain"):
        assert re.search(rf"^{phase}: 2 steps of .* s, padded to .*; on each of 4 devices$", done.stdout, re.MULTILINE)
    assert "dry run: nothing was written" in done.stdout and not (tmp_path / "run").exists()


def test_dropout_of_texts_and_positions_in_one_product_is_refused(tmp_path, capfd, monkeypatch):
    """DeBERTa-v3: the rows of a device end with those of positions, which all devices have."""
    monkeypatch.setattr(mesh, "check_devices", lambda config: None)
    folder = encoder_folders.write(tmp_path / "deberta", "deberta-v3")
    encoder_tokenizers.bert(folder)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"good film {n},{'xy'[n % 2]}\n" for n in range(16)))
    argv = ["-m", str(folder), "-t", str(tmp_path / "train.csv"), "--data.val-fraction", "0.5", "-o", str(tmp_path / "out"),
            "--adapter.target-modules", "q_proj", "--adapter.dropout", "0.1", "--mesh.shard", "2"]  # fmt: skip
    assert exit_status(argv) == 2
    said = capfd.readouterr().err
    assert "adapter.dropout 0.1 works on one device only where a model's texts and relative positions" in said
    assert not (tmp_path / "out").exists()


def test_on_one_device_nothing_of_a_mesh_is_in_the_program():
    adapter = adapters.resolve(AdapterConfig(method="lora", rank=3, target_modules=("q_proj",)), CONFIG)
    problem = remat_choice.synthetic(CONFIG, ModelConfig(remat="layer"), adapter, random_base(), DataConfig(), 16)
    assert mesh.spread(Config(), problem) is problem
    phase, start = first_phase("lora", problem, SearchConfig(steps=1), OptimizerConfig(), OuterConfig())
    ((program, length),) = phase.step_shapes(0)
    text = program.lower(start.state, length).as_text()
    assert "stablehlo.dot_general" in text
    assert not re.search("manual_computation|all_gather|all_reduce|collective|num_partitions = [2-9]", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "chosen", "said"),
    [
        (
            "1GB",
            (4, 1),
            "auto: mesh.replica 1 → 4: 4 devices are here, and each takes its share of the records of a step",
        ),
        ("4MB", (1, 4), "auto: mesh.shard 1 → 4: no whole base fits one device beside a step"),
    ],
)
def test_auto_takes_all_devices_and_cuts_the_base_before_it_takes_bits(
    data_files, tmp_path, monkeypatch, limit, chosen, said
):
    """The base takes 4.4 MB, and a layer of it 1.1."""
    model_folder = write_model_folder(
        tmp_path / "model", replace(CONFIG, hidden_size=128, intermediate_size=640, num_layers=4)
    )
    monkeypatch.setenv("XLA_FLAGS", meshes.environment_of_four()["XLA_FLAGS"])
    argv = [*inputs(model_folder, data_files, tmp_path / "run"), *SMALL, "--adapter.method", "lora", "--auto", "--dry-run",
            "--data.max-length", "64", "--search.steps", "1", "--memory-limit", limit]  # fmt: skip
    done = process(["-W", "error", "-m", "bidora_jax.train", *argv])
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "auto: model.quantization" not in done.stdout and "auto: data.max_length" not in done.stdout
    assert f"mesh.replica {chosen[0]} × mesh.shard {chosen[1]}: 4 of 4 devices (cpu)" in done.stdout
    assert ", by the compiler's count for a cpu, on each of 4 devices" in done.stdout


REFUSED = {
    "no such devices": (["--mesh.shard", "4"], "mesh.replica 1 × mesh.shard 4 needs 4 devices, and JAX finds 1 (cpu)"),
    "none": (["--mesh.replica", "0"], "mesh.replica must be at least 1, found 0"),
    "rows": (
        ["--mesh.shard", "2", "-b", "3"],
        "data.batch_size 3 cannot be divided among the 2 devices of mesh.replica 1 × mesh",
    ),
    "rows of groups": (
        ["--mesh.shard", "2", "--mesh.tensor", "2", "-b", "3"],
        "data.batch_size 3 cannot be divided among the 2 groups of 2 devices of mesh.replica 1 × mesh.shard 2 × mesh.tensor 2",
    ),
    "products of a classifier": (
        ["--mesh.tensor", "2", "--task.type", "classification", "--data.label-columns", "completion"],
        "task.type classification does not run where devices share the products of a layer",
    ),
    "penalty of shared products": (
        ["--mesh.tensor", "2", "--search.gram-penalty", "0.1"],
        "search.gram_penalty 0.1 does not run where devices share the products of a layer",
    ),
    "samples": (["--mesh.shard", "2", "--samples.every", "1"], "samples.every 1 works on one device only"),
    "auto": (["--mesh.shard", "2", "--auto"], "mesh.replica 1 × mesh.shard 2 needs 2 devices, and JAX finds 1 (cpu)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_on_a_mesh_is_refused_by_name(model_folder, data_files, tmp_path, capfd, name):
    flags, said = REFUSED[name]
    assert exit_status([*inputs(model_folder, data_files, tmp_path / "out"), *SMALL, *flags]) == 2
    text = capfd.readouterr().err
    assert said in text and text.count("error: ") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (
            "4",
            "mesh.tensor 4: so many devices cannot share 6 heads and 2 heads of keys and values and 38 units of a layer",
        ),
        ("3", "mesh.tensor 3: so many devices cannot share 2 heads of keys and values and 38 units of a layer of"),
    ],
)
def test_products_that_devices_cannot_share_are_refused(
    model_folder, data_files, tmp_path, capfd, monkeypatch, count, said
):
    monkeypatch.setattr(mesh, "check_devices", lambda config: None)
    assert exit_status([*inputs(model_folder, data_files, tmp_path / "out"), *SMALL, "--mesh.tensor", count]) == 2
    text = capfd.readouterr().err
    assert said in text and text.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_an_encoder_has_no_shared_products(bert, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(mesh, "check_devices", lambda config: None)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"good film {n},{'xy'[n % 2]}\n" for n in range(16)))
    argv = ["-m", str(bert), "-t", str(tmp_path / "train.csv"), "--data.val-fraction", "0.5", "-o", str(tmp_path / "out"),
            "--adapter.target-modules", "q_proj", "--mesh.tensor", "2"]  # fmt: skip
    assert exit_status(argv) == 2
    assert "mesh.tensor 2 is for decoders that are trained as language models" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()

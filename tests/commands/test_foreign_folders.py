"""train.py, generate.py, evaluate.py, export.py: what folders of other programs hold, and what each command makes of it."""

import json
import shutil

import numpy as np
import pytest
from random_adapters import random_adapter
from runs import SMALL, exit_status, inputs, refused_export, trained_run
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, TEMPLATE, write_tokenizer

from bidora_jax import evaluate, export, generate, train
from bidora_jax.config import parse_train
from bidora_jax.errors import command
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import peft
from bidora_jax.runs.assembly import assemble

SETTINGS = AdapterConfig("lora", rank=3, target_modules=("q_proj",))


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(model_folder, tmp_path / "model")


def change(file, settings):
    """Rewrites a JSON file with these values; None takes a key out."""
    found = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def change_tensors(file, changed):
    """Rewrites a safetensors file with `changed` applied to its tensors."""
    save_file(changed(dict(load_file(file))), file, metadata={"format": "pt"})


def refused(main, argv, capfd) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(main, argv)
    said = capfd.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in said
    return said


def test_where_nothing_says_which_dtype_is_meant_the_flag_of_the_command_is_named(folder, data_files, tmp_path, capfd):
    change(folder / "config.json", {"dtype": None})
    change_tensors(folder / "model.safetensors", lambda all: all | {"model.norm.weight": np.ones(26, np.float16)})
    assert exit_status([*inputs(folder, data_files, tmp_path / "run"), *SMALL]) == 2
    assert "with --model.dtype float16 or float32" in capfd.readouterr().err
    assert "with --dtype float16" in refused(
        generate.main, ["--model", str(folder), "--prompt", "a", "--max-new-tokens", "3"], capfd
    )
    output = str(tmp_path / "out")
    assert "with --dtype float16" in refused_export(
        ["--model", str(folder), "--quantization", "int8", "--output", output], capfd
    )
    # Of a run that was told, the export does not ask again.
    run = trained_run(tmp_path / "trained", folder, SETTINGS, "--model.dtype", "float32")
    command(export.main, ["--run", str(run), "--output", output])
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        np.dtype("float32")
    }


def test_the_export_of_a_folder_of_two_dtypes_has_that_of_its_config_json(folder, tmp_path):
    change(folder / "config.json", {"dtype": "float16"})
    change_tensors(folder / "model.safetensors", lambda all: all | {"model.norm.weight": np.ones(26, np.float16)})
    for name, flags in (("dense", ()), ("int8", ("--model.quantization", "int8"))):
        run = trained_run(tmp_path / f"of {name}", folder, SETTINGS, *flags)
        command(export.main, ["--run", str(run), "--output", str(tmp_path / name)])
        written = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in written.values()} == {np.dtype("float16")}


EMBEDDING, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


def saved_with_embeddings(folder, rows=97):
    """An adapter folder as PEFT writes it with save_embedding_layers, of a model whose tied embeddings were trained."""
    adapter, *trees = random_adapter(SETTINGS)
    peft.save_adapter(folder, CONFIG, adapter, SETTINGS, *trees, base_model_name="a/b")
    weight = np.random.default_rng(3).normal(size=(rows, 26)).astype(np.float32)
    change_tensors(folder / "adapter_model.safetensors", lambda all: all | {EMBEDDING: weight, HEAD: weight.copy()})
    return folder


def loss(model, data_files, tmp_path, *flags) -> float:
    out = tmp_path / "loss.json"
    command(evaluate.main, ["--model", str(model), "--data-file", str(data_files[1]), "--json", str(out), *flags])
    return json.loads(out.read_text())["loss"]


@pytest.mark.slow
def test_embeddings_beside_an_adapter_are_seen_by_every_command(model_folder, data_files, tmp_path, capsys):
    start = saved_with_embeddings(tmp_path / "start")
    expected = loss(model_folder, data_files, tmp_path, "--adapter", str(start))
    assert abs(expected - loss(model_folder, data_files, tmp_path)) > 0.1
    flags = ["--adapter.path", str(start), "--inner.learning-rate", "1e-12", "--search.steps", "2", "--merged"]
    run = tmp_path / "run"
    command(train.main, [*inputs(model_folder, data_files, run), *SMALL[-3:], "--adapter.method", "lora", *flags])
    said = capsys.readouterr().out
    assert f"embed_tokens and lm_head of {start} take the base's place, frozen" in said
    assert "lora, rank 3: direction 516 (" in said
    # What was trained stands over the same embeddings: as adapter, as merged model, and exported.
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (start, run / "adapter"))
    assert before.keys() == after.keys()
    for name in (EMBEDDING, HEAD):
        np.testing.assert_array_equal(before[name], after[name])
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["modules_to_save"] is None
    for kind in ("merged", "adapter"):
        command(export.main, ["--run", str(run), "--format", kind, "--output", str(tmp_path / kind)])
    for found in (
        loss(model_folder, data_files, tmp_path, "--adapter", str(run / "adapter")),
        loss(model_folder, data_files, tmp_path, "--adapter", str(tmp_path / "adapter")),
        loss(run / "merged", data_files, tmp_path),
        loss(tmp_path / "merged", data_files, tmp_path),
    ):
        assert abs(found - expected) < 1e-5
    assert (
        load_file(tmp_path / "merged" / "model.safetensors").keys()
        == load_file(model_folder / "model.safetensors").keys()
    )


def test_embeddings_of_another_vocabulary_are_refused_by_name(model_folder, tmp_path, capfd):
    start = saved_with_embeddings(tmp_path / "start", rows=99)
    argv = ["--model", str(model_folder), "--adapter", str(start), "--prompt", "a", "--max-new-tokens", "3"]
    said = refused(generate.main, argv, capfd)
    assert f"{EMBEDDING} has 99 rows, and the base 97: the vocabulary was resized" in said
    assert "model.resize_token_embeddings(99)" in said and said.endswith("the adapter was made for a/b\n")


OWN_TEMPLATE = TEMPLATE.replace("<|im_start|>", "<|im_start|>the ")


def with_tokenizer(folder, **changes):
    """The adapter folder with a tokenizer of its own."""
    write_tokenizer(folder)
    change(folder / "tokenizer_config.json", changes)
    return folder


def test_the_tokenizer_beside_an_adapter_is_the_one_that_counts(folder, adapter_folders, data_files, tmp_path, capfd):
    """The model's own has no template; with the adapter's, the loss is that of a model that has it."""
    change(folder / "tokenizer_config.json", {"chat_template": None})
    one, other = (shutil.copytree(path, tmp_path / name) for name, path in adapter_folders.items())
    with_tokenizer(one, chat_template=OWN_TEMPLATE)
    found = loss(folder, data_files, tmp_path, "--adapter", f"mine={one}")
    assert f"tokenizer and chat template are those of the adapter in {one}\n" in capfd.readouterr().err
    templated = with_tokenizer(shutil.copytree(folder, tmp_path / "templated"), chat_template=OWN_TEMPLATE)
    assert loss(templated, data_files, tmp_path, "--adapter", str(one)) == found
    assert "tokenizer and chat template" not in capfd.readouterr().err  # they are the same
    assert loss(templated, data_files, tmp_path, "--adapter", str(adapter_folders["lora"])) == found
    # Of two adapters that disagree neither is taken; the other one's is the model's.
    argv = ["--model", str(folder), "--prompt", "a", "--adapter", str(one), "--adapter", str(other)]
    said = refused(generate.main, argv, capfd)
    assert f"different tokenizers or chat templates, those of\n  {one}\n  {folder}\nuse them one at a time" in said


def test_training_on_says_that_it_takes_the_tokenizer_of_the_model(
    folder, adapter_folders, data_files, tmp_path, capsys
):
    start = with_tokenizer(shutil.copytree(adapter_folders["lora"], tmp_path / "start"), chat_template=OWN_TEMPLATE)
    argv = [*inputs(folder, data_files, tmp_path / "run"), "--adapter.path", str(start), "--adapter.method", "lora"]
    assemble(parse_train(argv)[0])
    said = f"{start} has a tokenizer or chat template of its own; training takes those of {folder}\n"
    assert said in capsys.readouterr().out

"""The command that writes a GGUF file, runs/gguf_exporting.py behind it, and what llama.cpp answers from it."""

import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from classifier_folders import write_classifier
from llama_cpp import engine
from random_adapters import KINDS
from runs import contents, refused_export, trained_run
from tiny import CONFIG

from bidora_jax import export, load
from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError, command
from bidora_jax.models.adapters import merging
from bidora_jax.models.adapters.initial import prepare_base
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import gguf_export, gguf_file, hf, peft
from bidora_jax.quickstart import DATA, MODEL
from bidora_jax.runs.finetuned_model import FinetunedModel


@pytest.fixture
def run(tmp_path, model_folder):
    """A BiDoRA run, its adapter random."""
    return trained_run(tmp_path / "run", model_folder, KINDS["bidora"])


def test_a_runs_file_holds_the_float32_merge_rounded_once(run, model_folder, tmp_path, capfd):
    file = tmp_path / "new" / "mine.gguf"
    command(export.main, ["--run", str(run), "--format", "gguf", "--output", str(file)])
    said = capfd.readouterr().out
    assert "GGUF file read back: largest logit difference to the trained model" in said
    assert {path.name for path in file.parent.iterdir()} == {"mine.gguf", "mine.Modelfile"}
    adapter, direction, magnitude = peft.load_adapter(run / "adapter", CONFIG)
    base = hf.load_base(model_folder, CONFIG)
    merged = merging.merge(adapter, prepare_base(base, adapter), direction, magnitude, "float32")
    found = gguf_export.read_base(file, CONFIG, "qwen3")
    for name in ("q_proj", "o_proj"):
        weight = np.asarray(merged["layers"]["self_attn"][name]["weight"])
        read = np.asarray(found["layers"]["self_attn"][name]["weight"])
        np.testing.assert_array_equal(read, weight.astype(np.float16).astype(np.float32))
        assert not np.array_equal(read, base["layers"]["self_attn"][name]["weight"])


@pytest.mark.parametrize("quantize", ["bf16", "q8_0"])
def test_the_type_of_the_matrices_is_chosen(run, quantize, tmp_path):
    from gguf import GGUFReader

    file = tmp_path / "mine.gguf"
    command(export.main, ["--run", str(run), "--format", "gguf", "--quantize", quantize, "--output", str(file)])
    kinds = {one.name: one.tensor_type.name for one in GGUFReader(file).tensors}
    # The tiny model's rows are not multiples of 32, but for none of its matrices.
    assert set(kinds.values()) == {"F32", "BF16" if quantize == "bf16" else "F16"}
    assert {name for name, kind in kinds.items() if kind == "F32"} == {name for name in kinds if "norm" in name}


def test_a_runs_object_writes_the_commands_file(run, tmp_path):
    model = FinetunedModel.of_run(run)
    written = model.export(tmp_path / "python" / "mine.gguf", "gguf", quantize="bf16")
    command(
        export.main,
        [
            "--run",
            str(run),
            "--format",
            "gguf",
            "--quantize",
            "bf16",
            "--output",
            str(tmp_path / "command" / "mine.gguf"),
        ],
    )
    assert written.read_bytes() == (tmp_path / "command" / "mine.gguf").read_bytes()
    for wrong, message in (({"format": "gguf", "dtype": "float32"}, "gguf has quantize"),
                           ({"format": "merged", "quantize": "bf16"}, 'quantize is for format="gguf"'),
                           ({"format": "gguf", "quantize": "q4"}, "quantize")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            model.export(tmp_path / "wrong.gguf", **wrong)
    assert not (tmp_path / "wrong.gguf").exists()


@pytest.mark.engine
def test_llama_cpp_answers_as_the_quickstarts_model_does(tmp_path):
    file = tmp_path / "quickstart.gguf"
    command(export.main, ["--model", str(MODEL), "--format", "gguf", "--output", str(file)])
    records = [json.loads(line) for line in (DATA / "test.jsonl").read_text(encoding="utf-8").splitlines()[:6]]
    ours = load(MODEL).generate([{"instruction": one["instruction"]} for one in records], max_new_tokens=120)
    with engine(file) as llama:
        theirs = [llama.chat([{"role": "user", "content": one["instruction"]}], 120) for one in records]
    assert theirs == ours
    assert all(len(text) > 60 for text in ours)


def test_a_run_on_a_quantised_base_is_written_over_either_weights(tmp_path, model_folder):
    run = trained_run(tmp_path / "run", model_folder, KINDS["lora"], "--model.quantization", "int8")
    found = {}
    for base in ("quantized", "original"):
        file = tmp_path / f"{base}.gguf"
        argv = ["--run", str(run), "--format", "gguf", "--merge-base", base, "--quantize", "f32", "--output", str(file)]
        command(export.main, argv)
        found[base] = gguf_export.read_base(file, CONFIG, "qwen3")["layers"]["mlp"]["up_proj"]["weight"]
    step = jnp.max(jnp.abs(hf.load_base(model_folder, CONFIG)["layers"]["mlp"]["up_proj"]["weight"])) / 127
    assert 0 < jnp.max(jnp.abs(found["quantized"] - found["original"])) <= 0.51 * step


def test_an_output_that_was_trained_whole_stands_beside_the_embedding_it_was_tied_to(model_folder, tmp_path, capfd):
    settings = AdapterConfig(method="lora", rank=3, modules_to_save=("lm_head",))
    run = trained_run(tmp_path / "run", model_folder, settings)
    command(export.main, ["--run", str(run), "--format", "gguf", "--output", str(tmp_path / "mine.gguf")])
    held = dict(gguf_file.tensors(tmp_path / "mine.gguf"))
    _, direction, _ = peft.load_adapter(run / "adapter", CONFIG)
    trained = np.asarray(direction["lm_head"]["weight"])
    np.testing.assert_array_equal(held["output.weight"], trained.astype(np.float16).astype(np.float32))
    assert not np.array_equal(held["output.weight"], held["token_embd.weight"])
    argv = ["--run", str(run), "--format", "gguf-lora", "--output", str(tmp_path / "lora.gguf")]
    assert "can't hold modules that were trained whole (lm_head)" in refused_export(argv, capfd)


def test_a_lora_runs_adapter_is_written_beside_a_modelfile_for_its_base(model_folder, tmp_path, capfd):
    run = trained_run(tmp_path / "run", model_folder, KINDS["narrow"])
    argv = ["--run", str(run), "--format", "gguf-lora", "--output", str(tmp_path / "mine.gguf")]
    command(export.main, argv)
    said = capfd.readouterr().out
    assert "GGUF adapter of rank 2 read back: largest logit difference to the trained model" in said
    assert f"--model {model_folder} --format gguf --output tiny-qwen3.gguf" in said
    lines = (tmp_path / "mine.Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./tiny-qwen3.gguf", "ADAPTER ./mine.gguf"]


def test_a_magnitude_has_no_gguf_adapter(run, tmp_path, capfd):
    argv = ["--run", str(run), "--format", "gguf-lora", "--output", str(tmp_path / "mine.gguf")]
    assert "a GGUF adapter has none: use --format gguf" in refused_export(argv, capfd)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_calls_are_refused_in_one_message_and_write_nothing(run, model_folder, tmp_path, capfd):
    file = tmp_path / "mine.gguf"
    of_run = ["--run", str(run), "--format", "gguf", "--output"]
    taken = tmp_path / "taken.gguf"
    taken.write_bytes(b"1")
    described = tmp_path / "described.gguf"
    described.with_suffix(".Modelfile").write_bytes(b"1")
    before = contents(tmp_path)
    for argv, wanted in [
        ([*of_run, str(tmp_path / "mine")], "a GGUF export is one file, whose name ends in .gguf"),
        ([*of_run, str(taken)], f"{taken} is there already"),
        ([*of_run, str(described)], f"{tmp_path / 'described.Modelfile'} is there already"),
        ([*of_run, str(taken / "mine.gguf")], f"{taken} is a file, not a folder"),
        ([*of_run, str(file), "--dtype", "float16"], "gguf has --quantize"),
        ([*of_run, str(file), "--push", "a/b"], "--push uploads folders"),
        ([*of_run, str(file), "--merge-base", "original"], "--merge-base is for runs on a quantised base"),
        (["--run", str(run), "--quantize", "bf16", "--output", str(tmp_path / "x")], "--quantize is for --format gguf"),
        (["--model", str(model_folder), "--format", "gguf", "--quantization", "nf4", "--output", str(file)],
         "a GGUF file has --quantize"),
        (["--model", str(model_folder), "--format", "lora", "--output", str(file)], "or with --format gguf"),
    ]:  # fmt: skip
        assert wanted in refused_export(argv, capfd)
    assert contents(tmp_path) == before


def test_what_is_no_decoder_that_writes_text_is_refused(model_folder, tmp_path, capfd):
    labels = Labels("classification", ("no", "yes"))
    classifier = write_classifier(tmp_path / "classifier", model_folder, labels)
    argv = ["--model", str(classifier), "--format", "gguf", "--output", str(tmp_path / "mine.gguf")]
    assert "holds a classifier, and a GGUF file a decoder that writes text" in refused_export(argv, capfd)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 12,
        "vocab_size": 11,
    }
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    argv = ["--model", str(encoder), "--format", "gguf", "--output", str(tmp_path / "mine.gguf")]
    assert "is an encoder (bert)" in refused_export(argv, capfd)


def test_a_model_without_tokenizer_is_refused(model_folder, tmp_path, capfd):
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    argv = ["--model", str(bare), "--format", "gguf", "--output", str(tmp_path / "mine.gguf")]
    assert "no tokenizer in" in refused_export(argv, capfd)


def test_without_the_package_the_remedy_is_named_before_any_work(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    argv = ["--run", str(tmp_path / "none"), "--format", "gguf", "--output", str(tmp_path / "mine.gguf")]
    assert "pip install gguf" in refused_export(argv, capfd)

"""generate.py: what it prints, what it writes, and what it refuses.

generation/served_model.py opens the model and its adapters; generation/settings.py says how tokens are drawn.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
from conversations import answered, turn
from random_adapters import KINDS, random_adapter
from runs import ROOT, trained_run
from safetensors.numpy import load_file, save_file

from bidora_jax import evaluate, generate
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError, command
from bidora_jax.generate import GenerateArguments, _form
from bidora_jax.generate import _prompts as prompts_of
from bidora_jax.generation import answers, ensembles
from bidora_jax.generation.conversation import question_ids
from bidora_jax.models.formats import hf, hf_config, peft
from bidora_jax.runs.serving import settled

LINES = ["repeat 5 x2", "abc", "v1; v2; and so on"]


def written(*argv, to) -> list[dict]:
    command(generate.main, [*map(str, argv), "--max-new-tokens", "7", "--json", str(to)])
    return json.loads(to.read_text())


def asked(text: str) -> str:
    """A question as the tiny model's template asks it."""
    return turn("user", text) + "<|im_start|>assistant\n"


def without_template(folder):
    """A tiny model whose tokenizer has no chat template."""
    tiny.write_model_folder(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_prompt_is_answered_on_standard_output(model_folder, tmp_path, capfd):
    found = written("--model", model_folder, "--prompt", LINES[0], to=tmp_path / "out.json")
    text = answered(model_folder, [asked(LINES[0])])[0]
    assert [(one["prompt"], one["adapter"], one["answer"]) for one in found] == [(LINES[0], "", text)]
    out, err = capfd.readouterr()
    assert out == text + "\n"
    assert "tokens in" in err
    assert ("; 1 of 1 answers cut by --max-new-tokens 7" in err) == (not found[0]["ended"])
    assert err.startswith("the model's chat template is applied (--raw leaves it out)\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json"]


def test_a_file_is_answered_in_batches_that_change_nothing(model_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(LINES) + "\n\n")
    argv = ["--model", model_folder, "--prompt-file", tmp_path / "prompts.txt", "--temperature", "2", "--seed", "5"]
    found = written(*argv, "--batch-size", "2", to=tmp_path / "two.json")
    assert [one["prompt"] for one in found] == LINES
    assert found == written(*argv, "--batch-size", "8", to=tmp_path / "eight.json")
    assert found != written(*argv[:-1], "6", to=tmp_path / "other.json")


def test_raw_text_and_a_model_without_template_go_on_from_the_prompt(model_folder, tmp_path, capfd):
    text = answered(model_folder, LINES[:1])[0]
    (tmp_path / "one.txt").write_text(LINES[0])
    assert text != answered(model_folder, [asked(LINES[0])])[0]
    assert written("--model", model_folder, "--prompt", LINES[0], "--raw", to=tmp_path / "a")[0]["answer"] == text
    plain = without_template(tmp_path / "plain")
    assert written("--model", plain, "--prompt-file", tmp_path / "one.txt", to=tmp_path / "b")[0]["answer"] == text
    assert "template" not in capfd.readouterr().err
    lines = written("--model", model_folder, "--prompt-file", tmp_path / "one.txt", to=tmp_path / "c")
    assert [(one["prompt"], one["answer"]) for one in lines] == [
        (LINES[0], answered(model_folder, [asked(LINES[0])])[0])
    ]


@pytest.mark.parametrize(
    ("record", "template", "plain"),
    [({"text": "abc"}, "{}", "{}"), ({"prompt": "a", "completion": "b"}, "{}", "{}"),
     ({"instruction": "a", "output": "b"}, asked("{}"), "### Instruction:\n{}\n\n### Response:\n"),
     ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, asked("{}"), None),
     ({"odd": "a"}, asked("{}"), "{}")],
)  # fmt: skip
def test_a_run_is_asked_as_its_records_asked_in_training(model_folder, tmp_path, record, template, plain):
    """Texts are texts; a question is put into the template that training put it in; a file that is gone says nothing."""
    (tmp_path / "train.jsonl").write_text(json.dumps(record) + "\n")
    forms = [(model_folder, template), (without_template(tmp_path / "plain"), plain)]
    for folder, form in forms if plain else forms[:1]:
        run = trained_run(
            tmp_path / f"run-{folder.name}", folder, KINDS["lora"], "--data.train-file", str(tmp_path / "train.jsonl")
        )
        tokenizer = load_tokenizer(folder)
        for served in (GenerateArguments(run=str(run)), GenerateArguments(adapter=(str(run),))):
            served = settled(replace(served, prompt="b c"), ())
            ids = question_ids(prompts_of(served)[0], _form(served, tokenizer)[0], "", tokenizer)
            assert ids == tokenizer(form.format("b c"), add_special_tokens=False)["input_ids"]


def test_records_and_templates_are_what_training_makes_of_them(model_folder, tmp_path):
    file = tmp_path / "prompts.jsonl"
    talk = [{"role": "user", "content": "repeat 5"}, {"role": "assistant", "content": "v5;"}]
    lines = [
        {"instruction": "repeat 5", "output": "v5;"},
        {"prompt": "repeat 5"},
        {"messages": talk},
        {"prompt": talk[:1]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = [one["answer"] for one in written("--model", model_folder, "--prompt-file", file, to=tmp_path / "a.json")]
    turn = "<|im_start|>user\nrepeat 5<|im_end|>\n<|im_start|>assistant\n"
    assert found == answered(model_folder, [turn, "repeat 5", turn, turn])
    argv = ["--model", model_folder, "--prompt", "repeat 5", "--template", "--system", "be short"]
    system = "<|im_start|>system\nbe short<|im_end|>\n"
    found = written(*argv, to=tmp_path / "b.json")
    assert (found[0]["prompt"], found[0]["answer"]) == ("repeat 5", answered(model_folder, [system + turn])[0])


def test_adapters_answer_in_turn_and_together(model_folder, adapter_folders, tmp_path):
    argv = ["--model", model_folder, "--prompt", LINES[0], "--raw"]
    for name, folder in adapter_folders.items():
        argv += ["--adapter", f"{name}={folder}"]
    config = hf_config.read_config(model_folder)
    base = hf.load_base(model_folder, config)
    rested = ensembles.inference_form(
        base, [ensembles.Member(*peft.load_adapter(f, config)) for f in adapter_folders.values()]
    )
    each = written(*argv, to=tmp_path / "each.json")
    assert [one["adapter"] for one in each] == ["lora", "dora"]
    assert [one["answer"] for one in each] == [answered(model_folder, LINES[:1], member)[0] for member in rested]
    together = written(*argv, "--ensemble", "probabilities", to=tmp_path / "together.json")
    stacked = ensembles.stack(rested)
    assert together[0]["adapter"] == "ensemble of lora, dora"
    assert together[0]["answer"] == answered(model_folder, LINES[:1], stacked, "probabilities")[0]
    mean = written(*argv, "--average", "--weight", "3", "--weight", "1", to=tmp_path / "mean.json")
    assert mean[0]["answer"] == answered(model_folder, LINES[:1], ensembles.average(rested, [3.0, 1.0]))[0]


def test_evaluate_takes_several_adapters(model_folder, adapter_folders, data_files, tmp_path, capfd):
    given = [text for name, folder in adapter_folders.items() for text in ("--adapter", f"{name}={folder}")]

    def losses(*argv):
        out = tmp_path / "out.json"
        command(
            evaluate.main, ["--model", str(model_folder), "--data-file", str(data_files[2]), *argv, "--json", str(out)]
        )
        return json.loads(out.read_text())

    several = losses(*given)
    alone = [losses(*given[:2]), losses(*given[2:])]
    assert [one["adapter"] for one in several] == ["lora", "dora"] == [one["adapter"] for one in alone]
    for one, other in zip(several, alone, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    together = losses(*given, "--ensemble", "logits")
    # −log softmax is convex in the logits: the mean's loss is below the mean of the losses.
    assert 0 < together["loss"] < (alone[0]["loss"] + alone[1]["loss"]) / 2
    assert losses(*given, "--average")["loss"] not in (together["loss"], alone[0]["loss"], alone[1]["loss"])
    assert "adapter     lora\nloss" in capfd.readouterr().out


def test_interrupted_it_stops_without_a_traceback(model_folder, capfd, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(answers, "complete", interrupted)
    with pytest.raises(SystemExit) as stopped:
        command(generate.main, ["--model", str(model_folder), "--prompt", "a", "--max-new-tokens", "7"])
    assert stopped.value.code == 130
    assert capfd.readouterr().err.splitlines()[1:] == ["stopped"]


KEPT = """
import json, sys
from pathlib import Path
import jax
from bidora_jax import generate
from bidora_jax.errors import command
model, folder, *files = sys.argv[1:]
for file in files:
    argv = ["--model", model, "--prompt-file", file, "--max-new-tokens", "7", "--compilation-cache", folder]
    command(generate.main, argv)
    print("kept", len(list(Path(folder).glob("*-cache"))))
    jax.clear_caches()
"""


def test_programs_are_kept_and_serve_prompts_of_other_lengths_and_numbers(model_folder, tmp_path):
    (tmp_path / "a.txt").write_text("abc\n" * 3)
    (tmp_path / "b.txt").write_text("a longer prompt\n" * 4)
    where = [str(tmp_path / name) for name in ("kept", "a.txt", "b.txt")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run(
        [sys.executable, "-c", KEPT, str(model_folder), *where],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("kept "))
    assert first == second > 1


# What is refused


@pytest.mark.parametrize(
    ("flags", "said"),
    [([], "give one of --prompt TEXT, --prompt-file FILE and --chat, found none of them"),
     (["--prompt", "a", "--chat"], "found --prompt and --chat"),
     (["--prompt", "a", "--system", "b", "--raw"], "--raw leaves out the chat template"),
     (["--prompt-file", "bad.jsonl", "--raw"], "--raw is for --prompt and for text files"),
     (["--prompt", "a", "--temperature", "-1", "--top-p", "0"], "--top-p must be above 0"),
     (["--prompt", "a", "--top-k", "5"], "give a --temperature above 0"),
     (["--prompt", "a" * 250, "--raw"], "prompt 1 has 250 tokens"),
     (["--prompt-file", "none.txt"], "cannot read the prompts in none.txt: No such file"),
     (["--prompt-file", "empty.txt"], "empty.txt holds no prompt"),
     (["--prompt-file", "bad.jsonl"], "2 of the 3 lines of bad.jsonl cannot be used"),
     (["--prompt", "a", "--adapter", "empty"], "there is no folder empty"),
     (["--prompt", "a", "--adapter", "other"], "tensors do not fit"),
     (["--prompt", "a", "--average"], "need two adapters or more, found 0"),
     (["--prompt", "a", "--weight", "1"], "--weight is a share in --average"),
     (["--prompt", "a", "--json", "nowhere/out.json"], "there is no folder for --json"),
     (["--prompt", "a", "--model", "none"], "there is no folder none")],
)  # fmt: skip
def test_bad_input_is_refused_with_one_message(model_folder, tmp_path, capfd, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\nnot JSON\n')
    if "other" in flags:
        config = tiny.DecoderConfig(**{**vars(tiny.CONFIG), "hidden_size": 30})
        adapter, *trained = random_adapter(KINDS["lora"], config)
        peft.save_adapter(tmp_path / "other", config, adapter, KINDS["lora"], *trained, base_model_name="x")
    argv = ["--max-new-tokens", "7", *([] if "--model" in flags else ["--model", str(model_folder)]), *flags]
    with pytest.raises(SystemExit) as stopped:
        command(generate.main, argv)
    out, err = capfd.readouterr()
    assert (stopped.value.code, out, err.count("error: ")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize("flag", ["--chat", "--template", "--system"])
def test_a_model_without_template_cannot_chat(tmp_path, capfd, flag):
    folder = without_template(tmp_path / "plain")
    argv = [
        "--model",
        str(folder),
        flag,
        *{"--template": ["--prompt", "a"], "--system": ["s", "--prompt", "a"]}.get(flag, []),
    ]
    with pytest.raises(SystemExit) as stopped:
        command(generate.main, argv)
    assert stopped.value.code == 2
    assert f"{flag.replace('--chat', 'a chat')} needs a chat template" in capfd.readouterr().err


def test_prompts_come_from_any_source_and_text_has_one_a_line(tmp_path):
    (tmp_path / "a.csv").write_text('question,output\n"one\ntwo",left out\nthree,\n')
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    asked = GenerateArguments(model="", prompt_file=str(tmp_path / "a.csv"), columns=(("instruction", "question"),))
    assert [record["instruction"] for record in prompts_of(asked)] == ["one\ntwo", "three"]
    assert prompts_of(asked)[1].place == f"{tmp_path}/a.csv:4"
    asked = GenerateArguments(model="", prompt_file=str(tmp_path / "a.txt"))
    assert prompts_of(asked) == [{"prompt": "one"}, {"prompt": "two"}]
    (tmp_path / "b.csv").write_text("question\n")
    with pytest.raises(InputError, match=r"b\.csv holds no prompt"):
        prompts_of(GenerateArguments(model="", prompt_file=str(tmp_path / "b.csv")))


def test_a_line_of_prompts_ends_at_a_newline_only(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\u2028two\r\nthree".encode())
    asked = GenerateArguments(model="", prompt_file=str(tmp_path / "a.txt"))
    assert prompts_of(asked) == [{"prompt": "one\u2028two"}, {"prompt": "three"}]


def test_keys_of_a_prompt_that_nothing_reads_are_named(tmp_path, capfd):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "id": 7}')
    prompts_of(GenerateArguments(model="", prompt_file=str(tmp_path / "a.jsonl")))
    assert f"'id' is not used: 1 record ({tmp_path}/a.jsonl:1)" in capfd.readouterr().err


@pytest.mark.parametrize("what", ["generate", "evaluate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_answer_nothing(model_folder, data_files, tmp_path, capfd, what, value):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp.up_proj" in name)
    weights[name] = weights[name].copy()
    weights[name][3, 3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    argv = {
        "generate": ["--prompt", "repeat 1 x1", "--max-new-tokens", "3"],
        "evaluate": ["--data-file", str(data_files[2])],
    }[what]
    main = {"generate": generate.main, "evaluate": evaluate.main}[what]
    with pytest.raises(SystemExit) as ended:
        command(main, ["--model", str(folder), *argv, "--json", str(tmp_path / "out.json")])
    said = capfd.readouterr()
    assert ended.value.code == 2
    found = {"generate": "the model's output is NaN or infinite", "evaluate": "the loss is nan"}[what]
    assert re.search(
        rf"^error: {found}: the weights of .* hold NaN .*; get the files anew, or compute in float32", said.err, re.M
    )
    assert said.out.strip() == "" and not (tmp_path / "out.json").exists()

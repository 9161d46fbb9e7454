"""cli.py, errors.py: bidora-jax and its commands; help, mistakes, completion; each is the function of its own module."""

import importlib
import os
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
from runs import ROOT

import bidora_jax
from bidora_jax import cli, errors
from bidora_jax.config import parse_train
from bidora_jax.errors import command, program


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-m", "bidora_jax", *argv], cwd=ROOT, env=os.environ | {"COLUMNS": "80"},
                          capture_output=True, text=True, check=False)  # fmt: skip


@pytest.mark.parametrize("flag", [[], ["--help"], ["help"]])
def test_help_lists_every_command_at_once(flag):
    began = time.monotonic()
    done = run(*flag)
    assert time.monotonic() - began < 1
    assert (done.returncode, done.stderr) == (0, "")
    for name, one in cli.COMMANDS.items():
        assert f"  {name:<12}{one.about}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_a_reader_that_has_seen_enough_is_no_error():
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "bidora_jax", "--help"], cwd=ROOT, stdout=into, stderr=subprocess.PIPE, check=False
    )
    os.close(into)
    assert (done.returncode, done.stderr) == (141, b"")


def test_version_is_the_packages(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"{bidora_jax.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_its_modules_main(name, monkeypatch):
    one = cli.COMMANDS[name]
    called = []
    monkeypatch.setattr(importlib.import_module(one.module), "main", called.append)
    cli.main([name, "--flag", "value"])
    assert called == [["--flag", "value"]]
    assert cli._arguments(one).__name__.endswith("Arguments")


def test_a_command_that_is_not_there_is_guessed_at(capfd):
    with pytest.raises(SystemExit) as stopped:
        command(cli.main, ["trian"])
    assert stopped.value.code == 2
    said = capfd.readouterr().err
    assert said.startswith(
        "error: there is no command 'trian' (did you mean 'train'?); the commands are train, evaluate"
    )
    assert "Traceback" not in said


def test_flags_go_through_and_so_does_the_exit_status():
    done = run("train", "--adapter.rnak", "3")
    assert done.returncode == 2 and "--adapter.rank" in done.stderr


def test_help_of_train_is_in_sections_with_defaults():
    said = run("train", "--help-all").stdout
    for section in ("model", "adapter", "data", "inner", "outer", "search", "retrain", "samples"):
        assert f"─ {section} options ─" in said
    assert "(default: runs/default)" in said and "(default: bidora)" in said


@pytest.mark.parametrize("name", ["generate", "chat", "evaluate"])
def test_help_of_what_uses_a_model_begins_with_what_one_gives_it(name):
    said = run(name, "--help").stdout
    flags = [line.split()[1].rstrip(",") for line in said.splitlines() if line.startswith("│ --")]
    first = {"generate": "--prompt", "chat": "--run", "evaluate": "--data-file"}[name]
    assert (flags[0], {"--run", "--model", "--adapter"} <= {*flags[:10]}) == (first, True)
    assert "For example: --run runs/mine" in said
    assert "{[" not in said  # how tyro writes a value that can be one text or several


COMPLETE = """
source /dev/stdin
f=$(complete -p bidora-jax | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); $f bidora-jax "${!#}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_choices(capsys):
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out

    def complete(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", COMPLETE, "bash", *words], input=script, capture_output=True, text=True, check=True
        )
        return done.stdout.split("\n")[:-1]

    assert complete("bidora-jax", "e") == ["evaluate", "export"]
    assert complete("bidora-jax", "train", "--adapter.ra") == ["--adapter.rank", "--adapter.rank-pattern"]
    assert complete("bidora-jax", "train", "--adapter.method", "") == ["lora", "dora", "bidora"]
    assert complete("bidora-jax", "train", "--ra") == ["--rank"]
    assert complete("bidora-jax", "train", "--method", "") == ["lora", "dora", "bidora"]
    assert complete("bidora-jax", "train", "--auto-") == ["--auto-hardware"]
    assert complete("bidora-jax", "data", "--help-") == ["--help-all"]
    assert complete("bidora-jax", "export", "--ra") == ["--rank"]  # its own


def test_zsh_has_a_script_too_and_other_shells_are_refused(capsys):
    cli.main(["completion", "zsh"])
    assert capsys.readouterr().out.startswith("#compdef bidora-jax")
    for wrong in (["fish"], []):
        with pytest.raises(errors.InputError, match="completion needs one of the shells bash, zsh"):
            cli.main(["completion", *wrong])


def test_the_command_is_installed_under_its_name():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"bidora-jax": "bidora_jax.cli:entry"}
    assert callable(cli.entry)


@pytest.mark.parametrize("called", ["/usr/local/bin/bidora-jax", "C:/Scripts/bidora-jax.exe"])
def test_usage_names_the_command_as_it_was_called(monkeypatch, called):
    assert program("train") == "python -m bidora_jax.train"
    monkeypatch.setattr(sys, "argv", [called, "train"])
    assert program("train") == "bidora-jax train"


def test_the_home_folder_is_written_out_after_a_flag_and_in_a_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ann")
    seen = []
    command(seen.append, ["--output-dir=~/x", "~/y", "--prompt=~/b", "--samples.prompts=~/c", "--a=~"])
    assert seen == [["--output-dir=/home/ann/x", "~/y", "--prompt=~/b", "--samples.prompts=~/c", "--a=~"]]
    (tmp_path / "c.json").write_text('{"output_dir": "~/runs", "data": {"train_file": ["~/a.jsonl", "b.jsonl"]}}')
    found, _ = parse_train(["--config", str(tmp_path / "c.json")])
    assert (found.output_dir, found.data.train_file) == ("/home/ann/runs", ("/home/ann/a.jsonl", "b.jsonl"))


CTRL_C = """
import os, signal
from bidora_jax.errors import command

def _xla_gc_callback():  # as JAX's: an exception in a callback of the collector is printed and lost
    try:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(100_000))
    except KeyboardInterrupt:
        print("lost")

def main(argv):
    _xla_gc_callback()
    import time
    time.sleep(20)

command(main, [])
"""


def test_of_a_long_line_of_a_message_the_middle_is_left_out(capsys):
    """It quotes a value of somebody's file."""

    def refuse(argv):
        raise errors.InputError(f"the file holds {'x' * 100_000}; take it out\nand {'y' * 1_400}")

    with pytest.raises(SystemExit):
        command(refuse, [])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: the file holds xxx") and first.endswith("xxx; take it out") and len(first) < 1_600
    assert " … 98,528 characters … " in first and second == f"and {'y' * 1_400}"


def test_ctrl_c_in_a_callback_of_jax_is_not_lost():
    done = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, check=False, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_what_a_terminal_cannot_show_is_replaced():
    code = "from bidora_jax.errors import command; command(lambda argv: print('a \u2713'), [])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "cp1252"},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "a ?\n"

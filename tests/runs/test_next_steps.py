"""runs/next_steps.py: commands that can be pasted into a shell."""

import shlex
from dataclasses import replace

from bidora_jax.config import Config
from bidora_jax.runs import next_steps


def test_the_commands_name_the_runs_own_paths_quoted_for_a_shell():
    config = replace(Config(output_dir="runs/my run"), data=replace(Config().data, test_file=("a b.jsonl", "c.jsonl")))
    head, *lines = next_steps.after(config, "What's a cube?")
    assert head == "next:"
    words = [shlex.split(line) for line in lines]
    assert [line[2].removeprefix("bidora_jax.") for line in words[:4]] == ["generate", "chat", "evaluate", "export"]
    assert words[0][3:] == ["--run", "runs/my run", "--prompt", "What's a cube?"]
    assert words[2][-1] == "a b.jsonl" and words[3][-1] == "runs/my run-merged"
    assert words[4] == ["open", "runs/my run/report/report.html"]
    assert shlex.split(next_steps.to_go_on(config).splitlines()[1])[-3:] == [
        "--config",
        "runs/my run/config.json",
        "--resume",
    ]


def test_without_test_file_question_or_report_nothing_is_made_up():
    lines = next_steps.after(Config(report=False), "")
    assert len(lines) == 5
    assert lines[1].endswith("--prompt '…'") and lines[3].endswith("more.jsonl")

"""What a user may do next, as commands with the run's own paths."""

import shlex
from pathlib import Path

from bidora_jax.config import Config
from bidora_jax.errors import program


def to_go_on(config: Config) -> str:
    """How a run that was stopped goes on."""
    file = shlex.quote(str(Path(config.output_dir) / "config.json"))
    return f"go on with\n  {program('train')} --config {file} --resume"


def after(config: Config, question: str, *, labelled: bool = False) -> list[str]:
    """Lines for the end of a run; `question` is something to ask the model, and may be empty. A `labelled` run labels texts."""
    run, file = config.output_dir, _first(config.data.test_file)
    commands = [
        ("generate", "--run", run, "--prompt", question or "…"),
        ("chat", "--run", run),
    ]
    if labelled:
        commands = [("predict", "--run", run, "--data-file", file or "more.csv", "--output", "predictions.csv")]
    commands += [
        ("evaluate", "--run", run, "--data-file", file or ("more.csv" if labelled else "more.jsonl")),
        ("export", "--run", run, "--format", "merged", "--output", f"{run}-merged"),
    ]
    lines = [f"  {program(name)} {shlex.join(rest)}" for name, *rest in commands]
    page = Path(run) / "report" / "report.html"
    return ["next:", *lines, *([f"  open {shlex.quote(str(page))}"] if config.report else [])]


def _first(files: str | tuple[str, ...]) -> str:
    return files if isinstance(files, str) else files[0]

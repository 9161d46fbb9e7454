"""python -m bidora_jax.report --run DIR [--output DIR] [--json]

The report of a run, finished or killed: report.html, which holds everything in one file, the same pictures as PNG, and
summary.json. It is made from the files that the run wrote (metrics.jsonl, changes.jsonl, samples.jsonl, outcomes.json, run.json,
config.json) alone: neither the model nor a checkpoint is read. `train` writes it at the end.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from bidora_jax.errors import InputError, command, program
from bidora_jax.runs.report import write


@dataclass(frozen=True)
class ReportArguments:
    """Write the report of a run: curves, a page, a summary."""

    run: str
    """Folder of a run, finished or not."""
    output: str = ""
    """Folder to write; report/ of the run without it."""
    json: bool = False
    """Print the summary as JSON."""


def main(argv: list[str]) -> None:
    import tyro

    arguments = tyro.cli(ReportArguments, args=argv, prog=program("report"))
    run = Path(arguments.run)
    output = Path(arguments.output) if arguments.output else run / "report"
    if output.exists() and not output.is_dir():
        raise InputError(f"cannot write the report to {output}: it is a file; name a folder with --output")
    written = write(run, output)
    if arguments.json:
        print(json.dumps(written, indent=2))
        return
    from bidora_jax.reporting import summary

    summary.show(written)


if __name__ == "__main__":
    command(main)

"""What the guides name is there: settings, flags of commands, choices, links."""

import dataclasses
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import bidora_jax
from bidora_jax.config import Config, TrainArguments, leaves
from bidora_jax.evaluate import EvaluateArguments
from bidora_jax.export import ExportArguments
from bidora_jax.generate import GenerateArguments
from bidora_jax.report import ReportArguments

FOLDER = Path(bidora_jax.__file__).parent / "guides"
GUIDES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
SETTINGS = dict(leaves(Config()))
COMMANDS = {
    "evaluate": EvaluateArguments, "export": ExportArguments, "generate": GenerateArguments, "report": ReportArguments,
}  # fmt: skip
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}


def test_there_are_three():
    assert list(GUIDES) == ["deployment", "methods", "troubleshooting"]


@pytest.mark.parametrize("guide", GUIDES)
def test_settings_are_called_what_they_are_called(guide):
    text = GUIDES[guide]
    named = set(re.findall(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})\.[a-z][a-z0-9_-]*\b", text))
    named |= set(re.findall(r"`--([a-z]+\.[a-z0-9-]+)", text))
    found = {name.replace("-", "_") for name in named} - {"data.jsonl", "model.safetensors"}
    assert sorted(found - SETTINGS.keys()) == []


@pytest.mark.parametrize("guide", GUIDES)
def test_choices_are_ones_that_there_are(guide):
    for name, value in re.findall(r"--([a-z]+\.[a-z0-9-]+) ([a-z_0-9]+)", GUIDES[guide]):
        section, _, leaf = name.replace("-", "_").partition(".")
        part = type(getattr(Config(), section))
        options = get_args(get_type_hints(part)[leaf])
        assert not options or value in options or str in options, (name, value)


@pytest.mark.parametrize("guide", GUIDES)
def test_commands_and_their_flags_are_there(guide):
    calls = re.findall(r"python -m bidora_jax\.([\w.]+)((?: (?!python)[^\s`]+)*)", GUIDES[guide].replace("\\\n", " "))
    assert calls or guide == "none"
    for command, rest in calls:
        assert (FOLDER.parent / f"{command.replace('.', '/')}.py").is_file()
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w.-]*)", rest)}
        if command == "train":
            known = SETTINGS.keys() | {field.name for field in dataclasses.fields(TrainArguments)}
        else:
            known = {field.name for field in dataclasses.fields(COMMANDS[command])} if command in COMMANDS else set()
        assert sorted(flags - known) == [], command


@pytest.mark.parametrize("guide", GUIDES)
def test_links_lead_somewhere(guide):
    for target in re.findall(r"\]\(([^)#]+)\)", GUIDES[guide]):
        assert target.startswith("https://") or (FOLDER / target).is_file(), target

"""What the documents name is there: settings, flags of commands and of benchmarks, choices, files, links, modules.

The documents are README.md, benchmarks/README.md and bidora_jax/guides with its notebooks.
"""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import bidora_jax
from bidora_jax import cli, flags
from bidora_jax.config import Config, TrainArguments, leaves

PACKAGE = Path(bidora_jax.__file__).parent
ROOT = PACKAGE.parent
FOLDER = PACKAGE / "guides"
GUIDES = [
    "adapters", "classification", "competitions", "deployment", "fitting", "generation", "many_devices", "methods", "own_models",
    "promises", "python", "quantized_bases", "records", "sources", "sweeps", "troubleshooting", "watching",
]  # fmt: skip
DOCUMENTS = [
    "README.md",
    "benchmarks/README.md",
    "benchmarks/LOG.md",
    *(f"bidora_jax/guides/{name}.md" for name in GUIDES),
    *(f"bidora_jax/guides/notebooks/{name}.ipynb" for name in ("bidora", "kaggle", "lora", "qlora", "quickstart")),
]
SETTINGS = dict(leaves(Config()))
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}
ROOMS = (
    "machine|kernels|models|data|generation|tasks|training|planning|reporting|runs|sweeps|competitions|"
    "speed|memory|gpu|formats|engines|quality|campaign|mesh|study|tests|configs"
)
NO_SETTINGS = {"data.jsonl", "model.safetensors"}
OTHERS = {  # flags of other programs, and of pytest
    "--dest", "--find-links", "--local-dir", "--no-index", "--only-binary", "--quiet", "--wheel-dir",
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time", "--signal", "--requeue", "--open-mode",
    "--worker", "--command",
    "--max-lora-rank", "--enable-lora", "--lora-modules", "--model-id", "--lora", "--outfile", "--base",
    "--xla_backend_optimization_level", "--xla_cpu_enable_concurrency_optimized_scheduler",
    "--xla_gpu_dot_merger_threshold_mb", "--xla_force_host_platform_device_count",
}  # fmt: skip


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def fields(command: str) -> set[str]:
    """Names of a command's flags, as its dataclass has them; a switch that is on has one that turns it off."""
    module, _, name = cli.COMMANDS[command].arguments.partition(":")
    schema = getattr(importlib.import_module(module), name)
    nested = SETTINGS.keys() if issubclass(schema, Config) else set()
    switched_on = {f"no_{field.name}" for field in dataclasses.fields(schema) if field.default is True}
    return nested | {field.name for field in dataclasses.fields(schema)} | switched_on


def script_flags(path: str) -> set[str]:
    """Flags that a benchmark's source adds to its parser, or the module beside it whose parser it calls."""
    source = (ROOT / path).read_text(encoding="utf-8")
    for module in re.findall(r"(\w+)\.parser\(", source):
        source += (ROOT / path).with_name(f"{module}.py").read_text(encoding="utf-8")
    return set(re.findall(r'"(--[a-z][\w-]*)"', source))


def slugs(text: str) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_list_of_guides_is_complete():
    assert [path.stem for path in sorted(FOLDER.glob("*.md"))] == GUIDES
    for guide in GUIDES:
        assert f"(bidora_jax/guides/{guide}.md)" in read("README.md"), guide


def test_the_tree_of_the_readme_has_every_folder_of_modules_and_every_command():
    [tree] = re.findall(r"^## The tree\n+```\n(.*?)```", read("README.md"), re.S | re.M)
    folders = set(re.findall(r"^ +(\w+)/ ", tree, re.M))
    assert {file.parent.name for file in PACKAGE.rglob("__init__.py")} - {PACKAGE.name} <= folders
    modules = {command.module.rpartition(".")[2] for command in cli.COMMANDS.values()}
    assert modules <= set(re.findall(r"\b(\w+)\.py\b", tree))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_are_called_what_they_are_called(document):
    text = read(document)
    named = set(re.findall(rf"`(?:--)?((?:{'|'.join(sorted(SECTIONS))})\.[a-z][a-z0-9_-]*)\b(?!\()", text))
    named |= set(re.findall(r"--([a-z]+\.[a-z0-9-]+)", text))
    found = {name.replace("-", "_") for name in named} - NO_SETTINGS
    assert sorted(found - SETTINGS.keys()) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_choices_are_ones_that_there_are(document):
    for name, value in re.findall(r"--([a-z]+\.[a-z0-9-]+) ([a-z_0-9]+)", read(document)):
        section, _, leaf = name.replace("-", "_").partition(".")
        part = type(getattr(Config(), section))
        kind = get_type_hints(part)[leaf]
        assert get_origin(kind) is not Literal or value in get_args(kind), (name, value)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_flags_are_there(document):
    for module, rest in re.findall(r"python -m bidora_jax\.([\w.]+)((?: (?!python)[^\s`]+)*)", read(document)):
        path = PACKAGE / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
        flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w.-]*)", rest)}
        assert sorted(flags - (fields(module) if module in cli.COMMANDS else set())) == [], module


@pytest.mark.parametrize("document", DOCUMENTS)
def test_benchmarks_and_their_flags_are_there(document):
    for path, rest in re.findall(r"python (benchmarks/[\w/]+\.py)([^\n`;]*)", read(document)):
        assert (ROOT / path).is_file(), path
        assert sorted(set(re.findall(r"--[a-z][\w-]*", rest)) - script_flags(path)) == [], path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_other_flag_is_that_of_a_command(document):
    scripts = {
        flag for path in (ROOT / "benchmarks").rglob("*.py") for flag in script_flags(str(path.relative_to(ROOT)))
    }
    known = {f"--{name.replace('_', '-')}" for command in cli.COMMANDS for name in fields(command)} | scripts | OTHERS
    known |= {"--help", "--help-all", *flags.SWITCHES, *(name for one in flags.SHORT for name in one.names)}
    known |= {*(f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainArguments))}
    assert sorted(set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", read(document))) - known) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text, here = read(document), (ROOT / document).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if target.startswith("https://"):
            continue
        file = here / target if target else ROOT / document
        assert file.is_file(), target
        assert not anchor or anchor in slugs(file.read_text(encoding="utf-8")), (target, anchor)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_that_are_imported_or_named_are_there(document):
    text = read(document)
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        for module, names in re.findall(r"^from (bidora_jax[\w.]*) import ([\w, ]+)$", block, re.M):
            owner = importlib.import_module(module)
            for name in names.split(", "):
                assert hasattr(owner, name) or importlib.util.find_spec(f"{module}.{name}"), (module, name)
    for path in re.findall(rf"`((?:{ROOMS})/[\w/]+\.py)`", text):
        assert any((place / path).is_file() for place in (PACKAGE, ROOT / "benchmarks", ROOT)), path


@pytest.mark.slow
def test_the_example_of_python_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    example = re.findall(r"```python\n(.*?)```", read("bidora_jax/guides/python.md"), re.S)[0]
    exec(compile(example, "python.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "cubes", "loss.png"}
    said = capfd.readouterr().out
    assert "'perplexity': " in said and "(16, " in said  # 16 steps

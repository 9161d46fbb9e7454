"""The shape of the package: which room may import which, no circle between files, how long things may get, a test for each file.

    python tests/test_architecture.py        the rooms, the circles, the arrows up, the longest files

An arrow is an import anywhere in a file, in a function and under TYPE_CHECKING too: what only a type checker reads still
ties two files together for a reader. bidora_jax/__init__.py names what is public.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "bidora_jax", ROOT / "tests"
# From the ground up. Rooms of one floor don't import each other; a file that has no line of its own stands in its folder's room.
FLOORS = (
    ("errors", "strict_json"),
    ("machine", "kernels", "reporting"),
    ("models.architectures",),
    ("models.base",),
    ("models.adapters",),
    ("models",),
    ("models.tape",),
    ("models.layer_scan", "models.linear"),
    ("models.stacks",),
    ("models.decoder", "models.encoder"),
    ("models.backbone",),
    ("models.rounded_merge",),
    ("models.quantization",),
    ("models.formats",),
    ("data.sources",),
    ("data",),
    ("generation",),
    ("tasks",),
    ("training",),
    ("training.watchers",),
    ("planning",),
    ("config_files", "flags"),
    ("config",),
    ("runs",),
    ("competitions", "sweeps"),
    ("commands", "quickstart"),
    ("guides",),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
ALLOWED = {
    ("kernels.cuda.build", "errors"): "a command that a user calls; every other kernel is arrays in, arrays out",
    ("kernels.cuda.build", "machine.files"): "the same command keeps its library in the user's cache folder",
    ("data.__main__", "show_data"): "the door of python -m bidora_jax.data",
    ("models.__main__", "list_models"): "the door of python -m bidora_jax.models",
}
ARRAYS = {"jax", "jaxtyping", "numpy"}
PACKAGES = {
    "errors": set(),
    "strict_json": set(),
    "machine": {"jax"},
    "kernels": ARRAYS,
    "reporting": {"matplotlib", "numpy", "rich"},  # knows no model
    "models.architectures": set(),  # read by the command line before JAX is loaded
    "models": ARRAYS | {"flax", "gguf", "huggingface_hub"},  # gguf where a file for llama.cpp is written
    "data": {
        "datasets",
        "jaxtyping",
        "numpy",
        "pyarrow",
        "safetensors",
        "transformers",
    },  # from a source to a batch in numpy
    "generation": ARRAYS,
    "tasks": ARRAYS | {"scipy", "seqeval", "sklearn"},  # the last three where something is measured
    "training": ARRAYS | {"optax", "orbax", "rich"},
    "training.watchers": {"jaxtyping", "tensorboardX", "wandb"},  # the last two on request only
    "planning": ARRAYS,
    "config": {"ml_collections", "tyro"},
    "config_files": {"ml_collections", "yaml"},
    "flags": set(),
    "runs": ARRAYS | {"matplotlib", "pandas", "rich"},  # the first two where a caller asks for a figure or a frame
    "competitions": {"jaxtyping", "numpy", "safetensors", "scipy", "sklearn"},
    "sweeps": {"optuna"},  # on request only
    "commands": {"rich", "tyro"},
    "quickstart": ARRAYS | {"optax", "tokenizers"},
    "guides": {"jax", "matplotlib", "numpy", "transformers"},  # the notebooks, as a user writes them
}
Arrow = tuple[str, str]


# The walk


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Files by their dotted name below the package, which itself is ''."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(file: Path) -> set[str]:
    """Every absolute name that a file imports, anywhere in it: `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import hides its room"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def arrows(package: Path = PACKAGE) -> set[Arrow]:
    """(a file, a file of the package that it imports), both as dotted names."""
    files, found = modules(package), set()
    for name, path in files.items():
        for imported in imports(path):
            top, _, target = imported.partition(".")
            if top == package.name:
                while target not in files:  # a name in a module
                    target = target.rpartition(".")[0]
                found.add((name, target))
    return {(name, target) for name, target in found if name != target}


def circle(found: set[Arrow]) -> list[str]:
    """Files that import each other in a ring, the first one again at the end; empty if there is no such ring."""
    graph: dict[str, set[str]] = {}
    for name, target in found:
        graph.setdefault(name, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def room(name: str) -> str:
    """The room in which a file stands: its own, or that of the nearest folder which has one. The top's files are commands."""
    while name not in FLOOR:
        name = name.rpartition(".")[0]
        if not name:
            return "commands"
    return name


def upward(found: set[Arrow]) -> set[Arrow]:
    """Arrows to a higher floor, to another room of the same floor, and any arrow out of the kernels."""

    def up(source: str, target: str) -> bool:
        return source != target and (FLOOR[target] >= FLOOR[source] or source == "kernels")

    return {(name, target) for name, target in found if up(room(name), room(target))}


def commands() -> set[str]:
    """The files that the command line calls, as cli.py lists them, and cli.py."""
    from bidora_jax.cli import COMMANDS

    return {command.module.partition(".")[2] for command in COMMANDS.values()} | {"cli"}


# Rooms and arrows


def test_imports_go_downward_only():
    found = upward(arrows())
    assert sorted(found - ALLOWED.keys()) == []
    assert sorted(ALLOWED.keys() - found) == [], "an exception that nothing needs any more"


def test_no_files_import_each_other_in_a_circle():
    assert circle(arrows()) == []


def test_a_circle_and_an_arrow_up_are_found_wherever_the_import_stands(tmp_path):
    package = tmp_path / "house"
    texts = {
        "__init__": "",
        "errors": "",
        "models/adapters/merging": "def f():\n    from house.models import decoder\n",
        "models/decoder": "from house.models.tape import Tape\nimport house.kernels.cuda.ops\n",
        "models/tape": "if TYPE_CHECKING:\n    from house.models.decoder import Decoder\n",
        "kernels/cuda/ops": "from house.errors import InputError\n",
    }
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    found = arrows(package)
    assert set(circle(found)) == {"models.decoder", "models.tape"}
    assert upward(found) == {("models.adapters.merging", "models.decoder"), ("models.tape", "models.decoder"),
                             ("kernels.cuda.ops", "errors")}  # fmt: skip


def test_the_top_holds_commands_and_the_configuration_only():
    top = {path.stem for path in PACKAGE.glob("*.py")}
    assert top == commands() | {"__init__", "__main__", "errors", "strict_json", "config", "config_files", "flags"}


def test_no_command_imports_another():
    sideways = {(name, target) for name, target in arrows() if {name, target} <= commands()}
    assert sideways == set()


def test_each_room_uses_its_own_packages_only():
    foreign, used = [], {name: set() for name in PACKAGES}
    for name, path in modules().items():
        place = room(name)
        while place not in PACKAGES:
            assert place, f"{name}: PACKAGES has no line for it"
            place = place.rpartition(".")[0]
        others = {found.partition(".")[0] for found in imports(path)} - sys.stdlib_module_names - {PACKAGE.name}
        used[place] |= others
        foreign += [f"{name}: {other}" for other in sorted(others - PACKAGES[place])]
        if path.name == "settings.py" and others:
            foreign.append(f"{name}: settings are read before anything is loaded")
    assert foreign == []
    assert {name: sorted(allowed - used[name]) for name, allowed in PACKAGES.items() if allowed - used[name]} == {}


def test_no_private_jax_no_pickle_and_no_code_out_of_a_model_folder():
    forbidden = {"jax._src", "jaxlib", "pickle", "dill", "cloudpickle", "joblib", "torch", "marshal", "shelve"}
    found = [f"{path.name}: {name}" for path in modules().values() for name in imports(path)
             if any(name == one or name.startswith(one + ".") for one in forbidden)]  # fmt: skip
    # The key-value store of jax.distributed's coordinator has no public name; orbax and others take it from there too.
    assert found == ["hosts.py: jax._src.distributed"]
    trees = [ast.parse(path.read_text()) for path in modules().values()]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    keywords = [keyword for call in calls for keyword in call.keywords]
    loose = ("trust_remote_code", "allow_pickle")
    trusting = [ast.unparse(keyword) for keyword in keywords if keyword.arg in loose]
    assert {"trust_remote_code=False"} == set(trusting)


# Lengths


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))


def lines(path: Path) -> int:
    return path.read_text().count("\n")


def test_no_function_is_longer_than_80_lines_and_no_file_than_400():
    long = [f"{name}: {lines(path)} lines" for name, path in modules().items() if lines(path) > 400]
    for name, path in modules().items():
        for node in functions(path):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            long += [f"{name}:{node.lineno}: {length} lines"] if length > 80 else []
    assert long == []


# Tests mirror the rooms


def heads() -> dict[Path, set[str]]:
    """The files that the head docstring of each test module names."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        head = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[path] = {name.removeprefix("bidora_jax/") for name in re.findall(r"[\w/]+\.(?:py|md)\b", head)}
    return found


def places_of_test(file: str) -> list[Path]:
    """Where the test of a product file stands if it has one under its name."""
    parent, stem = Path(file).parent, Path(file).stem
    return [TESTS / parent / f"test_{stem}.py", *([TESTS / "commands" / f"test_{stem}.py"] if "/" not in file else [])]


def product_files() -> list[str]:
    """Product files that need a test: all but folders' heads and doors that define nothing."""
    files = [path for path in modules().values() if not path.name.startswith("__") or any(functions(path))]
    return [str(path.relative_to(PACKAGE)) for path in files]


def test_every_product_file_has_a_test_of_its_name_or_is_named_in_the_head_of_one():
    named = set().union(*heads().values())
    without = [
        file
        for file in product_files()
        if file not in named and not any(path.exists() for path in places_of_test(file))
    ]
    assert without == []


def test_every_test_module_says_what_it_tests_and_what_it_names_is_there():
    own = {path for file in product_files() for path in places_of_test(file)}

    def there(name: str, *places: Path) -> bool:
        return any((place / name).exists() for place in places)

    lost = [
        f"{path.name}: {name}"
        for path, names in heads().items()
        for name in names
        if not there(name, PACKAGE, ROOT, TESTS)
    ]
    assert lost == []
    astray = [path.name for path, names in heads().items()
              if path not in own and not any(there(name, PACKAGE, ROOT) for name in names)]  # fmt: skip
    assert astray == []


def test_no_test_module_imports_another():
    files = list(TESTS.rglob("*.py"))
    found = [
        f"{path.name}: {name}" for path in files for name in imports(path) if name.split(".")[0].startswith("test_")
    ]
    assert found == []


# Importing


@pytest.mark.parametrize("module", ["", *sorted(commands()), "config"])
def test_importing_costs_nothing(module):
    """--help and a refused configuration answer before jax and transformers are loaded, which takes seconds."""
    name = f"bidora_jax.{module}".rstrip(".")
    code = f"import sys, {name}; print(sorted({{'jax', 'transformers', 'torch', 'orbax', 'matplotlib'}} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_every_public_name_is_there():
    import bidora_jax

    for name in bidora_jax.__all__:
        assert callable(getattr(bidora_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'bilevel_stepp'"):
        bidora_jax.bilevel_stepp  # noqa: B018


# What anyone can look at


def describe() -> Iterator[str]:
    files, found = modules(), arrows()
    yield "Rooms from the ground up, with files and lines"
    for rooms in FLOORS:
        held = {name: [path for file, path in files.items() if room(file) == name] for name in rooms}
        yield "    " + ", ".join(f"{name} {len(paths)}/{sum(map(lines, paths))}" for name, paths in held.items())
    ring = circle(found)
    yield f"Circles between files: {' -> '.join(ring) if ring else 0}"
    up = upward(found)
    yield f"Arrows up: {len(up)} of {len(found)}"
    yield from (
        f"    {name} -> {target or PACKAGE.name}: {ALLOWED.get((name, target), 'NOT ALLOWED')}"
        for name, target in sorted(up)
    )
    yield "Longest files, of which none may have more than 400 lines"
    longest = sorted(files.values(), key=lines, reverse=True)[:8]
    yield from (f"    {lines(path)}  {path.relative_to(ROOT)}" for path in longest)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print("\n".join(describe()))


def test_the_top_level_is_as_small_as_it_was_meant():
    """A file that a tool left there would go out with the package."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.partition("/")[0] for name in listed.split("\0") if name}
    assert {name for name in top if not name.startswith(".")} == {
        "LICENSE", "README.md", "benchmarks", "bidora_jax", "configs", "pyproject.toml", "tests"
    }  # fmt: skip

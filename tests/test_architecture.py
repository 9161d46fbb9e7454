"""The shape of the package: what may import what, and how long things may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bidora_jax

PACKAGE = Path(bidora_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Layers from the floor up: each may import itself, the layers above its line, and what it brings in.
KERNELS = {"jax", "jaxtyping", "numpy", "bidora_jax.kernels"}
MODELS = KERNELS | {"flax", "safetensors", "huggingface_hub", "bidora_jax.errors", "bidora_jax.models"}
TRAINING = MODELS | {"optax", "orbax", "transformers", "datasets", "pyarrow", "rich", "bidora_jax.training"}
TRAINING |= {"tensorboardX", "wandb"}  # on request only
REPORTING = {"numpy", "matplotlib", "rich", "bidora_jax.errors", "bidora_jax.reporting"}  # knows no model
LAYERS = {"kernels": KERNELS, "models": MODELS, "training": TRAINING, "reporting": REPORTING}


def imports(file: Path) -> set[str]:
    """Every absolute name that a file imports, anywhere in it: `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import hides its layer"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or any(name == one or name.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_downward_only(layer):
    # A package's __main__ is a command line that stands on the top floor.
    files = sorted(path for path in (PACKAGE / layer).glob("*.py") if path.name != "__main__.py")
    assert len(files) > 3
    upward = [f"{file.name}: {name}" for file in files for name in imports(file) if not within(name, LAYERS[layer])]
    assert upward == []


def test_nothing_below_imports_a_command_line():
    commands = ["train", "evaluate", "export", "generate", "chat", "data", "config", "auto", "dryrun", "catalog", "report",
                "analyze", "journal", "cli"]  # fmt: skip
    top = {f"bidora_jax.{name}" for name in commands}
    below = [file for file in FILES if file.parent != PACKAGE and file.name != "__main__.py"]
    found = [f"{file.name}: {name}" for file in below for name in imports(file)
             if name in top or name.rpartition(".")[0] in top]  # fmt: skip
    assert found == []


def test_no_private_jax_no_pickle_and_no_code_out_of_a_model_folder():
    forbidden = {"jax._src", "jaxlib", "pickle", "dill", "cloudpickle", "joblib", "torch", "marshal", "shelve"}
    found = [f"{file.name}: {name}" for file in FILES for name in imports(file)
             if any(name == one or name.startswith(one + ".") for one in forbidden)]  # fmt: skip
    assert found == []
    calls = [node for file in FILES for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    keywords = [keyword for call in calls for keyword in call.keywords]
    loose = ("trust_remote_code", "allow_pickle")
    trusting = [ast.unparse(keyword) for keyword in keywords if keyword.arg in loose]
    assert {"trust_remote_code=False"} == set(trusting)


def test_no_function_is_longer_than_80_lines_and_no_file_than_400():
    long = [f"{file.name}: {file.read_text().count(chr(10))} lines" for file in FILES
            if file.read_text().count("\n") > 400]  # fmt: skip
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{file.name}:{node.lineno}: {lines} lines"] if lines > 80 else []
    assert long == []


@pytest.mark.parametrize(
    "module",
    [
        "bidora_jax",
        "bidora_jax.config",
        "bidora_jax.train",
        "bidora_jax.generate",
        "bidora_jax.show_data",
        "bidora_jax.report",
        "bidora_jax.analyze",
        "bidora_jax.cli",
    ],
)
def test_importing_costs_nothing(module):
    """--help and a refused configuration answer before jax and transformers are loaded, which takes seconds."""
    code = f"import sys, {module}; print(sorted({{'jax', 'transformers', 'torch', 'orbax', 'matplotlib'}} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_every_public_name_is_there():
    for name in bidora_jax.__all__:
        assert callable(getattr(bidora_jax, name))
    with pytest.raises(AttributeError, match="no attribute 'bilevel_stepp'"):
        bidora_jax.bilevel_stepp  # noqa: B018

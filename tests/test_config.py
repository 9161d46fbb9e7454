"""Configurations: read strictly, the outer rate follows the inner one until it is set, no field is dead.

config.py and config_files.py read what stands in models/settings.py, models/adapters/settings.py, data/settings.py and
training/settings.py.
"""

import ast
import dataclasses
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import CONFIG

import bidora_jax
from bidora_jax import config as configuration
from bidora_jax.config import Config, leaves, parse_call, parse_train, read, resolve, to_json
from bidora_jax.errors import InputError, command
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.adapters.targets import Site
from bidora_jax.models.architectures.decoder import ATTENTION, LINEARS
from bidora_jax.models.formats import peft_config

ROOT = Path(bidora_jax.__file__).parents[1]
PATHS = [name for name, _ in leaves(Config())]


@pytest.fixture
def file(tmp_path):
    """Writes values as a .py and as a .json configuration; returns the path of the suffix asked for."""

    def write(values: dict, suffix: str = ".json") -> str:
        path = tmp_path / f"config{suffix}"
        text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
        path.write_text(text if suffix == ".py" else json.dumps(values))
        return str(path)

    return write


def refused(path: str) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


def rates(*argv: str) -> tuple[float, float]:
    config, _ = parse_train(argv)
    return config.inner.learning_rate, config.outer.learning_rate


# Strictness


@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_a_file_sets_what_it_names_and_leaves_the_defaults(file, suffix):
    config = resolve(read(file({"seed": 7, "adapter": {"target_modules": ["k_proj"], "alpha": 3}}, suffix)))
    assert (config.seed, config.adapter.target_modules, config.adapter.alpha) == (7, ("k_proj",), 3.0)
    assert isinstance(config.adapter.alpha, float)
    assert dataclasses.replace(config, seed=0, adapter=Config().adapter, outer=Config().outer) == Config()


def test_all_that_does_not_fit_is_listed_at_once(file):
    message = refused(
        file({
            "sead": 1, "data": {"batchsize": 2}, "inner": {"optimizer": "adam"}, "outer": {"b1": "0.9"},
            "search": 3, "retrain": {"epochs": True}, "model": {"remat": 1, "quantized_modules": "q_proj"},
            "adapter": {"target_modules": 3},
        })
    )  # fmt: skip
    for line in (
        "unknown key sead (did you mean 'seed'?)", "unknown key data.batchsize (did you mean 'batch_size'?)",
        "inner.optimizer: expected one of 'adamw', 'adamw_8bit', 'sgd', found 'adam'", "outer.b1: expected a number, found '0.9'",
        "search: expected a section, found 3", "retrain.epochs: expected a number, found True",
        "model.remat: expected one of 'auto', 'none', 'dots', 'layer', 'offload', found 1",
        "model.quantized_modules: expected a list of str, found 'q_proj'",
        "adapter.target_modules: expected a list of str or a text, found 3",
    ):  # fmt: skip
        assert line in message


def test_patterns_are_mappings_and_names_a_list_or_a_text(file):
    values = {
        "adapter": {"layers_to_transform": [0.5], "rank_pattern": {"q_proj": "3"}, "alpha_pattern": [["q", 1, 2]]}
    }
    message = refused(file(values))
    for line in (
        "adapter.layers_to_transform: expected a list of int, found [0.5]",
        "adapter.rank_pattern: expected a mapping from a pattern to an integer, found (('q_proj', '3'),)",
        "adapter.alpha_pattern: expected a mapping from a pattern to a number, found [['q', 1, 2]]",
    ):
        assert line in message
    values = {
        "target_modules": r".*\.q_proj",
        "rank_pattern": {"layers.0.self_attn.q_proj": 3},
        "alpha_pattern": {"q": 2},
    }
    adapter = resolve(read(file({"adapter": values}))).adapter
    assert adapter.target_modules == r".*\.q_proj"
    assert adapter.rank_pattern == (("layers.0.self_attn.q_proj", 3),)
    assert adapter.alpha_pattern == (("q", 2.0),)
    assert isinstance(adapter.alpha_pattern[0][1], float)
    path = file({"adapter": values | {"rank_pattern": [["layers.0.self_attn.q_proj", 3]]}}, ".py")
    flags = ["--adapter.target-modules", "q_proj", "--adapter.rank-pattern", "q.*", "2", "k.v", "7"]
    adapter = parse_train(["--config", path, *flags])[0].adapter
    assert adapter.target_modules == ("q_proj",)
    assert adapter.rank_pattern == (("q.*", 2), ("k.v", 7))
    assert adapter.alpha_pattern == (("q", 2.0),)


def test_a_pattern_with_dots_in_a_python_file_says_how_it_is_written(file):
    message = refused(file({"adapter": {"rank_pattern": {"layers.0.self_attn.q_proj": 3}}}, ".py"))
    assert 'write patterns with dots as pairs: [["layers.0.self_attn.q_proj", 4]]' in message


@pytest.mark.parametrize("section", ["", "model", "adapter", "data", "inner", "outer", "search", "retrain"])
def test_an_unknown_key_is_refused_in_every_section(file, section):
    values = {"learning_rates": 1}
    assert "learning_rates" in refused(file({section: values} if section else values))


WRONG = {int: [1.5, "1", True, None, [1]], float: ["1", False, None], bool: [1, "true", None], str: [1, None, True]}
NAMES = ("adapter.target_modules", "adapter.exclude_modules")  # of which a text is one, as in PEFT
NUMBERS_TOO = ("data.buckets",)  # auto, or a number


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, default in leaves(Config())
        for value in WRONG.get(
            int if name in NUMBERS_TOO else type(default), [1, ["a", 0.5], None] + ["x"] * (name not in NAMES)
        )
    ],
)
def test_every_field_refuses_the_wrong_type(file, name, value):
    section, _, leaf = name.rpartition(".")
    assert f"{name}: expected" in refused(file({section: {leaf: value}} if section else {leaf: value}))


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not JSON"), ("[1]", "expected a JSON object, found list"), ("\ufeff{}", "is not JSON")],
)
def test_a_json_file_that_is_none(tmp_path, content, said):
    (tmp_path / "c.json").write_text(content)
    assert said in refused(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [("x = 1", "has no function get_config()"), ("def get_config(): return {}", "must return an ml_collections")],
)
def test_a_python_file_without_a_configuration(tmp_path, content, said):
    (tmp_path / "c.py").write_text(content)
    assert said in refused(str(tmp_path / "c.py"))


def test_a_files_argument_stands_after_a_colon(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n\ndef get_config(seed='1'):\n    return ConfigDict({'seed': int(seed)})\n"
    )
    assert resolve(read(f"{tmp_path}/c.py")).seed == 1
    assert resolve(read(f"{tmp_path}/c.py:23")).seed == 23
    assert parse_train(["--config", f"{tmp_path}/c.py:23", "--keep", "3"])[0].seed == 23
    (tmp_path / "d.py").write_text("def get_config():\n    return None\n")
    assert "get_config() takes no argument, found 'x' after the colon" in refused(f"{tmp_path}/d.py:x")
    assert "none.py:x does not exist" in refused(f"{tmp_path}/none.py:x")


def test_the_records_for_qwen3_are_read():
    file = str(ROOT / "configs" / "qwen3.py")
    records = runpy.run_path(file)["RECORDS"]
    for size, memories in records.items():
        for memory, (method, quantization, batch) in memories.items():
            config = resolve(read(f"{file}:{size}-{memory}gb"))
            assert (config.model.path, config.model.quantization) == (f"Qwen/Qwen3-{size.upper()}", quantization)
            assert config.adapter.method == method
            assert config.data.batch_size * config.data.accumulation == 4 and config.data.batch_size == batch
    assert "expected one of 0.6b-8gb, " in refused(f"{file}:0.6b-9gb") and "did you mean" in refused(f"{file}:0.6b-9gb")


def test_a_file_that_is_missing_or_of_another_kind(tmp_path):
    assert "does not exist; configs/quickstart.py is an example" in refused(str(tmp_path / "none.py"))
    (tmp_path / "c.toml").write_text("seed = 1")
    assert "expected a .py file with get_config(), a .yaml file or a config.json" in refused(str(tmp_path / "c.toml"))
    with pytest.raises(InputError, match="--config needs a value"):
        parse_train(["--config"])


# The outer rate

FILES = {
    "nothing": {}, "inner": {"inner": {"learning_rate": 0.25}}, "multiplier": {"outer": {"multiplier": 8.0}},
    "both": {"inner": {"learning_rate": 0.25}, "outer": {"multiplier": 8.0}},
    "outer": {"inner": {"learning_rate": 0.25}, "outer": {"multiplier": 8.0, "learning_rate": 0.75}},
}  # fmt: skip
FLAGS = {
    "nothing": [], "inner": ["--inner.learning-rate", "0.5"], "multiplier": ["--outer.multiplier", "4"],
    "both": ["--outer.multiplier", "4", "--inner.learning-rate", "0.5"],
    "outer": ["--outer.learning-rate", "0.125", "--inner.learning-rate", "0.5"],
}  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("values", FILES)
@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_the_outer_rate_follows_the_inner_one_until_it_is_set(file, values, flags, suffix):
    inner = 0.5 if flags in ("inner", "both", "outer") else 0.25 if values in ("inner", "both", "outer") else 2e-4
    multiplier = 4.0 if flags in ("multiplier", "both") else 8.0 if values in ("multiplier", "both", "outer") else 2.0
    outer = 0.125 if flags == "outer" else 0.75 if values == "outer" else inner * multiplier
    assert rates("--config", file(FILES[values], suffix), *FLAGS[flags]) == (inner, outer)


def test_a_reference_that_a_file_makes_itself_is_followed_too(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        "    config = ConfigDict({'inner': {'learning_rate': 0.25}, 'outer': {}})\n"
        "    config.outer.learning_rate = config.inner.get_ref('learning_rate') * 3\n    return config\n"
    )
    assert rates("--config", str(tmp_path / "c.py")) == (0.25, 0.75)
    assert rates("--config", str(tmp_path / "c.py"), "--inner.learning-rate", "0.5") == (0.5, 1.5)


def test_the_defaults_follow_too():
    assert rates() == (2e-4, 4e-4)
    assert rates("--inner.learning-rate=1") == (1.0, 2.0)


# Presets and adapters to start from

PRESETS = {
    "efficient": (4, ("q_proj", "v_proj"), "none"), "balanced": (8, ATTENTION, "none"), "expressive": (16, LINEARS, "none"),
    "qlora_memory": (4, ("q_proj", "v_proj"), "nf4"), "qlora_quality": (8, ATTENTION, "nf4"), "bidora": (8, ATTENTION, "none"),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_is_not_set(file, preset):
    rank, targets, quantization = PRESETS[preset]
    config = resolve(read(file({"adapter": {"preset": preset}})))
    assert (config.adapter.rank, config.adapter.target_modules, config.model.quantization) == (
        rank,
        targets,
        quantization,
    )
    assert config.adapter.alpha == 2 * rank
    assert parse_train(["--adapter.preset", preset])[0] == config
    values = {"adapter": {"preset": preset, "rank": 3, "method": "lora"}, "model": {"quantization": "int8"}}
    config = parse_train(["--config", file(values, ".py"), "--adapter.target-modules", "k_proj"])[0]
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.method) == (3, 2 * rank, "lora")
    assert (config.adapter.target_modules, config.model.quantization) == (("k_proj",), "int8")


def test_a_preset_of_the_command_line_stands_over_the_files(file):
    path = file({"adapter": {"preset": "expressive", "alpha": 5}})
    adapter = parse_train(["--config", path, "--adapter.preset=efficient"])[0].adapter
    assert (adapter.preset, adapter.rank, adapter.alpha) == ("efficient", 4, 5.0)
    saved = file(json.loads(to_json(Config())))
    assert parse_train(["--config", saved])[0] == Config()
    with pytest.raises(
        InputError, match=r"--adapter.preset efficient would change nothing: .* sets adapter.rank, adapter"
    ):
        parse_train(["--config", saved, "--adapter.preset", "efficient"])
    assert "adapter.preset: expected one of 'none', 'efficient'" in refused(file({"adapter": {"preset": "huge"}}))


def test_an_adapter_folder_gives_its_settings_where_none_are_set(tmp_path, file):
    folder = tmp_path / "adapter"
    folder.mkdir()
    sites = (Site("self_attn.q_proj", (3, 5), (2.0, 2.0)),)
    saved = AdapterConfig(
        "dora", rank=3, alpha=6.0, target_modules=("q_proj",), rank_pattern=(("layers.1.self_attn.q_proj", 5),)
    )
    peft_config.write(folder, CONFIG, saved, sites, None)
    path = file({"adapter": {"path": str(folder), "alpha": 7}})
    adapter = resolve(read(path)).adapter
    assert adapter == dataclasses.replace(saved, method="bidora", path=str(folder), alpha=7.0)
    flags = ["--adapter.path", str(folder), "--adapter.method", "dora", "--adapter.rank-pattern", "q_proj", "2"]
    found = parse_train(flags)[0].adapter
    assert found == dataclasses.replace(saved, path=str(folder), rank_pattern=(("q_proj", 2),))
    peft_config.write(folder, CONFIG, dataclasses.replace(saved, method="lora", rslora=True), sites, None)
    assert (resolve(read(path)).adapter.method, resolve(read(path)).adapter.rslora) == ("lora", True)
    assert "there is no folder" in refused(file({"adapter": {"path": str(tmp_path / "none")}}))


# The command line


@pytest.mark.parametrize("flag", ["--inner.learning-rate", "--inner.learning_rate", "--inner.learning-rate="])
def test_dashes_and_underscores_mean_the_same(flag):
    assert rates(*([flag + "0.5"] if flag.endswith("=") else [flag, "0.5"])) == (0.5, 1.0)


@pytest.mark.parametrize("name", ["merged", "adapter.rslora"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("now", [True, False, None])
def test_switches_go_both_ways_over_a_file(file, name, before, now):
    section, _, leaf = name.rpartition(".")
    path = file({section: {leaf: before}} if section else {leaf: before})
    yes, no = f"--{name}", f"--{section}.no-{leaf}" if section else f"--no-{leaf}"
    config, _ = parse_train(["--config", path, *([] if now is None else [yes if now else no])])
    assert dict(leaves(config))[name] is (before if now is None else now)


def test_a_value_of_the_command_line_stands_over_the_files(file):
    argv = ["--config", file({"seed": 3, "keep": 4}), "--seed", "5", "--adapter.target-modules", "q_proj", "up_proj"]
    config, arguments = parse_train(argv)
    assert (config.seed, config.keep, config.adapter.target_modules) == (5, 4, ("q_proj", "up_proj"))
    assert (arguments.resume, arguments.distributed) == (False, "off")
    resumed, arguments = parse_train([*argv, "--resume", "--distributed", "auto"])
    assert (resumed, arguments.resume, arguments.distributed) == (config, True, "auto")


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--serach.steps", "3"], "--search.steps"), (["--adapter.rank", "big"], "--adapter.rank"),
     (["--seed", "1.5"], "--seed"), (["--adapter.method", "dorra"], "--adapter.method"),
     (["--inner.learning-r", "1"], "--inner.learning-r"), (["stray"], "stray")],
)  # fmt: skip
def test_a_command_line_that_does_not_fit_is_refused(argv, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(parse_train, argv)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("name", ["train", "evaluate", "export"])
def test_help_needs_neither_a_model_nor_jax(name):
    code = (
        f"import sys\nfrom bidora_jax import {name}\ntry:\n    {name}.main(['--help'])\n"
        "except SystemExit as stopped:\n    print(stopped.code, sorted({'jax', 'transformers'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.endswith("\n0 []\n")
    assert {"train": "--train-file", "evaluate": "--data-file", "export": "--format"}[name] in run.stdout


# Round trip, files, fields


def test_a_config_json_reads_back_as_what_was_written(file, tmp_path):
    values = {"seed": 3, "inner": {"learning_rate": 0.1}, "adapter": {"target_modules": ["q_proj"], "rslora": True,
              "exclude_modules": ".*v", "rank_pattern": {"a.b": 3}, "layers_to_transform": [2, 1]}}  # fmt: skip
    config = resolve(read(file(values)))
    (tmp_path / "saved.json").write_text(to_json(config))
    assert resolve(read(str(tmp_path / "saved.json"))) == config
    assert json.loads(to_json(config))["outer"]["learning_rate"] == 0.2


def test_the_difference_of_two_configurations_names_fields(file):
    other = resolve(read(file({"seed": 3, "output_dir": "elsewhere", "inner": {"learning_rate": 0.1}})))
    found = configuration.differences(resolve(configuration.defaults()), other, ("output_dir",))
    assert found == ["seed: 0 → 3", "inner.learning_rate: 0.0002 → 0.1", "outer.learning_rate: 0.0004 → 0.2"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.name)
def test_every_configuration_that_ships_is_read(path):
    config, _ = parse_train(["--config", str(path)])
    assert config.model.path
    assert config.data.train_file


def test_no_field_is_dead():
    """A field that nothing outside of the settings reads would be accepted and ignored."""
    package = ROOT / "bidora_jax"
    # A competition's plan has fields of its own, some under a setting's name, and hands settings on by their dotted names.
    own_fields = ("settings.py", "config.py", "kaggle.py")
    files = [path for path in package.rglob("*.py") if "competitions" not in path.parts]
    readers = [path for path in files if path.name not in own_fields]
    nodes = [node for path in readers for node in ast.walk(ast.parse(path.read_text()))]
    read_somewhere = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    by_configuration = {"adapter.preset"}  # fills others in: followed by the tests above
    dead = {name for name in PATHS if name.rpartition(".")[2] not in read_somewhere}
    assert dead == by_configuration


def test_every_field_is_explained():
    for path in (ROOT / "bidora_jax").rglob("settings.py"):
        for schema in [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]:
            follows = list(zip(schema.body, [*schema.body[1:], None], strict=True))
            bare = [f"{schema.name}.{ast.unparse(field.target)}" for field, after in follows
                    if isinstance(field, ast.AnnAssign) and not isinstance(after, ast.Expr)]  # fmt: skip
            assert bare == []


# From Python


def test_the_settings_of_a_call_are_those_of_the_command_line():
    line = ["-m", "m", "--output", "o", "-r", "3", "--lr", "1e-3", "--upper-lr-mult", "4", "-e", "2", "-b", "5",
            "--method", "dora", "--preset", "balanced", "--max-samples", "7", "--merged",
            "--adapter.target-modules", "q_proj"]  # fmt: skip
    config, names = parse_call(
        None,
        {"model": Path("m"), "output": Path("o"), "rank": np.int64(3), "lr": 1e-3, "upper_lr_mult": 4, "epochs": 2,
         "batch_size": 5, "method": "dora", "preset": "balanced", "max_samples": 7, "merged": True,
         "adapter.target_modules": ["q_proj"]},
    )  # fmt: skip
    assert config == parse_train(line)[0]
    assert config.outer.learning_rate == 4e-3
    assert {"model.path", "inner.learning_rate", "merged"} < names


def test_every_short_flag_and_every_setting_is_a_name_of_the_call():
    from bidora_jax import flags

    for one in flags.SHORT:
        for name in (one.names[-1][2:].replace("-", "_"), one.setting):
            assert flags.by_setting(Config, {name: 1}, "finetune") == {one.setting: 1}
    for name in PATHS:
        assert flags.by_setting(Config, {name: 1}, "finetune") == {name: 1}


VALUES = {
    "seed": 3,
    "inner": {"learning_rate": 1e-3, "clip": 0.5},
    "adapter": {"rank_pattern": {"layers.0.self_attn": 4}},
}


@pytest.mark.parametrize("kind", ["dictionary", "short names", "ConfigDict", ".json", ".py", "Config"])
def test_a_configuration_of_a_call_stays_as_it_is_and_its_settings_go_over_it(kind, file):
    plain = {**VALUES, "adapter": {"rank_pattern": [["layers.0.self_attn", 4]]}}
    expected = parse_train(["--config", file(plain), "--inner.clip", "2"])[0]
    given = {
        "dictionary": lambda: VALUES, "short names": lambda: {"lr": 1e-3, "inner.clip": 0.5, **VALUES, "inner": {}},
        "ConfigDict": lambda: ConfigDict(plain), ".json": lambda: file(plain), ".py": lambda: Path(file(plain, ".py")),
        "Config": lambda: resolve(read(file(plain))),
    }[kind]()  # fmt: skip
    before = str(given)
    assert parse_call(given, {"inner.clip": 2})[0] == expected
    assert str(given) == before


def test_what_refers_to_a_setting_of_a_call_follows_it():
    config = ConfigDict({"inner": {"learning_rate": 1e-3}, "retrain": {"learning_rate": 0.0}})
    config.retrain.learning_rate = config.inner.get_ref("learning_rate")
    found, _ = parse_call(config, {"lr": 5e-3})
    assert (found.retrain.learning_rate, found.outer.learning_rate, config.inner.learning_rate) == (5e-3, 1e-2, 1e-3)


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        (
            None,
            {"learning_rate": 1},
            "finetune has no setting\n  learning_rate: did you mean inner.learning_rate, outer.",
        ),
        (None, {"rankk": 1, "xyzzy": 2}, "\n  rankk: did you mean adapter.rank, rank?\n  xyzzy\n"),
        ({"ranck": 1}, {}, "\n  ranck: did you mean adapter.rank, rank?\n"),
        ({"adapter": {"ranc": 1}}, {}, "unknown key adapter.ranc (did you mean 'rank'?)"),
        (None, {"rank": 3, "adapter.rank": 3}, "rank and adapter.rank both set adapter.rank: give one"),
        (None, {"rank": "3"}, "adapter.rank: expected an integer, found '3'"),
        (None, {"method": "pissa"}, "adapter.method: expected one of"),
        ([{"instruction": "a"}], {}, "found list; rows to train on are given as train="),
        ("no.json", {}, "configuration file no.json does not exist"),
        ({"model": "m", "adapter": {"preset": "x"}}, {}, "adapter.preset"),
    ],
)
def test_a_call_with_what_is_no_setting_is_refused(config, settings, says):
    with pytest.raises(InputError) as refused:
        parse_call(config, settings)
    assert says in str(refused.value)


def test_an_unknown_setting_of_a_call_gets_at_most_five_names():
    with pytest.raises(InputError) as refused:
        parse_call(None, {"eps": 1})
    assert str(refused.value).splitlines()[1].count(",") <= 4

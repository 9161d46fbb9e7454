"""flags.py: the short flags are the settings that they name, and an unknown flag gets the nearest ones."""

import shlex
import subprocess
import sys

import pytest
from runs import ROOT

from bidora_jax import flags
from bidora_jax.config import Config, leaves, named, parse_data, parse_train
from bidora_jax.errors import InputError

VALUES = {"str": "x", "int": "3", "float": "0.5"}
SETTINGS = dict(leaves(Config()))


@pytest.mark.parametrize("one", flags.SHORT, ids=lambda one: one.names[-1])
def test_a_short_flag_is_the_setting_that_it_names(one):
    default = SETTINGS[one.setting]
    chosen = {"adapter.method": "dora", "model.quantization": "int8", "adapter.preset": "balanced"}
    value = (chosen | {"task.type": "classification"}).get(one.setting, VALUES.get(type(default).__name__, "0.5"))
    flag = f"--{one.setting.replace('_', '-')}"
    expected, _ = parse_train([flag, value])
    assert expected != parse_train([])[0] or str(default) == value
    for name in one.names:
        assert parse_train([name, value])[0] == expected
        assert named([name, value]) == named([flag, value]) == {one.setting}
        assert parse_data([name, value])[0] == expected
    assert parse_train([f"{one.names[-1]}={value}"])[0] == expected


SEED = [
    "--train-file data/train.jsonl --val-file data/val.jsonl --model Qwen/Qwen3-4B --output ./output --rank 8 --epochs 3",
    "--train-file data/train.jsonl --val-file data/val.jsonl --model Qwen/Qwen3-4B --lr 2e-4 --upper-lr-mult 2.0 --rank 8",
    "--dataset code_search_net --model Qwen/Qwen3-8B --output ./output --rank 8",
    "-t data/train.jsonl -v data/val.jsonl -m Qwen/Qwen3-4B -r 4 -b 1 --auto-hardware --max-samples 100",
]


@pytest.mark.parametrize("line", SEED)
def test_command_lines_of_the_package_bidora_are_understood(line):
    config, _ = parse_train(shlex.split(line))
    assert config.model.path.startswith("Qwen/Qwen3-")
    assert ("auto" in named(shlex.split(line))) == ("--auto-hardware" in line)


def test_one_setting_by_two_flags_is_refused():
    for argv in (["-t", "a", "--dataset", "b"], ["-r", "3", "--adapter.rank", "4"]):
        with pytest.raises(InputError, match=f"{argv[0]} and {argv[2]} both set .*: give one"):
            parse_train(argv)


def test_an_unknown_flag_gets_at_most_five_names_the_nearest_first():
    with pytest.raises(InputError) as refused:
        parse_train(
            ["--train-file", "x.jsonl", "--model", "foo", "--learning-rate", "2e-4", "--bogus", "3", "--stepps=3"]
        )
    lines = str(refused.value).splitlines()
    assert lines[0] == "train has no flag" and lines[2] == "  --bogus" and len(lines) == 5
    assert lines[1] == (
        "  --learning-rate: did you mean --inner.learning-rate, --outer.learning-rate, --retrain.learning-rate?"
    )
    assert lines[3] == "  --stepps: did you mean --search.steps, --retrain.steps, --inner.eps, --outer.eps?"
    assert lines[4].endswith("--help shows the usual ones, --help-all every setting")


def test_help_is_short_and_loads_nothing_large():
    code = (
        "import sys\nfrom bidora_jax import train\ntry:\n    train.main(['--help'])\n"
        "except SystemExit:\n    print(sorted({'tyro', 'jax', 'transformers'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    lines = done.stdout.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 120
    for one in flags.SHORT:
        assert any(", ".join(one.names) in line and one.meaning in line for line in lines)


def test_yaml_is_read_as_json_is_and_with_the_words_of_yaml_1_2(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "inner: {learning_rate: 2e-4}   # YAML 1.1 takes this for a text\n"
        "model:\n  quantization: none\n  path: off\n"
        "adapter:\n  target_modules: [q_proj, v_proj]\n  rank_pattern: {layers.0.self_attn.q_proj: 4}\n"
        "report: false\nseed: 3\n"
    )
    config, _ = parse_train(["--config", str(tmp_path / "c.yaml"), "--rank", "5"])
    assert (config.inner.learning_rate, config.model.path, config.report, config.seed) == (2e-4, "off", False, 3)
    assert (config.adapter.target_modules, config.adapter.rank) == (("q_proj", "v_proj"), 5)
    assert config.adapter.rank_pattern == (("layers.0.self_attn.q_proj", 4),)


TURNS = [f"&a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 10)]
LAUGHS = f"data:\n  text_columns: [&a0 [x], {', '.join(TURNS)}]\n"
"""A list of 8^9 items in half a kilobyte."""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("c.yaml", "seed: 1\nseed: 2\n", "is not YAML: seed is there twice"), ("c.yaml", "seed: [", "is not YAML: "), 
     ("c.yaml", "[1]: 2", "is not YAML: "), ("c.yaml", "seed: " + "[" * 100_000, "is not YAML: it is nested too deep"),
     ("c.yaml", "inner.learning_rate: 1", "'inner.learning_rate'; a setting stands in its section, inner: {learning_rate: …}"),
     ("c.json", '{"inner": {"a.b": 1}}', "unknown key inner.'a.b'"),
     ("c.yaml", "inner: {1: 2}", "inner.1: expected a name as the key, found int"),
     ("c.yaml", "2020-01-01: 3", "expected a name as the key, found date"),
     ("c.json", '{"__class__": 1}', "unknown key __class__"),
     ("c.yaml", LAUGHS, "data.text_columns: expected a list of str, found [["),
     ("c.yaml", "seed: !!python/object/apply:os.getpid []", "is not YAML: "), ("c.yml", "- 1", "expected a YAML object"),
     ("c.yaml", "sead: 1", "did you mean 'seed'"), ("c.json", '{"seed": 1, "seed": 2}', "the key 'seed' stands twice")],
)  # fmt: skip
def test_a_file_of_settings_that_is_none_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        parse_train(["--config", str(tmp_path / name)])
    assert says in str(refused.value) and len(str(refused.value)) < 2_000

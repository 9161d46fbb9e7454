"""runs/foundation.py: what a run stands on is known again, and any change of it is refused by name."""

import json
import shutil
from datetime import datetime

import numpy as np
import pytest
from random_adapters import random_adapter
from runs import SMALL, inputs
from safetensors.numpy import load_file, save_file
from tiny import CONFIG, TEMPLATE

from bidora_jax.config import parse_train
from bidora_jax.errors import InputError
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.formats import peft
from bidora_jax.runs import foundation
from bidora_jax.runs.assembly import assemble

SETTINGS = AdapterConfig("bidora", rank=3, target_modules=("q_proj",))


class Ground:
    """A run's files, each of which a test may change."""

    def __init__(self, folder, model_folder, data_files):
        self.model, self.start = shutil.copytree(model_folder, folder / "model"), folder / "start"
        self.data = [shutil.copyfile(path, folder / path.name) for path in data_files]
        self.template(TEMPLATE + "{# {{ strftime_now('%d %b') }} #}")
        self.adapter(seed=0)
        argv = [*inputs(self.model, self.data, folder / "run"), *SMALL, "--adapter.path", str(self.start)]
        self.config, _ = parse_train(argv)

    def checksums(self) -> dict[str, str]:
        return foundation.of(self.config, assemble(self.config))

    def template(self, text) -> None:
        self.tokenizer_config(chat_template=text)

    def template_for_tools(self, text) -> None:
        file = self.model / "additional_chat_templates" / "tool_use.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        (self.model / "chat_template.jinja").write_text(TEMPLATE)  # beside files by name, transformers reads no other

    def tokenizer_config(self, **changes) -> None:
        file = self.model / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def adapter(self, seed) -> None:
        adapter, direction, magnitude = random_adapter(SETTINGS)
        direction["layers"]["self_attn"]["q_proj"]["A"] += seed
        peft.save_adapter(
            self.start, CONFIG, adapter, SETTINGS, direction, magnitude, base_model_name=None, replace=True
        )

    def line(self, number) -> None:
        lines = self.data[number].read_text().splitlines()
        lines[-1] = json.dumps({"instruction": "repeat 7 x1", "output": "v8;"})
        self.data[number].write_text("\n".join(lines))

    def weight(self) -> None:
        tensors = load_file(self.model / "model.safetensors")
        name = next(name for name in tensors if name.endswith("up_proj.weight"))
        tensors[name].flat[-1] = np.nextafter(tensors[name].flat[-1], np.float32(9))
        save_file(tensors, self.model / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def ground(tmp_path, model_folder, data_files):
    return Ground(tmp_path, model_folder, data_files)


DATA = ["training data", "validation data"]
CHANGES = {
    "a line of train": (lambda ground: ground.line(0), DATA[:1]),
    "a line of val": (lambda ground: ground.line(1), DATA[1:]),
    "the template": (
        lambda ground: ground.template(TEMPLATE.replace("\n{{ m", "\n\n{{ m")),
        ["chat template", "tokenizer", *DATA],
    ),
    "a template by name": (
        lambda ground: ground.template([{"name": "default", "template": TEMPLATE}]),
        ["chat template", "tokenizer"],
    ),
    "the tokenizer": (lambda ground: ground.tokenizer_config(model_max_length=99), ["tokenizer"]),
    "one base weight": (lambda ground: ground.weight(), ["base weights"]),
    "the adapter at the start": (lambda ground: ground.adapter(seed=1), ["adapter to start with"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_what_a_run_stands_on_is_refused_by_name(ground, tmp_path, change):
    known = ground.checksums()
    foundation.check(tmp_path, known, ground.checksums())
    spoil, names = CHANGES[change]
    spoil(ground)
    with pytest.raises(InputError) as refused:
        foundation.check(tmp_path, known, ground.checksums())
    said = str(refused.value)
    assert f"what the run in {tmp_path} stands on has changed since it began" in said
    assert set(names) == {line.strip() for line in said.splitlines()} & known.keys()


def test_an_edited_template_for_tools_in_a_file_of_its_own_is_refused(ground, tmp_path):
    ground.template_for_tools("{{ messages }}")
    known = ground.checksums()
    ground.template_for_tools("{{ tools }}")
    with pytest.raises(InputError, match="  chat template\n") as refused:
        foundation.check(tmp_path, known, ground.checksums())
    assert {"chat template"} == {line.strip() for line in str(refused.value).splitlines()} & known.keys()


def test_tokens_that_a_template_dates_are_refused_on_another_day(ground, tmp_path, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    ground.template(TEMPLATE.replace("{% for", "{{ strftime_now('%d %b') }}{% for", 1))
    known = ground.checksums()
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Later)
    with pytest.raises(InputError, match="tokens that a template dates change from day to day") as refused:
        foundation.check(tmp_path, known, ground.checksums())
    assert "training data" in str(refused.value) and "chat template" not in str(refused.value)


def test_of_a_run_of_an_older_version_nothing_is_known(tmp_path):
    foundation.check(tmp_path, None, {"tokenizer": "x"})

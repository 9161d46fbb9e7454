"""data/tokenizer.py: folders whose tokenizer can't be used are refused."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest
from byte_tokenizer import make_tokenizer
from tiny import write_tokenizer

from bidora_jax.data import tokenizer
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer in .*expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot load the tokenizer in"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="no end-of-text token; set eos_token"):
        make_tokenizer(tmp_path / "endless", eos=False)


@pytest.mark.parametrize(
    ("name", "value"), [("model_max_length", "x"), ("model_max_length", True), ("chat_template", 5)]
)
def test_a_setting_of_another_type_is_refused_by_name(tmp_path, name, value):
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {name: value}))
    with pytest.raises(
        InputError, match=rf"{name} of the tokenizer in .* must be a .*, found {value!r}|cannot load the tokenizer"
    ):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_wants_to_run_its_own_code_is_refused(tmp_path):
    make_tokenizer(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot load the tokenizer"):
        load_tokenizer(tmp_path)
    assert not ran.exists()


def test_a_tokenizer_of_sentencepiece_alone_names_the_package(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install sentencepiece, or put the model"):
        load_tokenizer(tmp_path)
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="damaged or of another kind"):
        load_tokenizer(tmp_path)


def test_a_token_that_has_no_embedding_is_refused(tmp_path):
    made = make_tokenizer(tmp_path)
    last = len(made) - 1
    tokenizer.check_known([[0, last]], made, len(made), "the prompts")
    with pytest.raises(
        InputError, match=rf"the prompts hold tokens that the model has no embedding for: {last} \('.*'\); it has"
    ):
        tokenizer.check_known([[0, last]], made, last, "the prompts")


MAPS = {"when it is read": b"\xff" * 40, "when it is used": b"\x08\0\0\0" + b"\xff" * 8 + b"abc"}


@pytest.mark.parametrize("kind", MAPS)
def test_a_panic_of_the_rust_tokenizers_is_refused_with_the_folder(model_folder, tmp_path, kind):
    """A garbage map of characters. Their panic is a BaseException."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {
        "type": "Precompiled", "precompiled_charsmap": base64.b64encode(MAPS[kind]).decode()
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=re.escape(f"cannot load the tokenizer in {folder}: ")):
        load_tokenizer(folder)


@pytest.mark.parametrize("unknown", [None, "nan"])
def test_a_text_that_a_tokenizer_has_no_token_for_is_refused_with_the_folder(model_folder, tmp_path, unknown):
    """It has no token for what it does not know, or one that is not in its vocabulary. It loads: it may know every text."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    words = {"known": 0, "words": 1}
    content["model"] = {"type": "WordLevel", "vocab": words, "unk_token": unknown or "[UNK]"}
    content |= {"pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    loaded = load_tokenizer(folder)
    assert tokenizer.tokenize(loaded, "known words", add_special_tokens=False)["input_ids"] == [0, 1]
    with pytest.raises(InputError, match=re.escape(f"the tokenizer in {folder} cannot read a text: ")):
        tokenizer.tokenize(loaded, "other words")
    with pytest.raises(TypeError):  # a mistake of this package is none of the tokenizer's
        tokenizer.tokenize(loaded, "known", nothing=1, max_length="x", truncation=True)


def test_what_is_no_character_is_refused_by_its_code(model_folder):
    loaded = load_tokenizer(model_folder)
    for texts in (["a\ud800"], [["a"], ["b", "c\ud800"]], [["a", "b\ud800"]]):
        with pytest.raises(InputError, match=r"holds '\\ud800', which is no character"):
            tokenizer.tokenize(loaded, *texts)


def test_texts_are_read_by_one_function():
    package = Path(tokenizer.__file__).parents[1]
    calls = re.compile(r"(?<!def )\btokenizer(?:\.encode(?:_batch)?)?\(")
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if calls.search(file.read_text())}
    assert found == {"data/tokenizer.py", "quickstart/make_model.py"}  # the latter makes a tokenizer of its own

"""Tokenizers in GGUF files: llama.cpp makes the same tokens of hard texts, and what it can't express is refused by name.

models/formats/gguf_tokenizer.py writes the keys; models/formats/gguf_splits.py finds how a byte-level tokenizer splits,
models/formats/gguf_sentencepiece.py the scores that stand for merges.
"""

import json
import re
import unicodedata
from functools import reduce
from pathlib import Path

import gguf_models
import pytest
from hard_texts import hard_texts
from llama_cpp import engine
from tiny import TEMPLATE
from tokenizers import normalizers, pre_tokenizers

from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError
from bidora_jax.models.formats import gguf_splits, gguf_tokenizer
from bidora_jax.models.settings import ModelConfig
from bidora_jax.quickstart import MODEL
from bidora_jax.runs.gguf_exporting import export_model, source_of


def split(pattern: str):
    from tokenizers import Regex

    return pre_tokenizers.Split(Regex(pattern), "isolated")


SPLITS = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True), split(gguf_splits.GPT2)),
    "qwen2": (split(gguf_splits.QWEN2),),
    "qwen35": (split(gguf_splits.QWEN35),),
    "llama-bpe": (split(gguf_splits.LLAMA3),),
    "smaug-bpe": (split(gguf_splits.LLAMA3),),
    "tekken": (split(gguf_splits.TEKKEN),),
    "gpt-4o": (split(gguf_splits.GPT4O),),
}
MERGES_IGNORED = ("llama-bpe", "tekken")


def file_of(folder: Path, vocab_size: int) -> Path:
    """The file of a model of that folder's tokenizer."""
    gguf_models.decoder(folder, "llama", vocab_size, num_hidden_layers=1)
    export_model(ModelConfig(path=str(folder)), file := folder / "model.gguf", quantize="f16")
    return file


def differences(folder: Path, file: Path) -> list[tuple[str, list[int], list[int]]]:
    """Texts whose tokens differ: with llama.cpp's and the tokenizer's."""
    tokenizer = load_tokenizer(folder)
    texts = hard_texts(tuple(tokenizer.all_special_tokens))
    assert len(texts) >= 200
    with engine(file) as llama:
        pairs = [(text, llama.tokens(text), tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return [(text, theirs, ours) for text, theirs, ours in pairs if theirs != ours]


@pytest.mark.engine
def test_the_quickstarts_tokens_are_llama_cpps(tmp_path):
    export_model(ModelConfig(path=str(MODEL)), tmp_path / "quickstart.gguf", quantize="f16")
    assert differences(MODEL, tmp_path / "quickstart.gguf") == []


@pytest.mark.engine
@pytest.mark.parametrize("name", SPLITS)
def test_the_tokens_of_a_byte_level_tokenizer_are_llama_cpps(name, tmp_path, capfd):
    size = gguf_models.byte_level(tmp_path / "model", *SPLITS[name], ignore_merges=name in MERGES_IGNORED)
    found = differences(tmp_path / "model", file_of(tmp_path / "model", size))
    assert keys_of(source_of(tmp_path / "model").written)["pre"] == name
    if name in gguf_splits.CASED:
        assert "takes marks off their letters" in capfd.readouterr().out
        found = [one for one in found if not has_marks(one[0])]
    assert found == []


def has_marks(text: str) -> bool:
    return any(unicodedata.category(character).startswith("M") for character in text)


@pytest.mark.engine
def test_without_the_composed_form_only_decomposed_texts_differ(tmp_path, capfd):
    size = gguf_models.byte_level(tmp_path / "model", *SPLITS["qwen2"], normalizer=normalizers.NFC())
    found = differences(tmp_path / "model", file_of(tmp_path / "model", size))
    assert "note: llama.cpp does not compose characters (NFC)" in capfd.readouterr().out
    assert found
    assert [text for text, *_ in found if unicodedata.is_normalized("NFC", text)] == []


@pytest.mark.engine
def test_the_tokens_of_a_sentencepiece_tokenizer_are_llama_cpps(tmp_path):
    size = gguf_models.sentencepiece(tmp_path / "model")
    assert differences(tmp_path / "model", file_of(tmp_path / "model", size)) == []


@pytest.mark.engine
@pytest.mark.parametrize(("scheme", "template", "alike"), [
    ("never", None, lambda text: True),
    ("always", None, lambda text: not text.startswith((" ", "▁")) and not re.search("<(s|/s|unk)>[ ▁]", text)),
    ("first", None, lambda text: not text.startswith((" ", "▁")) and not re.search("<(s|/s|unk)>.", text, re.S)),
    ("first", "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}", lambda text: text.startswith(("<s>", "</s>"))),
])  # fmt: skip
def test_a_blank_before_a_text_is_llama_cpps_but_for_what_the_note_says(scheme, template, alike, tmp_path, capfd):
    steps = pre_tokenizers.Metaspace("▁", scheme, split=False)
    size = gguf_models.sentencepiece(tmp_path / "model", template=template, pre_tokenizer=steps)
    found = differences(tmp_path / "model", file_of(tmp_path / "model", size))
    assert [one for one in found if alike(one[0])] == []
    assert bool(found) == ("note: " in capfd.readouterr().out) == (scheme != "never")


@pytest.mark.engine
def test_a_text_begins_with_bos_where_the_tokenizer_begins_it_so(tmp_path):
    size = gguf_models.sentencepiece(tmp_path / "model", begin="<s>")
    with engine(file_of(tmp_path / "model", size)) as llama:
        assert llama.tokens("hello", special=True) == load_tokenizer(tmp_path / "model")("hello")["input_ids"]
        assert llama.tokens("hello", special=True)[0] == 1
        assert llama.tokens("hello")[0] != 1


def spoken(folder: Path, **changes) -> gguf_tokenizer.Tokenizer:
    gguf_models.byte_level(folder, *SPLITS["qwen2"])
    gguf_models.decoder(folder, "llama", 910)
    return source_of(folder).told._replace(**changes)


def keys_of(written: gguf_tokenizer.Written) -> dict[str, object]:
    return {key.name.removeprefix("tokenizer.ggml."): key.value for key in written.keys}


def test_the_keys_of_a_byte_level_tokenizer(tmp_path):
    tokenizer = spoken(tmp_path / "model")
    steps = tokenizer.steps
    steps["added_tokens"].append({**steps["added_tokens"][0], "id": 905, "content": "<tool>", "special": False})
    found = keys_of(gguf_tokenizer.written(tokenizer._replace(ends=(0, 2, 905)), 910))
    assert (found["model"], found["pre"]) == ("gpt2", "qwen2")
    assert found["tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert found["tokens"][900:] == [f"[PAD{n}]" if n != 905 else "<tool>" for n in range(900, 910)]
    assert found["token_type"] == [3, 3, 3, *[1] * 897, 5, 5, 5, 5, 5, 4, 5, 5, 5, 5]
    assert found["merges"][:2] == [" ".join(pair) for pair in steps["model"]["merges"][:2]]
    assert [found[f"{name}_token_id"] for name in ("eos", "eot", "eom", "padding")] == [2, 0, 905, 0]
    assert "bos_token_id" not in found
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, False)
    assert found["tokenizer.chat_template"] == TEMPLATE


def test_more_ends_than_a_file_has_room_for_are_named(tmp_path):
    tokenizer = spoken(tmp_path / "model", ends=(0, 1, 2, 70))
    notes = gguf_tokenizer.written(tokenizer, 910).notes
    assert (
        len(notes) == 1 and repr(next(t for t, n in tokenizer.steps["model"]["vocab"].items() if n == 70)) in notes[0]
    )


def test_the_scores_of_a_sentencepiece_tokenizer_are_the_ranks_of_its_merges(tmp_path):
    size = gguf_models.sentencepiece(tmp_path / "model")
    gguf_models.decoder(tmp_path / "model", "llama", size)
    tokenizer = source_of(tmp_path / "model").told
    found = keys_of(gguf_tokenizer.written(tokenizer, size))
    assert (found["model"], found["pre"], found["add_space_prefix"]) == ("llama", "default", True)
    assert found["token_type"][:4] == [2, 3, 3, 6] and found["tokens"][3 + 255] == "<0xFF>"
    assert found["token_type"][258:] == [6, *[1] * (size - 259)]
    first = "".join(tokenizer.steps["model"]["merges"][0])
    assert found["scores"][tokenizer.steps["model"]["vocab"][first]] == 0
    assert found["unknown_token_id"] == 0


def changed(steps: dict, path: str, value) -> dict:
    *outer, last = path.split(".")
    copied = json.loads(json.dumps(steps))
    inner = reduce(lambda node, key: node[int(key) if key.isdigit() else key], outer, copied)
    inner[int(last) if last.isdigit() else last] = value
    return copied


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
SPLIT = "pre_tokenizer.pretokenizers.0"


@pytest.mark.parametrize(("path", "value", "said"), [
    ("model.type", "Unigram", "its model Unigram"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix '</w>'"),
    ("model.ignore_merges", True, "ignore_merges true with the splits"),
    ("normalizer", {"type": "Lowercase"}, "normaliser Lowercase changes texts"),
    ("pre_tokenizer", {"type": "Whitespace"}, "a pre-tokenizer that is not byte-level"),
    (f"{SPLIT}.pattern.Regex", "[a-z]+", "the splits '[a-z]+', which llama.cpp does not have"),
    (f"{SPLIT}.behavior", "Removed", "the step Split"),
    ("pre_tokenizer.pretokenizers.1.add_prefix_space", True, "a blank put before every text"),
    ("model.vocab", {"<unk>": 0, "a": 1}, "a token for bytes that it does not know"),
    ("added_tokens.1.lstrip", True, "lstrip of the added token '<|im_start|>'"),
    ("model.vocab.zz", 950, "1 tokens from 950 on, and the model 910 embeddings"),
])  # fmt: skip
def test_a_byte_level_tokenizer_that_llama_cpp_does_not_have_is_refused(path, value, said, tmp_path):
    tokenizer = spoken(tmp_path / "model")
    tokenizer.steps["model"]["unk_token"] = "<unk>"  # which is no fault where every byte has a token
    gguf_tokenizer.written(tokenizer, 910)
    with pytest.raises(InputError, match=re.escape(said)):
        gguf_tokenizer.written(tokenizer._replace(steps=changed(tokenizer.steps, path, value)), 910)


@pytest.mark.parametrize(("path", "value", "said"), [
    ("model.vocab.<0x41>", None, "no token for 1 of 256 bytes, such as <0x41>"),
    ("model.merges.0", ["q", "q"], "no merge of"),
    ("normalizer.normalizers.1.content", "_", "the step Replace"),
    ("normalizer", None, "no step that writes blanks as ▁"),
    ("pre_tokenizer", METASPACE, "a split at every blank"),
    ("added_tokens.2.normalized", True, "the added token '</s>' is looked for in the changed text"),
])  # fmt: skip
def test_a_sentencepiece_tokenizer_that_llama_cpp_does_not_have_is_refused(path, value, said, tmp_path):
    size = gguf_models.sentencepiece(tmp_path / "model")
    gguf_models.decoder(tmp_path / "model", "llama", size)
    tokenizer = source_of(tmp_path / "model").told
    steps = changed(tokenizer.steps, path, value)
    steps["model"]["vocab"] = {text: number for text, number in steps["model"]["vocab"].items() if number is not None}
    with pytest.raises(InputError, match=re.escape(said)):
        gguf_tokenizer.written(tokenizer._replace(steps=steps), size)


def test_merges_in_an_order_that_no_scores_have_are_refused(tmp_path):
    size = gguf_models.sentencepiece(tmp_path / "model")
    gguf_models.decoder(tmp_path / "model", "llama", size)
    tokenizer = source_of(tmp_path / "model").told
    merges = tokenizer.steps["model"]["merges"]
    several = next(n for n in range(1, len(merges)) if "".join(merges[n]) == "".join(merges[n - 1]))
    merges.append(merges.pop(several))
    with pytest.raises(InputError, match=f"merges that make {''.join(merges[-1])!r} stand in several places"):
        gguf_tokenizer.written(tokenizer, size)


def test_other_tokens_around_a_text_are_refused(tmp_path):
    folder = tmp_path / "model"
    gguf_models.sentencepiece(folder, begin="<unk>")
    gguf_models.decoder(folder, "llama", 960)
    with pytest.raises(InputError, match="puts other tokens around a text than its first and its last"):
        source_of(folder)

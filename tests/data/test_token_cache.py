"""The token cache: what is read is what would be made, nothing stale is ever read, and nothing that goes wrong stops a run."""

import os

import numpy as np
import pytest
from tiny import TEMPLATE, write_tokenizer

from bidora_jax.data import encoding, token_cache
from bidora_jax.data.records import Record
from bidora_jax.data.tokenizer import load_tokenizer
from bidora_jax.errors import InputError

RECORDS = [Record({"instruction": f"repeat {i}", "output": f"v{i};" * (i % 7)}, f"a.jsonl:{i}") for i in range(23)]
SETTINGS = {"max_length": 45, "loss_on": "response", "long": "truncate"}


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder)


def encoded(folder, tokenizer, given=RECORDS, **settings):
    cache, worth = settings.pop("cache", str(folder / "cache")), settings.pop("worth", 0.0)
    return token_cache.encode_all(given, tokenizer, cache, worth=worth, **(SETTINGS | settings))


def assert_same(one, other) -> None:
    assert one[1:] == other[1:]
    for left, right in zip(one.examples, other.examples, strict=True):
        assert type(left) is type(right)
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b)
            assert np.asarray(a).dtype == np.asarray(b).dtype


def test_what_is_read_is_what_would_be_made(folder, tokenizer, monkeypatch):
    made = encoding.encode_all(RECORDS, tokenizer, **SETTINGS)
    assert 0 < made.n_truncated < 9 and made.n_untrained == 4
    first, said = encoded(folder, tokenizer)
    assert "tokens made in" in said and "and kept in" in said
    monkeypatch.setattr(encoding, "encode_all", None)  # not called a second time
    again, said = encoded(folder, tokenizer)
    assert said.startswith("tokens read in ")
    assert_same(first, made)
    assert_same(again, made)


def test_chunks_are_kept_with_the_records_that_they_are_of(folder, tokenizer):
    given = [Record({"text": "cab " * times}) for times in (3, 29, 1, 17)]
    made, _ = encoded(folder, tokenizer, given, long="split")
    again, said = encoded(folder, tokenizer, given, long="split")
    assert said.startswith("tokens read in ")
    assert_same(again, made)
    assert [example.record for example in again.examples] == [0, 1, 1, 1, 2, 3, 3]
    assert again.chunks == [3, 2]


def test_whatever_could_change_a_token_changes_the_name(folder, tokenizer, monkeypatch):
    def names():
        yield token_cache.name(folder, RECORDS, SETTINGS)
        yield token_cache.name(folder, RECORDS[::-1], SETTINGS)
        yield token_cache.name(
            folder, [*RECORDS[:-1], Record({"instruction": "repeat 22", "output": "v22; "})], SETTINGS
        )
        for other in ({"max_length": 71}, {"loss_on": "all"}, {"long": "drop"}, {"long": "split"}):
            yield token_cache.name(folder, RECORDS, SETTINGS | other)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        yield token_cache.name(folder, RECORDS, SETTINGS)
        for template in ("{{ messages }}", "{{ tools }}"):
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            (folder / "additional_chat_templates" / "tool_use.jinja").write_text(template)
            yield token_cache.name(folder, RECORDS, SETTINGS)
        (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
        yield token_cache.name(folder, RECORDS, SETTINGS)
        monkeypatch.setattr(token_cache, "version", lambda package: "another")
        yield token_cache.name(folder, RECORDS, SETTINGS)

    found = list(names())
    assert len(set(found)) == len(found) == 12


def test_an_edited_template_for_tools_is_not_read_stale(folder):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    given = [Record({"messages": turns, "tools": [{"name": "z"}]})]
    (folder / "additional_chat_templates").mkdir()
    for opening in ("cab", "dab"):
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(opening + TEMPLATE)
        tokenizer = load_tokenizer(folder)
        split, _ = encoded(folder, tokenizer, given)
        assert tokenizer.decode(split.examples[0].tokens).startswith(opening)


def test_only_what_takes_long_is_kept_and_nothing_without_a_folder(folder, tokenizer):
    assert encoded(folder, tokenizer, worth=99.0)[1] == encoded(folder, tokenizer, cache="")[1] == ""
    assert not (folder / "cache").exists()


def test_a_refusal_is_not_kept(folder, tokenizer):
    for _ in range(2):
        with pytest.raises(InputError, match=r"records have more than data\.max_length = 45"):
            encoded(folder, tokenizer, long="refuse")
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("damage", ["short", "flipped", "other", "empty"])
def test_a_damaged_file_is_said_and_made_anew(folder, tokenizer, damage):
    made, _ = encoded(folder, tokenizer)
    (path,) = (folder / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes({"short": whole[:-9], "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
                      "other": b"not safetensors", "empty": b""}[damage])  # fmt: skip
    again, said = encoded(folder, tokenizer)
    assert said.startswith(f"{path} is damaged and is not used: ")
    assert_same(again, made)
    assert_same(token_cache.read(path), made)
    assert encoded(folder, tokenizer)[1].startswith("tokens read in")


def test_a_folder_that_cannot_be_written_costs_the_cache_only(folder, tokenizer):
    (folder / "file").write_text("")
    made, said = encoded(folder, tokenizer, cache=str(folder / "file" / "below"))
    assert "tokens are not kept" in said and "Not a directory" in said
    assert len(made.examples) == 19


def test_the_least_recently_used_go_first(folder, tokenizer, monkeypatch):
    for age, length in enumerate((50, 60, 70)):
        encoded(folder, tokenizer, max_length=length)
        path = max((folder / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(path, (1000 + age, 1000 + age))
        size = path.stat().st_size
    encoded(folder, tokenizer, max_length=50)  # used again
    monkeypatch.setattr(token_cache, "ROOM", int(2.5 * size))
    encoded(folder, tokenizer, max_length=80)
    assert len(list((folder / "cache").iterdir())) == 2
    assert [encoded(folder, tokenizer, max_length=length)[1].split()[1] for length in (50, 80)] == ["read", "read"]


def test_remarks_name_the_places_of_the_records_that_were_given(folder, tokenizer):
    """The tokens of the same records under another name are read, and nothing of the old name with them."""
    turns = [{"role": "user", "content": "a", "name": "b"}, {"role": "assistant", "content": "c"}]
    for file in ("old.jsonl", "new.jsonl"):
        given = [
            Record({"text": "x"}, f"{file}:1"),
            Record({"messages": turns, "tools": [{"name": "zz"}]}, f"{file}:2"),
        ]
        split, said = encoded(folder, tokenizer, given)
        assert encoding.remarks_of(split, given)[-1] == (
            f"tools: not in the text that the chat template writes: 1 record ({file}:2)"
        )
    assert said.startswith("tokens read")

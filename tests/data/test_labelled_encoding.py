"""Labelled texts as tokens: what the tokenizer's own call gives, what truncation takes away, and which token a tag belongs to."""

import encoder_tokenizers
import numpy as np
import pytest
from tiny import write_tokenizer

from bidora_jax.data.labelled_encoding import encode_all
from bidora_jax.data.labelled_records import LabelledRecord
from bidora_jax.data.labels import Labels
from bidora_jax.data.tokenizer import load_tokenizer, pad_id
from bidora_jax.errors import InputError

CLASSES, TAGS = Labels("classification", ("neg", "pos")), Labels("tokens", ("O", "B-LOC", "I-LOC", "B-PER"))


def records(*texts, targets=()) -> list[LabelledRecord]:
    found = []
    for number, text in enumerate(texts, 1):
        pair = dict(zip(("text", "text_pair"), text, strict=True)) if isinstance(text, tuple) else {"text": text}
        one = LabelledRecord({"words": text} if isinstance(text, list) else pair, f"a.csv:{number}", {}, {})
        one.target = targets[number - 1] if targets else None
        found.append(one)
    return found


def encoded(given, tokenizer, labels: Labels = CLASSES, *, max_length: int = 64, long="split", types: bool = True):
    return encode_all(given, labels, tokenizer, max_length=max_length, long=long, types=types)


@pytest.fixture
def bert(tmp_path):
    return encoder_tokenizers.bert(tmp_path)


def pieces(example, tokenizer) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(example.tokens.tolist()))


# Texts


def test_a_text_and_a_pair_have_the_tokenizers_own_template_and_types(bert):
    given = records(("Good film", "very bad"), ("a", ""), targets=["pos", "neg"])
    found = encoded(given, bert).examples
    assert [pieces(one, bert) for one in found] == ["[CLS] good film [SEP] very bad [SEP]", "[CLS] a [SEP] [SEP]"]
    assert [one.types.tolist() for one in found] == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1]]
    assert [one.labels.tolist() for one in found] == [[0, 1], [1, 0]] and [one.record for one in found] == [0, 1]
    (single,) = encoded(records("good"), bert, types=False).examples
    assert (
        pieces(single, bert) == "[CLS] good [SEP]"
        and single.types.tolist() == [0, 0, 0]
        and np.isnan(single.labels).all()
    )


def test_bytes_have_their_template_too(tmp_path):
    tokenizer = encoder_tokenizers.roberta(tmp_path)
    found = encoded(records(("a", "b")), tokenizer)
    assert pieces(found.examples[0], tokenizer) == "<s> a </s> </s> b </s>" and not found.examples[0].types.any()


def test_truncation_takes_from_the_longer_text_and_is_counted(bert):
    given = records(("a a a a a a", "the the"), ("a", "the"), ("a a", "the the the the the the the"))
    found = encoded(given, bert, max_length=9)
    assert [pieces(one, bert) for one in found.examples] == [
        "[CLS] a a a a [SEP] the the [SEP]", "[CLS] a [SEP] the [SEP]", "[CLS] a a [SEP] the the the the [SEP]",
    ]  # fmt: skip
    assert [one.truncated for one in found.examples] == [True, False, True] and found.n_truncated == 2
    dropped = encoded(given, bert, max_length=9, long="drop")
    assert [one.record for one in dropped.examples] == [1] and dropped.n_truncated == 2
    with pytest.raises(InputError) as error:
        encoded(given, bert, max_length=9, long="refuse")
    assert str(error.value) == (
        "2 of 3 records have more than data.max_length = 9 tokens, and data.long is refuse; shorten them, raise max_length, or "
        "set long to truncate or drop:\n  a.csv:1\n  a.csv:3"
    )
    with pytest.raises(InputError, match="all of the 3 records have more than"):
        encoded(given[:1] * 3, bert, max_length=5, long="drop")


def test_too_little_room_is_refused(bert):
    for given, least in ((records("a"), 3), (records(("a", "b")), 5)):
        assert encoded(given, bert, max_length=least)
        with pytest.raises(InputError, match=f"max_length = {least - 1} leaves no room .* should be at least {least}"):
            encoded(given, bert, max_length=least - 1)


def test_an_empty_text_is_legal_and_said(bert, tmp_path):
    found = encoded(records("", "  ", "a"), bert)
    assert [pieces(one, bert) for one in found.examples] == ["[CLS] [SEP]", "[CLS] [SEP]", "[CLS] a [SEP]"]
    assert found.remarks == ["the text is empty: 2 records (a.csv:1, a.csv:2)"]
    folder = tmp_path / "decoder"
    folder.mkdir()
    write_tokenizer(folder)
    decoder = load_tokenizer(folder)
    assert [pieces(one, decoder) for one in encoded(records("", "ab"), decoder).examples] == ["<|im_end|>", "a b"]


def test_an_encoders_tokenizer_needs_no_end_of_text(bert, tmp_path):
    assert bert.eos_token_id is None and pad_id(bert) == bert.pad_token_id == 0
    with pytest.raises(InputError, match="has no end-of-text token"):
        load_tokenizer(tmp_path)


def test_what_a_tokenizers_file_says_of_length_and_padding_does_not_count(bert, tmp_path):
    """Sentence encoders are saved with a truncation and a padding of their own."""
    bert.backend_tokenizer.enable_truncation(4)
    bert.backend_tokenizer.enable_padding(length=9)
    folder = tmp_path / "set"
    bert.save_pretrained(folder)
    again = load_tokenizer(folder, ends=False)
    found = encoded(records("good film is a film", "a"), again).examples
    assert [len(one.tokens) for one in found] == [7, 3]


# Words


WORDS, OF_WORDS = ["John", "lives", "in", "new", "york"], ["B-PER", "O", "O", "B-LOC", "I-LOC"]


def test_a_tag_stands_at_the_first_token_of_its_word(bert):
    given = records(["zoe", "in", "york"], WORDS, targets=[["B-PER", "O", "B-LOC"], OF_WORDS])
    found = encoded(given, bert, TAGS).examples
    assert pieces(found[0], bert) == "[CLS] z ##o ##e in york [SEP]"
    assert found[0].labels.tolist() == [-1, 3, -1, -1, 0, 1, -1] and found[0].labels.dtype == np.int32
    assert found[0].starts.tolist() == [1, 4, 5] and found[1].starts.tolist() == [1, 2, 3, 4, 5]
    (unlabelled,) = encoded(records(WORDS), bert, TAGS).examples
    assert set(unlabelled.labels) == {-1} and unlabelled.starts.tolist() == [1, 2, 3, 4, 5]


def test_words_without_a_token_and_words_after_the_cut_are_counted(bert):
    given = records(["a", "\u200d", "film"], WORDS, targets=[["B-LOC", "B-PER", "O"], OF_WORDS])
    found = encoded(given, bert, TAGS, max_length=5)
    assert [one.starts.tolist() for one in found.examples] == [[1, -1, 2], [1, 2, 3, -1, -1]]
    assert found.examples[0].labels.tolist() == [-1, 1, 0, -1]
    assert found.remarks == [
        "1 words have no token, and are predicted as O: 1 record (a.csv:1)",
        "2 words stand after the cut at 5 tokens, and are predicted as O: 1 record (a.csv:2)",
    ]


def test_bytes_have_a_blank_before_each_word_as_add_prefix_space_gives_them(tmp_path):
    import transformers

    ours = encoder_tokenizers.roberta(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    (found,) = encoded(records(["New", "York", "x"], targets=[["B-LOC", "I-LOC", "O"]]), ours, TAGS).examples
    expected = theirs(["New", "York", "x"], is_split_into_words=True)
    assert found.tokens.tolist() == expected["input_ids"]
    assert found.starts.tolist() == [expected.word_ids().index(word) for word in range(3)] == [1, 5, 10]
    (same,) = encoded(records(["New", "York", "x"]), theirs, TAGS).examples
    assert same.tokens.tolist() == expected["input_ids"]


def test_a_tokenizer_without_word_ids_has_a_token_a_residue(tmp_path):
    tokenizer = encoder_tokenizers.esm(tmp_path)
    assert not tokenizer.is_fast
    helix = Labels("tokens", ("C", "E", "H"))
    given = records(list("MKJJV"), list("AC"), targets=[list("HHECC"), list("EE")])
    found = encoded(given, tokenizer, helix).examples
    assert pieces(found[0], tokenizer) == "<cls> M K <unk> <unk> V <eos>"
    assert found[0].labels.tolist() == [-1, 2, 2, 1, 0, 0, -1] and found[0].starts.tolist() == [1, 2, 3, 4, 5]
    cut = encoded(given, tokenizer, helix, max_length=5)
    assert pieces(cut.examples[0], tokenizer) == "<cls> M K <unk> <eos>"
    assert cut.examples[0].starts.tolist() == [1, 2, 3, -1, -1]
    assert cut.remarks == ["2 words stand after the cut at 5 tokens, and are predicted as O: 1 record (a.csv:1)"]
    text = encoded(records("MKV"), tokenizer).examples[0]
    assert pieces(text, tokenizer) == "<cls> M K V <eos>"

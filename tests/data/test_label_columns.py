"""Columns of text and label: found by their names, refused where several could be meant."""

import pytest

from bidora_jax.data.label_columns import choose
from bidora_jax.data.settings import DataConfig
from bidora_jax.errors import InputError


def chosen(row: dict, task: str = "auto", *, labelled: bool = True, **settings) -> tuple:
    found = choose([row], DataConfig(**settings), task, labelled=labelled)
    return found.texts, found.labels, found.words


def refused(row: dict, task: str = "auto", **settings) -> str:
    with pytest.raises(InputError) as error:
        chosen(row, task, **settings)
    return str(error.value)


LONG = "four words of text"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("text label", (("text",), ("label",), False)),
        ("label Text id", (("Text",), ("label",), False)),
        ("index sentence1 sentence2 score", (("sentence1", "sentence2"), ("score",), False)),
        ("text_a text_b labels", (("text_a", "text_b"), ("labels",), False)),
        ("Quality #1_ID #1_String #2_String", (("#1_String", "#2_String"), ("Quality",), False)),
        ("id question1 question2 is_duplicate", (("question1", "question2"), ("is_duplicate",), False)),
        ("index question sentence label", (("question", "sentence"), ("label",), False)),
        ("promptID sentence1_parse sentence1 sentence2 label1 gold_label", (("sentence1", "sentence2"), ("gold_label",), False)),
        ("sequence labels", (("sequence",), ("labels",), False)),
        ("keyword text target", (("text",), ("target",), False)),
    ],
)  # fmt: skip
def test_names_say_what_is_text_and_what_label(columns, expected):
    row = {name.replace("_", " ") if name.startswith("#") else name: "0" for name in columns.split()}
    texts, *rest = expected
    texts = tuple(name.replace("_", " ") if name.startswith("#") else name for name in texts)
    assert chosen(row) == (texts, *rest)


def test_words_beside_tags_are_tagged():
    assert chosen({"id": "1", "tokens": ["a"], "ner_tags": [0]}) == (("tokens",), ("ner_tags",), True)
    assert chosen({"words": "['a']", "labels": '["O"]'}) == (("words",), ("labels",), True)
    assert chosen({"tokens": ["a"], "text": LONG, "label": "x"}) == (("text",), ("label",), False)
    assert chosen({"sequence": "ACD", "labels": "HHE"}, "tokens") == (("sequence",), ("labels",), True)
    assert chosen({"tokens": ["a"]}, "tokens", labelled=False) == (("tokens",), (), True)


def test_columns_are_named_by_the_settings():
    row = {"body": LONG, "title": LONG, "toxic": "0", "rude": "1", "text": "x"}
    settings = {"text_columns": ("title", "body"), "label_columns": ("toxic", "rude")}
    assert chosen(row, **settings) == (("title", "body"), ("toxic", "rude"), False)
    settings["label_columns"] = ("toxi",)
    assert "data.label_columns names 'toxi' (did you mean 'toxic'?), which no row has; the rows have 'body'" in refused(
        row, **settings
    )
    assert "data.text_columns names 3 columns" in refused(row, text_columns=("title", "body", "text"))
    assert "data.group_column names 'who'" in refused(row, group_column="who", label_columns=("toxic",))
    assert "column 'text' is named as text and as label" in refused(
        row, text_columns=("text",), label_columns=("text",)
    )


def test_the_only_text_and_the_only_other_column_are_taken_and_said():
    found = choose([{"remark": LONG, "kind": "x"}], DataConfig(), "auto")
    assert (found.texts, found.labels) == (("remark",), ("kind",))
    assert found.notes == (
        "the text is column 'remark', the only one that reads like text (data.text_columns)",
        "the label is column 'kind', the only one beside the text (data.label_columns)",
    )


def test_where_several_could_be_meant_none_is_taken():
    row = {"title": LONG, "body": LONG, "remark": LONG, "label": "x"}
    assert refused(row) == (
        "3 columns could be the text: 'title', 'body', 'remark'; name the one that is, or the two of a pair: "
        "--data.text-columns title"
    )
    assert "2 columns could be the text: 'text', 'review'" in refused({"text": LONG, "review": LONG, "label": "x"})
    assert "2 columns could be the label: 'target', 'score'" in refused({"text": LONG, "target": "1", "score": "2"})
    assert "2 columns could be the label: 'label', 'labels'" in refused({"text": LONG, "label": "1", "labels": "2"})


def test_what_is_not_there_is_said_with_a_remedy():
    assert refused({"text": LONG, "toxic": 0, "rude": 1}) == (
        "no column is named as a label; beside the text the rows have 'toxic', 'rude'; name the one that is: "
        "--data.label-columns COLUMN; of several labels, name all: --data.label-columns toxic rude"
    )
    assert "the rows have a text and nothing else" in refused({"text": LONG})
    assert "no column reads like text; the rows have 'id', 'label'" in refused({"id": "7", "label": "x"})
    header = {"gj04": "gj04", "1": "0", "": "*", "Our friends won't buy this.": LONG}
    assert "if the first row is a record and no header, name columns by number: --data.text-columns 4" in refused(
        header
    )


def test_rows_to_be_labelled_need_no_label():
    assert chosen({"text": LONG, "id": "3"}, labelled=False) == (("text",), (), False)
    assert chosen({"text": LONG, "target": "1", "score": "2"}, labelled=False) == (("text",), (), False)
    assert chosen({"text": LONG}, labelled=False, label_columns=("toxic",)) == (("text",), (), False)

"""competitions/features.py: texts, categories, numbers, and what is left out for which reason."""

import numpy as np
import pytest
from competitions import table, words

from bidora_jax.competitions import features, headers
from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions.columns import Chosen
from bidora_jax.errors import InputError

ROWS = 200
RANDOM = np.random.default_rng(0)
LETTERS = list("ACDEFGHIKLMNPQRSTVWY")
CELLS = {
    "text": lambda n: words(RANDOM),
    "title": lambda n: words(RANDOM, 3),
    "short": lambda n: "red shoe" if n % 2 else "blue shoe",
    "kind": lambda n: "abc"[n % 3],
    "number": lambda n: n % 7 / 2,
    "some": lambda n: "" if n % 3 else n % 5,
    "constant": lambda n: "x",
    "empty": lambda n: "",
    "flag": lambda n: "" if n % 2 else "yes",
    "hash": lambda n: f"{n * 2654435761 % 2**32:08x}",
    "rownumber": lambda n: 1000 + n,
    "date": lambda n: f"2020-01-{n % 28 + 1:02d}",
    "chinese": lambda n: "这个产品非常好用我很喜欢"[n % 5 :] + str(n),
    "protein": lambda n: "".join(RANDOM.choice(LETTERS, 40)),
    "SentenceId": lambda n: n // 4,
    "item_condition_id": lambda n: n % 5,
    "city": lambda n: RANDOM.choice(["New York", "Los Angeles", "Rio de Janeiro"]),
}


def found(folder, names, *, chosen=Chosen(), test=None):  # noqa: B008 - a NamedTuple
    def rows(columns, start):
        return [
            (n, *(CELLS[name](n) for name in columns), n % 2)[: len(columns) + 1 + (start == 0)]
            for n in range(start, start + ROWS)
        ]

    names = names.split()
    table(folder / "train.csv", ("id", *names, "label"), rows(names, 0))
    others = names if test is None else test.split()
    table(folder / "test.csv", ("id", *others), rows(others, ROWS))
    table(folder / "sample_submission.csv", ("id", "label"), [(ROWS, 0)])
    files = competition_files.read(folder)
    return features.find(files, headers.find(files, chosen), chosen)[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("title", "texts"), ("short", "categories"), ("kind", "categories"), ("number", "numbers"), ("some", "numbers"),
        ("constant", "the same in every row"), ("empty", "the same in every row"), ("flag", "categories"),
        ("hash", "nearly another word"),
        ("SentenceId", "named as an id"), ("item_condition_id", "numbers"),
        ("rownumber", "row numbers"), ("date", "categories"), ("chinese", "texts"), ("city", "categories"),
    ],
)  # fmt: skip
def test_each_column_beside_a_text(tmp_path, name, kind):
    columns = found(tmp_path, f"text {name}")
    if kind in ("texts", "categories", "numbers"):
        assert name in getattr(columns, kind) and "text" in columns.texts
    else:
        assert columns.dropped[name].startswith(kind)


def test_without_words_the_column_with_the_longest_values_is_the_text(tmp_path):
    assert found(tmp_path, "kind protein number").texts == ("protein",)
    assert found(tmp_path, "kind hash number").texts == ()


def test_columns_that_one_file_lacks_or_has_empty_are_left_out(tmp_path):
    columns = found(tmp_path, "text title kind", test="text number")
    assert columns.dropped == {
        "title": "test.csv lacks it",
        "kind": "test.csv lacks it",
        "number": "train.csv lacks it",
    }


def test_named_texts_are_the_texts(tmp_path):
    columns = found(tmp_path, "text title short kind", chosen=Chosen(texts=("short", "title")))
    assert columns.texts == ("short", "title") and columns.categories == ("kind",)
    assert columns.dropped == {"text": "not among --text-columns"}
    with pytest.raises(InputError, match="names 'id', the id or a target"):
        found(tmp_path, "text", chosen=Chosen(texts=("id",)))

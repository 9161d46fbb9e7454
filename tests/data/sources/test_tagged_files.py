"""Files of tagged words: sentences with the line of their first word, whatever stands between word and tag."""

import pytest

from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import SourceRow
from bidora_jax.data.sources.sources import Expected
from bidora_jax.data.sources.tagged_files import looks_tagged
from bidora_jax.errors import InputError

CONLL = (
    "-DOCSTART- -X- O O\r\n\r\nEU NNP I-NP I-ORG\r\nrejects VBZ I-VP O\r\n\r\n\r\n-DOCSTART- -X- O O\r\n\r\n"
    "Peter\tNNP\tI-NP\tI-PER"
)
SENTENCES = [
    (":3", {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"]}),
    (":9", {"tokens": ["Peter"], "tags": ["I-PER"]}),
]


def found(path, **expected) -> list:
    return [
        (row.place.removeprefix(str(path)), row.value)
        for row in sources.scan(path, Expected(**expected))
        if isinstance(row, SourceRow)
    ]


@pytest.mark.parametrize("name", ["a.conll", "a.bio", "a.iob2"])
def test_an_ending_says_that_words_are_tagged(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONLL.encode())
    assert found(path) == SENTENCES


@pytest.mark.parametrize("name", ["train.txt", "train.tsv"])
def test_another_file_is_known_by_its_lines_where_tags_are_expected(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(CONLL.encode())
    assert found(path, tagged=True) == SENTENCES
    others = {
        "a.tsv": "sentence\tlabel\nO\tB-PER\n",
        "b.txt": "O\n\nB-PER\n",
        "c.txt": "\n\n",
        "d.tsv": "a\tO\nb\tX\n\n",
    }
    for other, text in others.items():
        (tmp_path / other).write_text(text)
        assert not looks_tagged(tmp_path / other)


def test_a_line_without_a_tag_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("EU B-ORG\nrejects\n\nPeter B-PER\n")
    with pytest.raises(InputError) as error:
        sources.read(path)
    assert f"{path}:2: has one field, 'rejects'; a line should hold a word and its tag, and a blank line" in str(
        error.value
    )
    assert "1 of the 2 rows" in str(error.value)

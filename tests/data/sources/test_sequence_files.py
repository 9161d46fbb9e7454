"""FASTA: sequences over several lines, with the line of their header; what has no header or no sequence is refused."""

import pytest

from bidora_jax.data.sources import sources
from bidora_jax.errors import InputError


def test_a_header_and_its_lines_are_a_row(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_text(";comment\n>P1 the first one\r\nMKV\r\nA C*\n\n>P2\n;no\nGG\n")
    assert [(row.place, row.value) for row in sources.read(path)] == [
        (f"{path}:2", {"id": "P1", "description": "the first one", "sequence": "MKVAC"}),
        (f"{path}:6", {"id": "P2", "description": "", "sequence": "GG"}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("MKV\n>P1\nA\n", ":1: stands before the first header"),
        (">P1\n>P2\nMK\n", ":1: has a header, 'P1', and no sequence"),
    ],
)
def test_halves_are_refused(tmp_path, text, said):
    (tmp_path / "a.fa").write_text(text)
    with pytest.raises(InputError) as error:
        sources.read(tmp_path / "a.fa")
    assert said in str(error.value)

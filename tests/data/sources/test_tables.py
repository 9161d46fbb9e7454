"""Tables as GLUE has them: quotes that are plain characters, a mark at the beginning of the file, no header."""

import pytest

from bidora_jax.data.sources import sources
from bidora_jax.data.sources.rows import SourceRow
from bidora_jax.data.sources.sources import Expected
from bidora_jax.errors import InputError

LONE = 'sentence\tlabel\r\n"He said\t0\r\nno "\t1\r\n"Whole"\t1\r\n'


def scanned(path, expected: Expected) -> list[SourceRow]:
    return [row for row in sources.scan(path, expected) if isinstance(row, SourceRow)]


def rows(path, text: str, *numbered: str) -> list:
    path.write_text(text, newline="")
    return [
        (row.place.removeprefix(str(path)), *row.value.values()) for row in scanned(path, Expected(numbered=numbered))
    ]


def test_a_quote_that_is_never_closed_is_a_character(tmp_path):
    assert rows(tmp_path / "a.tsv", LONE) == [(":2", '"He said', "0"), (":3", 'no "', "1"), (":4", '"Whole"', "1")]


def test_two_lone_quotes_do_not_swallow_the_rows_between_them(tmp_path):
    text = 'a\tb\n1\t"x\n2\ty\n3\tz"\n'
    assert rows(tmp_path / "a.tsv", text) == [(":2", "1", '"x'), (":3", "2", "y"), (":4", "3", 'z"')]


def test_quotes_that_hold_a_line_break_or_a_tab_are_quotes(tmp_path):
    assert rows(tmp_path / "a.tsv", 'a\tb\n1\t"x\ny"\n') == [(":2", "1", "x\ny")]
    assert rows(tmp_path / "a.tsv", 'a\tb\n1\t"x\ty"\n2\t"say ""no"""\n') == [
        (":2", "1", "x\ty"),
        (":3", "2", 'say "no"'),
    ]


def test_a_table_divided_by_commas_needs_its_quotes_closed(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"x\n')
    with pytest.raises(InputError, match="a quote is opened in this row and never closed"):
        sources.read(tmp_path / "a.csv")


def test_the_mark_before_a_file_and_a_blank_in_a_name_are_no_part_of_it(tmp_path):
    (tmp_path / "a.tsv").write_bytes("\ufeffQuality\t#1 String\n1\tÄ\n".encode())
    (row,) = sources.read(tmp_path / "a.tsv")
    assert row.value == {"Quality": "1", "#1 String": "Ä"}


def test_columns_by_number_are_those_of_a_table_without_a_header(tmp_path):
    cola = 'gj04\t1\t\tA "sentence\ngj04\t0\t*\tAnother\n'
    assert rows(tmp_path / "a.tsv", cola, "4", "2") == [
        (":1", "gj04", "1", "", 'A "sentence'), (":2", "gj04", "0", "*", "Another"),
    ]  # fmt: skip
    assert [row.value for row in scanned(tmp_path / "a.tsv", Expected(numbered=("4", "2")))][1]["4"] == "Another"
    assert rows(tmp_path / "a.csv", "1,2\nx,y\n", "2") == [(":2", "x", "y")]
    assert rows(tmp_path / "a.csv", "u,v\nx,y\n", "2") == [(":1", "u", "v"), (":2", "x", "y")]

"""Sources: every kind of file gives the same rows with their places; every broken one is refused with its line and a remedy.

data/sources/rows.py, data/sources/json_files.py, data/sources/text_files.py and data/sources/tables.py read them.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from data_hub import data_hub

from bidora_jax.data.encoding import read_records
from bidora_jax.data.sources import json_files, sources, tables, text_files
from bidora_jax.data.sources.rows import Fault, SourceRow
from bidora_jax.errors import InputError, command

RECORDS = [{"prompt": f'p{i} "quoted", ü\nsecond', "completion": f"c{i};"} for i in range(3)]
GOOD = b'{"text": "fine"}\n'


def csv_bytes(rows=RECORDS, delimiter: str = ",", end: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_lines(rows=RECORDS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet_bytes(columns=None) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(RECORDS) if columns is None else columns
    parquet.write_table(table, sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def saved(folder: Path, *splits: str) -> Path:
    import datasets

    whole = datasets.Dataset.from_list(RECORDS)
    (datasets.DatasetDict(dict.fromkeys(splits, whole)) if splits else whole).save_to_disk(str(folder))
    return folder


# What is read

FILES = {
    "lines.jsonl": (json_lines(), [":1", ":2", ":3"]),
    "lines.ndjson": (b"\n" + json_lines().replace(b"\n", b"\r\n\n"), [":2", ":4", ":6"]),
    "lines": (b"\xef\xbb\xbf" + json_lines(), [":1", ":2", ":3"]),
    "lines.jsonl.gz": (gzip.compress(json_lines()), [":1", ":2", ":3"]),
    "lines.jsonl.bz2": (bz2.compress(json_lines()), [":1", ":2", ":3"]),
    "lines.jsonl.xz": (lzma.compress(json_lines()), [":1", ":2", ":3"]),
    "misnamed.json": (json_lines(), [":1", ":2", ":3"]),
    "array.json": (json.dumps(RECORDS, indent=1).encode(), [":2", ":6", ":10"]),
    "one_line.JSON": (json.dumps(RECORDS).encode(), [":1", ":1", ":1"]),
    "wrapped.json": (json.dumps({"version": [1], "data": RECORDS}, indent=1).encode(), [":6", ":10", ":14"]),
    "comma.csv": (csv_bytes(), [":2", ":4", ":6"]),
    "mark.csv": (b"\xef\xbb\xbf" + csv_bytes(end="\n"), [":2", ":4", ":6"]),
    "semicolon.csv": (csv_bytes(delimiter=";"), [":2", ":4", ":6"]),
    "tab.tsv": (csv_bytes(delimiter="\t"), [":2", ":4", ":6"]),
    "bar.csv.gz": (gzip.compress(csv_bytes(delimiter="|")), [":2", ":4", ":6"]),
    "table.parquet": (parquet_bytes(), [" row 1", " row 2", " row 3"]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows_and_where_each_begins(tmp_path, name):
    content, places = FILES[name]
    (tmp_path / name).write_bytes(content)
    rows = sources.read(tmp_path / name)
    assert [row.value for row in rows] == RECORDS
    assert [row.place for row in rows] == [f"{tmp_path / name}{place}" for place in places]


@pytest.mark.parametrize("blanks", [0, 2])
@pytest.mark.parametrize("indent", [None, 0, 3])
def test_a_json_array_of_anything_is_read_as_json_reads_it(tmp_path, indent, blanks):
    rng = random.Random(3)
    values = [{f"k{i}": rng.choice([1.5, None, "ü]},\\\"", [], {"a": [{}]}, "\u2028\n"]) for i in range(rng.randrange(4))}
              for _ in range(17)]  # fmt: skip
    text = "\n" * blanks + json.dumps(values, indent=indent, ensure_ascii=False) + " \n" * blanks
    (tmp_path / "a.json").write_text(text)
    rows = sources.read(tmp_path / "a.json")
    assert [row.value for row in rows] == values
    lines = text.split("\n")
    for row in rows:
        assert "{" in lines[int(row.place.rpartition(":")[2]) - 1]


def test_one_record_over_several_lines_is_one_row_and_its_turns_are_not_rows(tmp_path):
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "one.json").write_text(json.dumps(record, indent=2))
    assert sources.read(tmp_path / "one.json") == [SourceRow(f"{tmp_path}/one.json:1", record)]


def test_a_text_file_ends_a_document_at_its_end_or_where_it_says_so(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "a.txt").write_text("\n\n  one\ntwo\n<|endoftext|>three<|endoftext|>\n \n<|endoftext|>\nfour")
    (tmp_path / "b" / "c.txt").write_bytes(b"\xef\xbb\xbffive\r\nsix\r\n")
    (tmp_path / "b" / "d.txt").write_text(" \n")
    assert sources.read(tmp_path) == [
        SourceRow(f"{tmp_path}/a.txt:3", {"text": "  one\ntwo"}),
        SourceRow(f"{tmp_path}/a.txt:5", {"text": "three"}),
        SourceRow(f"{tmp_path}/a.txt:8", {"text": "four"}),
        SourceRow(f"{tmp_path}/b/c.txt:1", {"text": "five\nsix"}),
    ]


def test_a_saved_data_set_and_its_splits(tmp_path):
    folder = saved(tmp_path / "plain")
    assert sources.read(folder) == [SourceRow(f"{folder} row {i + 1}", record) for i, record in enumerate(RECORDS)]
    for splits, asked in ((("only",), ""), (("train", "test"), "@test")):
        folder = saved(tmp_path / "-".join(splits), *splits)
        rows = sources.read(f"{folder}{asked}")
        assert [row.value for row in rows] == RECORDS
        assert rows[2].place == f"{folder}{asked} row 3"


def test_a_shuffled_data_set_is_read_in_its_own_order(tmp_path):
    import datasets

    numbers = datasets.Dataset.from_dict({"text": list(map(str, range(7)))}).select([5, 0, 3])
    numbers.save_to_disk(str(tmp_path / "some"))
    assert [row.value["text"] for row in sources.read(tmp_path / "some")] == ["5", "0", "3"]


# What is broken: (name, content, what the message says besides the file's name)

UTF16 = GOOD.decode().encode("utf-16")
CSV = b"text,note\nfine,1\n"
BROKEN = {
    "latin1": (
        "a.jsonl",
        GOOD + b'{"text": "caf\xe9"}\n',
        [":2: not UTF-8 (byte 0xe9 in column 14)", "iconv -f LATIN1"],
    ),
    "latin1 csv": ("a.csv", CSV + b"caf\xe9,2\n", [":3: not UTF-8", "iconv -f LATIN1 -t UTF-8"]),
    "latin1 json": ("a.json", b'[\n{"text": "\xe9"}]', [":2: not UTF-8 (byte 0xe9 in column 11)", "iconv"]),
    "latin1 text": ("a.txt", b"one\nt\xfcr\n", [":2: not UTF-8", "iconv"]),
    "utf16": ("a.jsonl", UTF16, ["is UTF-16 text; write it anew: iconv -f UTF-16 -t UTF-8"]),
    "utf16 csv": ("a.csv", CSV.decode().encode("utf-16"), ["is UTF-16 text", "> utf8.csv"]),
    "utf16 without a mark": ("a.jsonl", UTF16[2:], ["is no text", "NUL bytes; expected UTF-8"]),
    "mark within": ("a.jsonl", GOOD + b"\xef\xbb\xbf" + GOOD, [":2: not JSON", "column 1"]),
    "binary": ("a.jsonl", b"\x7fELF\x02\x01\x01\0\0\0", ["is no text", "expected UTF-8"]),
    "nul in a line": (
        "a.jsonl",
        GOOD + b'{"text": "a\0b"}\n',
        [":2: not JSON (Invalid control character at in column 12)"],
    ),
    "nul in csv": ("a.csv", CSV + b"a\0b,2\n", [":3: holds a NUL byte; remove it"]),
    "nested": ("a.jsonl", GOOD + b'{"data": {"text": "x"}}\n', [":2: has none of the keys", "its keys: 'data'"]),
    "twice encoded": (
        "a.jsonl",
        json.dumps(GOOD.decode()).encode(),
        [":1: expected an object, found a text that holds an object"],
    ),
    "empty turns": ("a.jsonl", b'{"prompt": " ", "completion": "x"}\n', [":1: 'prompt' is empty", "{text} or {code}"]),
    "number for text": ("a.jsonl", GOOD + b'{"text": 5}\n', [":2: 'text' should be text, found the number 5"]),
    "number in parquet": ("a.parquet", "numbers", [" row 1: 'text' should be text, found the number 0"]),
    "missing column": ("a.csv", b"instruction,answer\na,b\n", [":2: has 'instruction' but lacks 'output'"]),
    "key twice": (
        "a.jsonl",
        GOOD + b'{"text": "a", "text": "b"}\n',
        [":2: not JSON that can be read (the key 'text' stands twice"],
    ),
    "array in jsonl": ("a.jsonl", b'[{"text": "a"}]', [":1: expected an object, found an array; write the elements"]),
    "array over lines": (
        "a.jsonl",
        b'[\n{"text": "a"}\n]',
        ["an array over several lines", "give it the ending .json"],
    ),
    "object over lines": (
        "a.jsonl",
        b'{\n"text": "a"\n}',
        ["an object over several lines", "give it the ending .json"],
    ),
    "truncated json": (
        "a.json",
        b'[\n{"text": "a"},\n{"text": "b',
        [":3: not JSON (Unterminated string", "nothing after it"],
    ),
    "last comma": ("a.json", b'[{"text": "a"},\n]', [":2: not JSON (Comma before the end of the array in column 1)"]),
    "comma forgotten": ("a.json", b'[{"text": "a"}\n{"text": "b"}]', [":2: not JSON (Expecting ','"]),
    "more than json": ("a.json", b'[{"text": "a"}]\nx', [":2: not JSON (Extra data in column 1)"]),
    "two lists": (
        "a.json",
        b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        ["2 lists of objects, 'train' and 'test'"],
    ),
    "number in an array": ("a.json", b'[{"text": "a"},\n7]', [":2: expected an object, found the number 7"]),
    "bad line of jsonl in json": ("a.json", GOOD + b"{'text'}\n", [":2: not JSON (Expecting property name"]),
    "truncated gzip": (
        "a.jsonl.gz",
        gzip.compress(GOOD + random.Random(0).randbytes(999))[:-200],
        ["damaged or cut short", "anew"],
    ),
    "truncated gzip json": (
        "a.json.gz",
        gzip.compress(b"[\n{},\n" + random.Random(0).randbytes(999))[:-200],
        ["cut short"],
    ),
    "no gzip": ("a.jsonl.gz", GOOD, ["damaged or cut short", "Not a gzipped file"]),
    "gzip by another name": ("a.jsonl", gzip.compress(GOOD), ["packed by gzip; give it the ending .jsonl.gz"]),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfd....", ["packed by zstd; unpack it: zstd -d"]),
    "zstd by name": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd....", ["found .zst; unpack it: zstd -d"]),
    "spreadsheet": ("a.xlsx", b"PK\x03\x04", ["found .xlsx; save the sheet as CSV"]),
    "spreadsheet by another name": ("a.csv", b"PK\x03\x04", ["a spreadsheet; unpack it, or save the sheet as CSV"]),
    "parquet by another name": ("a.jsonl", parquet_bytes(), ["a Parquet file; give it the ending .parquet"]),
    "truncated parquet": ("a.parquet", parquet_bytes()[:-50], ["as Parquet after row 0", "make it anew"]),
    "damaged parquet": ("a.parquet", b"PAR1" + b"\xff" * 300 + parquet_bytes()[304:], ["as Parquet after row 0"]),
    "no parquet": ("a.parquet", GOOD, ["as Parquet", "magic bytes"]),
    "columns twice": ("a.csv", b"text,id,text\na,1,b\n", ["columns 1 and 3 are both named 'text'", "or delete it"]),
    "columns twice in parquet": ("a.parquet", "twice", ["columns 1 and 2 are both named 'text'"]),
    "no names": ("a.csv", b"text,,\na,,\n", ["columns 2 and 3 have no name"]),
    "ragged": ("a.csv", CSV + b"one, two,3\n", [":3: has 3 fields, and the header 2; put a text that holds ','"]),
    "short row": ("a.csv", CSV + b"one\n", [":3: has 1 fields, and the header 2"]),
    "quote not closed": (
        "a.csv",
        CSV + b'"one,3\ntwo,4\n',
        [":3: a quote is opened in this row and never closed; nothing"],
    ),
    "quote within": (
        "a.csv",
        CSV + b'"he said "no"",3\n',
        [":3: text stands after a closing quote; write a quote within"],
    ),
    "old line ends": (
        "a.csv",
        b"text,note\rfine,1\r",
        ["a carriage return outside of quotes; let lines end in newlines"],
    ),
    "empty": ("a.jsonl", b"", ["holds no record; expected one JSON object a line"]),
    "empty csv": ("a.csv", b"", ["holds no record; expected rows, shaped {instruction"]),
    "header alone": ("a.csv", b"text\n", ["holds no record; expected rows"]),
    "empty array": ("a.json", b"[]", ["holds no record"]),
    "empty parquet": ("a.parquet", b"", ["as Parquet", "0 bytes"]),
    "blanks": ("a.jsonl", b" \n\t\n\n", ["holds no record"]),
    "blanks in csv": ("a.csv", b" \n\n", ["holds no record"]),
    "endless json": ("a.jsonl", b'{"a":' * 100_000, [":1: not JSON that can be read"]),
    "half a character": ("a.jsonl", b'{"text": "\\ud83d"}', [":1: 'text' holds U+D83D, one half of a surrogate pair"]),
}


def table(which: str) -> bytes:
    import pyarrow as pa

    return parquet_bytes(
        pa.table({"text": [0, 1]}) if which == "numbers" else pa.table([["a"], ["b"]], names=["text", "text"])
    )


def said_of(path, capfd) -> str:
    """What the command line says of a source that it refuses."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(lambda argv: print(len(read_records(*argv)), "records"), [str(path)])
    out, err = capfd.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_line_and_a_remedy(tmp_path, capfd, case):
    name, content, said = BROKEN[case]
    (tmp_path / name).write_bytes(table(content) if isinstance(content, str) else content)
    err = said_of(tmp_path / name, capfd)
    assert str(tmp_path / name) in err
    for part in said:
        assert part in err


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_file_that_unpacks_to_much_more_than_text_is_refused(tmp_path, capfd, monkeypatch, pack):
    monkeypatch.setattr(text_files, "SMALL", 2**20)
    suffix = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[pack]
    bomb = tmp_path / f"a.jsonl.{suffix}"
    bomb.write_bytes(pack(b'{"text": "a"}\n' * 2**19))
    assert f"{bomb} unpacks to more than 100 times its size of {bomb.stat().st_size:,} bytes" in said_of(bomb, capfd)
    bomb.write_bytes(pack(b'{"text": "a"}\n' * 2**14))  # as much of it, but little
    assert len(read_records(str(bomb))) == 2**14


def test_what_is_no_file_is_refused(tmp_path, capfd, monkeypatch):
    (tmp_path / "dangling.jsonl").symlink_to("nowhere.jsonl")
    assert "it is a link to nowhere.jsonl, which does not exist" in said_of(tmp_path / "dangling.jsonl", capfd)
    (tmp_path / "unreadable.jsonl").symlink_to("/proc/self/mem")  # to which even root's reading is refused
    assert "cannot read" in (said := said_of(tmp_path / "unreadable.jsonl", capfd)) and "Input/output error" in said
    (tmp_path / "folder").mkdir()
    assert "is a folder without .txt files; give a data file" in said_of(tmp_path / "folder", capfd)
    (tmp_path / "folder" / "train.csv").write_text("x")
    assert "has these data files; name those that are meant:\n  " in said_of(tmp_path / "folder", capfd)
    assert "has no split 'train'; leave @train out" in said_of(f"{tmp_path}/folder@train", capfd)
    monkeypatch.chdir(tmp_path)
    assert "no data file at folder/trian; check the path" in said_of("folder/trian", capfd)  # not asked for on the hub


def test_a_split_that_a_saved_data_set_has_not(tmp_path, capfd):
    both, plain = saved(tmp_path / "both", "train", "test"), saved(tmp_path / "plain")
    assert f"has several splits; name one of {both}@train, {both}@test" in said_of(both, capfd)
    assert "has no split 'tset' (did you mean 'test'?)" in said_of(f"{both}@tset", capfd)
    assert "is one split without a name" in said_of(f"{plain}@train", capfd)
    (plain / "state.json").write_text("{")
    assert "as a saved data set: " in said_of(plain, capfd)


def test_a_data_set_on_the_hub_without_a_network(capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    said = said_of("nobody/nothing-9:main@train", capfd)
    assert "no data file or folder at nobody/nothing-9:main, and as a data set on the hub it cannot be read: " in said
    assert "without a network, save it with save_to_disk" in said


READ_EACH = """
import sys
from bidora_jax.errors import InputError
from bidora_jax.data.sources.sources import read
for source in sys.argv[1:]:
    try:
        print([(row.place, row.value["text"]) for row in read(source)])
    except InputError as error:
        print(error)
"""


def test_a_data_set_on_the_hub_is_read_by_configuration_and_split_and_again_without_a_network(tmp_path):
    def lines(*asked: str, **environment: str) -> list[str]:
        env = os.environ | {"HF_HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"} | environment
        done = subprocess.run(
            [sys.executable, "-c", READ_EACH, *asked], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    with data_hub() as address:
        found = lines("org/name:main@test", "org/name:other", "org/name:main", "org/name:main@tset", "org/name:main@train[1:3]",
                      "org/name", "org/nane:main", HF_ENDPOINT=address, HF_HUB_OFFLINE="0")  # fmt: skip
    assert found[:5] == [
        "[('org/name:main@test row 1', 't')]",
        "[('org/name:other@train row 1', 'o')]",
        "org/name:main has several splits; name one of org/name:main@train, org/name:main@test",
        "org/name:main has no split 'tset' (did you mean 'test'?); name one of org/name:main@train, org/name:main@test",
        "[('org/name:main@train[1:3] row 1', 'm1'), ('org/name:main@train[1:3] row 2', 'm2')]",
    ]
    assert (
        "cannot be read: Config name is missing. Please pick one among the available configs: ['main', 'other']"
        in found[5]
    )
    assert "no data file or folder at org/nane:main, and as a data set on the hub it cannot be read: " in found[6]
    assert lines("org/name:main@test", HF_HUB_OFFLINE="1") == found[:1]


def test_a_pattern_stands_for_its_files_in_order(tmp_path, capfd):
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}')
    assert read_records(f"{tmp_path}/*.jsonl") == [{"text": "a"}, {"text": "b"}]
    assert f"no file matches {tmp_path}/*.csv; check the pattern" in said_of(f"{tmp_path}/*.csv", capfd)
    both = f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    assert f"give them one after the other, {both.replace(',', ' ')}" in said_of(both, capfd)
    (tmp_path / "[a].jsonl").write_text('{"text": "itself"}')
    assert read_records(f"{tmp_path}/[a].jsonl") == [{"text": "itself"}]


def test_all_bad_rows_of_all_sources_are_in_one_message(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"{}\n")
    (tmp_path / "b.csv").write_bytes(CSV + b"x\n")
    with pytest.raises(InputError) as refused:
        read_records([str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")])
    for part in ("2 of the 4 rows of", "a.jsonl:2: has none", "b.csv:3: has 1 fields"):
        assert part in str(refused.value)
    with pytest.raises(InputError, match=r"a\.jsonl is given twice"):
        read_records([str(tmp_path / "a.jsonl")] * 2)


# Long lines


@pytest.mark.parametrize("length", [19, 20, 21, 22, 1000])
def test_a_line_that_is_too_long_is_passed_over_and_named(tmp_path, length, monkeypatch):
    monkeypatch.setattr(text_files, "PIECE", 7)
    long = b'{"text": "%s"}' % (b"x" * (length - 12))
    path = tmp_path / "a"
    path.write_bytes(GOOD + long + b"\n" + GOOD + long)
    fits = length <= 20
    found = list(json_files.json_lines(path, longest=20))
    assert [isinstance(item, SourceRow) for item in found] == [True, fits, True, fits]
    assert [item.place[-2:] for item in found] == [":1", ":2", ":3", ":4"]
    assert fits or found[3].why == "longer than 20 bytes, more than a record can be; is the file one record a line?"
    path.write_bytes(b"text\nshort\n" + b"y" * length + b"\nshort\n")
    kinds = [type(item) for item in tables.delimited(path, ",", longest=20)]
    assert kinds == [SourceRow, SourceRow if fits else Fault, SourceRow]
    assert len(list(text_files.documents(path, longest=20))) == (1 if fits else 2)

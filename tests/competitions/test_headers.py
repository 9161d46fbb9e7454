"""competitions/headers.py, competitions/columns.py, competitions/files.py: id and target by the files' headers, and the tables as
they stand in the files."""

import competitions
import pytest
from competitions import TEST, TRAIN, table

from bidora_jax.competitions import files as competition_files
from bidora_jax.competitions import headers
from bidora_jax.competitions.columns import Chosen
from bidora_jax.errors import InputError

TEXT = "some words of a text"
NOTHING = Chosen()


def written(folder, train, test, sample=None, *, cells=None):
    """Files with these headers. A column's cells are its name and the row's number, unless `cells` has it."""
    cells = {"text": lambda n: f"{TEXT} {n}", "label": lambda n: n % 2, **(cells or {})}

    def rows(columns, count, start=0):
        return [
            [cells.get(name, lambda n, name=name: f"{name}{n}")(n) for name in columns]
            for n in range(start, start + count)
        ]

    table(folder / "train.csv", train, rows(train, TRAIN))
    table(folder / "test.csv", test, rows(test, TEST, TRAIN))
    if sample:
        table(folder / "sample_submission.csv", sample, rows(sample, TEST, TRAIN))
    return competition_files.read(folder)


def roles(folder, train, test, sample=None, chosen=NOTHING, cells=None):
    found = headers.find(written(folder, train.split(), test.split(), sample and sample.split(), cells=cells), chosen)
    return found.id, found.targets, found.outputs


def test_the_target_is_not_the_last_column(tmp_path):
    assert roles(tmp_path, "label id text", "id text") == ("id", ("label",), ("label",))
    assert roles(tmp_path, "label id text", "id text", "id label") == ("id", ("label",), ("label",))


def test_the_text_is_never_the_id(tmp_path):
    """Every text differs, and comes first."""
    assert roles(tmp_path, "text code label", "text code") == ("code", ("label",), ("label",))
    with pytest.raises(InputError, match=r"has no id.*--id-column none"):
        roles(tmp_path, "text title label", "text title", cells={"title": lambda n: f"a title {n}"})


def test_train_may_lack_the_id(tmp_path):
    assert roles(tmp_path, "text label", "id text") == ("id", ("label",), ("label",))
    assert roles(tmp_path, "text label", "id text", "id label") == ("id", ("label",), ("label",))


def test_a_target_that_test_has_empty_or_everywhere_the_same_is_the_target(tmp_path):
    found = ("id", ("label",), ("label",))
    for empty in ("", "0"):
        cells = {"label": lambda n, empty=empty: n % 2 if n < TRAIN else empty}
        assert roles(tmp_path, "id text label", "id text label", "id label", cells=cells) == found
    assert (
        roles(tmp_path, "id text label", "id text label", cells={"label": lambda n: n % 2 if n < TRAIN else ""})
        == found
    )


def test_of_several_columns_of_the_sample_the_first_with_differing_values_is_the_id(tmp_path):
    cells = {"user": lambda n: n % 5}
    assert roles(tmp_path, "user id text label", "user id text", "user id label", cells=cells) == (
        "id",
        ("label",),
        ("label",),
    )


def test_the_sample_chooses_among_what_test_lacks(tmp_path):
    cells = {"error": lambda n: 0.5}
    assert roles(tmp_path, "id text error label", "id text", "id label", cells=cells) == ("id", ("label",), ("label",))


def test_without_a_sample_a_target_is_known_by_its_name_and_columns_of_numbers_are_several(tmp_path):
    cells = {"error": lambda n: 0.5}
    assert roles(tmp_path, "id text error label", "id text", cells=cells)[1] == ("label",)
    cells = {"content": lambda n: n / 7, "wording": lambda n: n / 9}
    assert roles(tmp_path, "id text content wording", "id text", cells=cells)[1] == ("content", "wording")
    with pytest.raises(
        InputError, match=r"2 columns that test.csv lacks, and not all are numbers: 'kind', 'wording'.*--target"
    ):
        roles(tmp_path, "id text kind wording", "id text", cells=cells)


def test_an_index_of_pandas_is_the_id_where_nothing_else_is(tmp_path):
    cells = {"Unnamed:_0": lambda n: n}
    found = written(
        tmp_path, ["Unnamed: 0", "text", "label"], ["Unnamed: 0", "text"], cells={"Unnamed: 0": lambda n: n, **cells}
    )
    assert headers.find(found, NOTHING).id == "Unnamed: 0"


def test_classes_may_stand_behind_the_columns_name(tmp_path):
    cells = {"Status": lambda n: ("C", "CL", "D")[n % 3]}
    files = written(
        tmp_path, ["id", "text", "Status"], ["id", "text"], ["id", "Status_C", "Status_CL", "Status_D"], cells=cells
    )
    found = headers.find(files, NOTHING)
    assert found.by_class and found.targets == ("Status",) and found.outputs == ("Status_C", "Status_CL", "Status_D")


def test_flags_decide(tmp_path):
    chosen = Chosen("code", ("kind",))
    cells = {"kind": lambda n: n % 3}
    assert roles(tmp_path, "id code text kind label", "id code text", chosen=chosen, cells=cells) == (
        "code",
        ("kind",),
        ("kind",),
    )
    assert roles(tmp_path, "text label", "text", chosen=Chosen("none")) == (None, ("label",), ("label",))
    chosen = Chosen("", ("label",))
    assert roles(tmp_path, "id text other label", "id text", "id prediction", chosen)[1:] == (
        ("label",),
        ("prediction",),
    )


# Files


def test_cells_are_the_texts_of_the_file(tmp_path):
    table(
        tmp_path / "train.csv",
        ("id", "text", "label"),
        [("007", "NA", "1.0"), ("008", " null, or so ", " ")],
        before=competitions.BOM,
    )
    table(tmp_path / "test.tsv", ("id", "text"), [("009", 'a "quoted"')], delimiter="\t")
    files = competition_files.read(tmp_path)
    assert files.train.columns == ("id", "text", "label") and files.sample is None
    assert files.train.rows == [
        {"id": "007", "text": "NA", "label": "1.0"},
        {"id": "008", "text": " null, or so ", "label": " "},
    ]
    assert files.test.rows == [{"id": "009", "text": 'a "quoted"'}]
    assert files.train.cells("label") == ["1.0"]


@pytest.mark.parametrize(
    "name", ["sample_submission.csv", "sampleSubmission.csv", "SampleSubmission.tsv", "gender_submission.csv"]
)
def test_names_of_the_sample(tmp_path, name):
    competitions.simple(tmp_path, [0, 1], 0)
    (tmp_path / "sample_submission.csv").unlink()
    for own in ("submission.csv", "submission_encoder.csv"):
        (tmp_path / own).write_text("id,label\n1,1\n")
    table(tmp_path / name, ("id", "label"), [(1, 0)], delimiter="\t" if name.endswith("tsv") else ",")
    sample = competition_files.read(tmp_path).sample
    assert sample is not None and sample.path.name == name


def test_the_three_files_are_found_whatever_their_letters_case_and_divided_by_semicolons(tmp_path):
    table(tmp_path / "Train.CSV", ("id", "text", "label"), [(1, "a, b", 0)], delimiter=";")
    table(tmp_path / "TEST.csv", ("id", "text"), [(2, "c")])
    assert competition_files.read(tmp_path).train.rows == [{"id": "1", "text": "a, b", "label": "0"}]

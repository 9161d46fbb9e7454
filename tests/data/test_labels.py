"""Labels as the file labels.json holds them."""

import json

import pytest

from bidora_jax.data.labels import Labels
from bidora_jax.errors import InputError


@pytest.mark.parametrize(
    "labels",
    [
        Labels("classification", ("no", "1", "Größe")),
        Labels("regression", ("score", "width"), (2.5, 0.1), (1.25, 3.0)),
        Labels("tokens", ("O", "B-PER", "I-PER"), text_columns=("words",)),
    ],
)
def test_labels_come_back_from_their_file(labels):
    found = Labels.from_json(json.loads(json.dumps(labels.to_json())))
    assert found == labels and found.text_columns == labels.text_columns
    assert labels.count == len(labels.names)


def test_only_what_a_run_writes_is_read():
    def refused(value) -> str:
        with pytest.raises(InputError) as error:
            Labels.from_json(value, "adapter/labels.json")
        return str(error.value)

    types = "should be an object whose 'type' is one of classification, multilabel, regression, tokens"
    assert refused([]) == f"adapter/labels.json {types}; take the file that the run wrote"
    assert types in refused({"type": "seq", "names": ["a"]})
    assert "should have 'names', a list of texts" in refused({"type": "tokens", "names": [0, 1]})
    assert "has 'a' twice in 'names'" in refused({"type": "tokens", "names": ["a", "b", "a"]})
    numbers = {"type": "regression", "names": ["a", "b"], "mean": [0.0, 1.0], "std": [1.0]}
    assert "should have 'std', a number for each of its 2 names" in refused(numbers)


def test_words_without_a_token_are_outside():
    assert Labels("tokens", ("B-X", "O", "I-X")).outside == 1
    assert Labels("tokens", ("NN", "VB")).outside == -1

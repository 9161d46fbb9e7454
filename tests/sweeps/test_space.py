"""sweeps/space.py: what --over means, and what it refuses."""

import pytest

from bidora_jax.errors import InputError
from bidora_jax.sweeps import space


def test_ranges_and_choices_have_the_types_of_their_settings():
    rate, rank, method, modules, seen = space.read(
        (
            "inner.learning_rate log 1e-5 1e-3", "adapter.rank uniform 2 16", "adapter.method lora bidora",
            """adapter.target_modules '["q_proj"]' all-linear""", "data.packing true false",
        ),
        "",
    )  # fmt: skip
    assert (rate.scale, rate.low, rate.high, rate.whole) == ("log", 1e-5, 1e-3, False)
    assert (rank.scale, rank.ends, rank.whole) == ("uniform", (2, 16), True)
    assert (method.labels, method.values) == (("lora", "bidora"),) * 2
    assert modules.values == (["q_proj"], "all-linear")
    assert seen.values == (True, False)
    assert space.values([rate, modules], {"inner.learning_rate": 3e-4, "adapter.target_modules": '["q_proj"]'}) == {
        "inner.learning_rate": 3e-4,
        "adapter.target_modules": ["q_proj"],
    }


def test_python_writes_an_axis_as_the_command_line_does():
    over = {"inner.learning_rate": ("log", 1e-5, 1e-3), "adapter.target_modules": (["q_proj", "v_proj"], "all-linear")}
    assert space.written(over) == (
        "inner.learning_rate log 1e-05 0.001",
        """adapter.target_modules '["q_proj", "v_proj"]' all-linear""",
    )
    assert space.read(space.written(over), "")[1].values == (["q_proj", "v_proj"], "all-linear")


def test_a_grid_has_every_point_once_the_last_axis_fastest():
    axes = space.read(("adapter.rank 2 5 7", "adapter.method lora dora"), "")
    points = [tuple(point.values()) for point in space.grid(axes)]
    assert points == [(rank, method) for rank in ("2", "5", "7") for method in ("lora", "dora")]


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ((), "a sweep needs what it varies"),
        (("inner.learning_rat log 1 2",), r"no such setting \(did you mean 'inner.learning_rate'\?\)"),
        (("inner.learning_rate",), "has no values"),
        (("inner.learning_rate log 1e-3 1e-5",), "the first number must be below the second, found 1e-3 1e-5"),
        (("inner.learning_rate log 1e-5",), "needs two numbers, the lowest and the highest, found 1e-5"),
        (("inner.learning_rate log 0 1",), "log needs numbers above 0, found 0"),
        (("inner.learning_rate uniform 0 nan",), "the first number must be below the second"),
        (("adapter.rank uniform 1.5 4",), "needs two whole numbers"),
        (("adapter.method lora adalora",), r"adalora: adapter.method: expected one of 'lora', 'dora', 'bidora'"),
        (("adapter.rank 2 many",), "adapter.rank: expected an integer"),
        (("adapter.rank 2 2",), "has a value twice"),
        (("adapter.rank 2 3", "adapter.rank 5 7"), "adapter.rank is there twice"),
        (("seed 1 2",), "--seeds says how many"),
        (("data.val_file a b",), "judged on the same records"),
    ],
)  # fmt: skip
def test_what_is_no_axis_is_refused(over, says):
    with pytest.raises(InputError, match=says):
        space.read(over, "")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as refused:
        space.read(("adapter.rank", "seed 1 2", "adapter.method lora"), "")
    assert str(refused.value).count("--over") == 2

"""training/compiled_steps.py: steps are compiled from shapes, once for each padded length, and run without being traced again."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.training.compiled_steps import CompiledStep, compile_all, in_words, shapes, upcoming


def blank(length):
    return {"tokens": np.zeros((2, 3, length), np.int32)}


def program(traced, lengths=(16, 48)):
    def step(state, frozen, train, val):
        traced.append(train["tokens"].shape)
        total = frozen * jnp.sum(train["tokens"]) - jnp.sum(val["tokens"])
        return {"w": state["w"] + total}, {"total": total}

    return CompiledStep("", step, jnp.float32(3), lambda length: [blank(length)] * 2, lengths)


def test_a_step_runs_what_was_compiled_from_shapes():
    traced, state = [], {"w": jnp.arange(5.0)}
    compiled = program(traced)
    for length in (48, 16, 48):
        compiled.compile(shapes(state), length)
    assert traced == [(2, 3, 48), (2, 3, 16)]
    first, metrics = compiled(state, *({"tokens": np.full((2, 3, 16), value, np.int32)} for value in (2, 7)))
    assert state["w"].is_deleted()
    np.testing.assert_array_equal(first["w"], np.arange(5.0) + 96 * (3 * 2 - 7))
    second, _ = compiled(first, blank(48), blank(48))
    np.testing.assert_array_equal(second["w"], np.arange(5.0) + metrics["total"])
    assert len(traced) == 2
    assert not compiled.frozen.is_deleted()


def test_the_number_of_compilations_is_bounded_by_the_lengths():
    with pytest.raises(AssertionError, match=r"a length of 32, expected one of \(16, 48\)"):
        program([]).compile({"w": jax.ShapeDtypeStruct((5,), jnp.float32)}, 32)


def test_only_what_a_phase_will_meet_is_compiled():
    upper, lower = program([]), program([], (16,))
    plan = [[(lower, 16), (upper, 48)]] * 3 + [[(lower, 16), (upper, 16)]]
    asked = []

    def step_shapes(number):
        asked.append(number)
        return plan[number]

    assert upcoming(step_shapes, 0, 3) == [(lower, 16), (upper, 48)]
    assert upcoming(step_shapes, 3, 4) == [(lower, 16), (upper, 16)]
    asked.clear()
    assert upcoming(lambda number: step_shapes(3 - number), 0, 10**9) == [(lower, 16), (upper, 16), (upper, 48)]
    assert asked == [3, 2]  # all lengths were met
    assert upcoming(step_shapes, 4, 4) == []


def test_programs_are_compiled_at_once_while_the_next_is_traced(monkeypatch):
    """The first compilation waits until the last program is traced: one after the other they would never end."""
    traced, order = [], []
    compiled = program(traced, (16, 32, 48))
    state, compiling = shapes({"w": jnp.arange(5.0)}), jax.stages.Lowered.compile

    def slow(lowered):
        first, deadline = not order, time.monotonic() + 60
        order.append(threading.current_thread().name)
        while first and len(traced) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return compiling(lowered)

    monkeypatch.setattr(jax.stages.Lowered, "compile", slow)
    left = [(compiled, length) for length in (32, 16, 48)]
    assert in_words(left) == "T = 32, T = 16, T = 48"
    assert set(compile_all(left, state)) == set(left)
    assert all(name.startswith("compile") for name in order)
    first, _ = compiled({"w": jnp.arange(5.0)}, blank(16), blank(16))
    np.testing.assert_array_equal(first["w"], np.arange(5.0))
    assert len(traced) == 3 and all(map(compiled.has, (16, 32, 48)))


def test_what_the_compiler_refuses_is_raised_here(monkeypatch):
    def refuse(lowered):
        raise MemoryError("no room for the program")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    compiled = program([])
    with pytest.raises(MemoryError, match="no room for the program"):
        list(compile_all([(compiled, 16), (compiled, 48)], {"w": jax.ShapeDtypeStruct((5,), jnp.float32)}))
    assert not compiled.has(16)

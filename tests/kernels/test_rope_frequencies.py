"""kernels/rope_frequencies.py: its formulas where they are known by hand; oracle: models/architectures/test_rope.py."""

import math

import numpy as np
import pytest

from bidora_jax.kernels import rope_frequencies


def test_frequencies_are_a_geometric_row():
    np.testing.assert_allclose(rope_frequencies.frequencies(6, 1000.0), [1.0, 0.1, 0.01], rtol=1e-12)


def test_a_pair_keeps_its_share_of_its_frequency():
    theta = np.array([8.0, 4.0, 2.0])
    np.testing.assert_allclose(rope_frequencies.stretched(theta, np.array([1.0, 0.5, 0.0]), 4.0), [8.0, 2.5, 0.5])
    np.testing.assert_allclose(rope_frequencies.stretched(theta, 0.0, 4.0), theta / 4)


def test_llama3_keeps_what_turns_often():
    turns = np.array([0.3, 1.0, 2.0, 4.0, 9.0])  # over 100 tokens
    kept = rope_frequencies.kept_by_turns(turns * 2 * math.pi / 100, length=100, slow=1.0, fast=4.0)
    np.testing.assert_allclose(kept, [0, 0, 1 / 3, 1, 1], atol=1e-12)


@pytest.mark.parametrize("whole", [True, False])
def test_yarn_keeps_the_first_pairs(whole):
    # With base e^10 and h = 20, pair i turns length·e^(−i)/2π times: pair 2.5 `fast` and pair 6.5 `slow` times.
    length = 5000
    fast, slow = (length * math.exp(-i) / (2 * math.pi) for i in (2.5, 6.5))
    kept = rope_frequencies.kept_by_index(20, math.exp(10), length=length, slow=slow, fast=fast, whole=whole)
    low, high = (2, 7) if whole else (2.5, 6.5)
    expected = [min(1, max(0, (high - i) / (high - low))) for i in range(10)]
    np.testing.assert_allclose(kept, expected, atol=1e-12)


def test_the_gain_grows_with_the_logarithm_of_the_factor():
    assert rope_frequencies.yarn_gain(0.5) == rope_frequencies.yarn_gain(1.0) == 1
    assert rope_frequencies.yarn_gain(math.e**2) == pytest.approx(1.2)
    assert rope_frequencies.yarn_gain(math.e**2, 0.5) == pytest.approx(1.1)

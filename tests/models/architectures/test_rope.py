"""models/architectures/rope.py: transformers is the oracle for the angles of every stretch, and what is not one is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from bidora_jax.kernels.rope import rope_angles
from bidora_jax.models.architectures import rope
from bidora_jax.models.architectures.rope import RopeScaling

CONTEXT, HEAD_DIM, BASE = 512, 22, 5000.0
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def _angles(settings, positions):
    theta, gain = rope.frequencies(HEAD_DIM, BASE, rope.read(settings, CONTEXT))
    return rope_angles(jnp.asarray(positions), theta, gain=gain, dtype=jnp.float32)


@pytest.mark.torch
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3 | {"original_max_position_embeddings": 100},
        LLAMA3 | {"high_freq_factor": 1.5},
        LLAMA3 | {"low_freq_factor": 3, "high_freq_factor": 40, "original_max_position_embeddings": 511},
        YARN,
        YARN | {"factor": None},
        YARN | {"factor": 1.0},
        YARN | {"original_max_position_embeddings": None},
        YARN | {"beta_fast": 9, "beta_slow": 2},
        YARN | {"beta_fast": None, "beta_slow": 0.01},
        YARN | {"truncate": False},
        YARN | {"attention_factor": 0.7},
        YARN | {"mscale": 0.8, "mscale_all_dim": 0.3},
        YARN | {"mscale": 0.8},
        YARN | {"beta_fast": 1000, "beta_slow": 900},  # both indices are cut at 0
    ],
)
def test_angles_are_those_of_transformers(settings):
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    given = {key: value for key, value in settings.items() if value is not None or key == "factor"}
    config = LlamaConfig(
        hidden_size=48, num_attention_heads=6, head_dim=HEAD_DIM, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": BASE} | given,
    )  # fmt: skip
    positions = np.array([0, 1, 2, 7, 99, 128, 500, 511, 2000])
    x, ids = torch.zeros(1, 1, 1), torch.from_numpy(positions)[None]
    expected = [angles[0].numpy() for angles in LlamaRotaryEmbedding(config)(x, ids)]
    # Theirs are float32: at position 2000 the last bit of a frequency is worth 2e-4.
    for found, theirs in zip(_angles(settings, positions), expected, strict=True):
        np.testing.assert_allclose(found[:-1], theirs[:-1], atol=1e-4)
        np.testing.assert_allclose(found[-1], theirs[-1], atol=5e-4)


def test_a_stretch_is_none_for_the_default_rotation():
    assert rope.read({"rope_type": "default", "factor": 4.0}, CONTEXT) is None
    assert rope.read({"rope_theta": 1e4}, CONTEXT) is None
    assert rope.read({"type": "linear", "factor": 4}, CONTEXT) == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope scaling 'dynamic' (computed are default, linear, llama3, yarn)"),
        ({"rope_type": "longrope"}, "rope scaling 'longrope' (computed are default, linear, llama3, yarn)"),
        ({"rope_type": None}, "rope scaling None (computed are default, linear, llama3, yarn)"),
        ({"type": "linear"}, "rope scaling 'linear': factor: expected a positive number, found no such key"),
        ({"type": "linear", "factor": -1}, "rope scaling 'linear': factor: expected a positive number, found -1"),
        ({"type": "linear", "factor": True}, "rope scaling 'linear': factor: expected a positive number, found True"),
        (LLAMA3 | {"low_freq_factor": "1"}, "low_freq_factor: expected a positive number, found '1'"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor 1.0 is not above low_freq_factor 1.0"),
        (YARN | {"beta_slow": 40}, "beta_fast 32 is not above beta_slow 40"),
        (YARN | {"truncate": 1}, "truncate: expected true or false, found 1"),
        (YARN | {"attention_factor": "1"}, "attention_factor: expected a positive number, found '1'"),
        (
            YARN | {"original_max_position_embeddings": 0},
            "original_max_position_embeddings: expected a positive number",
        ),
        ({"rope_type": "yarn"}, "rope scaling 'yarn': factor: expected a positive number, found no such key"),
    ],
)
def test_what_cannot_be_computed_is_said(settings, message):
    (found,) = rope.problems(settings, CONTEXT)
    assert message in found


def test_everything_that_is_wrong_is_said():
    found = rope.problems({"rope_type": "llama3", "low_freq_factor": "1"}, CONTEXT)
    assert [line.split(": ")[1] for line in found] == ["factor", "low_freq_factor", "high_freq_factor"]


def test_good_settings_have_no_problems():
    for settings in ({}, LLAMA3, YARN, YARN | {"factor": None}, {"type": "linear", "factor": 3}):
        assert rope.problems(settings, CONTEXT) == []

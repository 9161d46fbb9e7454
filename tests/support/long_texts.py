"""What the tests of families with long texts share: hidden states, how near they must be, and transformers' classifiers."""

import jax
import numpy as np

from bidora_jax.models import encoder
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_config

TOLERANCE = 1e-5  # relative to the largest, in float32


def hidden(config, base, batch, **how):
    compute = Compute(**how)
    return np.asarray(jax.jit(lambda base: encoder.hidden(config, None, compute, base, ({}, {}), batch))(base))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def far(found, expected) -> bool:
    return bool(np.abs(found - expected).max() > 5 * TOLERANCE * np.abs(expected).max())


def saved(folders, usual: str, **sizes):
    """A function of a kind, else the `usual` one, and changes of its `sizes`. It gives transformers' classifier of that, and its
    architecture and base as they are read here. `folders` makes a folder."""
    made = {}

    def of(kind=usual, **changes):
        key = kind, str(changes)
        if key not in made:
            import encoder_oracle

            model, folder = encoder_oracle.random(kind, "sequence", **sizes | changes), folders()
            model.save_pretrained(folder)
            config = hf_config.read_config(folder)
            made[key] = model, config, hf.load_base(folder, config)
        return made[key]

    return of

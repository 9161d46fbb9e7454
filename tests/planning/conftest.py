import jax.numpy as jnp
import pytest
from footprints import DEEP, MODEL, counted

from bidora_jax.models import quantization


@pytest.fixture(scope="package")
def abstract():
    """Shapes of the base."""
    return quantization.base_shapes(MODEL, DEEP, jnp.float32)


@pytest.fixture(scope="package")
def shapes_alone(abstract):
    """(footprint, state) counted from shapes alone."""
    return counted(abstract)

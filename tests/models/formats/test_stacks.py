"""models/formats/stacks.py: a base that is read over a mesh is the base that is read whole, each device with its rows."""

import os
import subprocess
import sys

import meshes
import numpy as np
import pytest
from runs import ROOT

from bidora_jax.errors import InputError
from bidora_jax.models.formats import safetensors_file

READ = """
import sys
import jax
import numpy as np
from bidora_jax.models.formats import hf, hf_config, stacks
from bidora_jax.models.settings import ModelConfig
from bidora_jax.models.spread import Placement, Spread, mesh_over

folder, dtype, form = sys.argv[1:]
stacks.READ_BYTES = 1000  # of an embedding some rows at a time
mesh = mesh_over(jax.devices(), 2, 2)
settings = ModelConfig(dtype=dtype, quantization=form)
architecture = hf_config.read_decoder(folder)
whole = hf.load(settings, folder, architecture)
cut = hf.load(settings, folder, architecture, over=Placement(mesh))
assert jax.tree.structure(whole) == jax.tree.structure(cut)
halves = 0
for one, other, laid in zip(*map(jax.tree.leaves, (whole, cut, Spread(mesh, whole).place(whole))), strict=True):
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    assert other.dtype == one.dtype and other.sharding == laid.sharding
    halves += 2 * other.addressable_data(0).nbytes == other.nbytes
print(halves)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "form", "cut"),
    [("float32", "none", 8), ("bfloat16", "none", 8), ("float32", "int8", 15), ("bfloat16", "nf4", 11)],
)
def test_what_is_read_over_a_mesh_is_what_is_read_whole(model_folder, dtype, form, cut):
    """The embedding and seven weights a layer; of a quantised one the codes, and their absmax where its blocks divide."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(model_folder), dtype, form],
        cwd=ROOT, env=os.environ | meshes.environment_of_four(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == cut


def test_rows_of_a_tensor_are_read_alone(tmp_path):
    tensor = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float32)
    safetensors_file.write(tmp_path / "x.safetensors", {"a": tensor[0], "x": tensor}, [tensor[0], tensor])
    entry = safetensors_file.read_header(tmp_path / "x.safetensors")["x"]
    for dtype in (np.float32, np.float16):
        rows = np.empty((2, 3, 5), dtype)
        safetensors_file.read_into(entry, rows, 4)
        np.testing.assert_array_equal(rows, tensor[4:6].astype(dtype))
    with pytest.raises(InputError, match="ended after"):
        safetensors_file.read_into(entry, np.empty((2, 3, 5), np.float32), 6)

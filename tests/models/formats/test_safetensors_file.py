"""The safetensors package is the oracle, in both directions; damaged files are refused by name."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from bidora_jax.errors import InputError
from bidora_jax.models.formats import safetensors_file

SHAPES = {"b": (5, 7), "a": (3,), "c": (2, 3, 11)}


def _tensors(dtype):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", safetensors_file.DTYPES.values())
def test_reads_what_the_package_writes(tmp_path, dtype):
    tensors = {name: (9 * tensor).astype(dtype) for name, tensor in _tensors("f4").items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = safetensors_file.read_header(tmp_path / "x.safetensors")
    assert entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        out = np.empty(tensor.shape, dtype)
        safetensors_file.read_into(entries[name], out)
        np.testing.assert_array_equal(out, tensor)
        np.testing.assert_array_equal(safetensors_file.read(entries[name]), tensor)


@pytest.mark.parametrize(
    "dtypes", [[dtype] * 3 for dtype in safetensors_file.DTYPES.values()] + [["uint8", "f4", "int8"]]
)
def test_the_package_reads_what_is_written(tmp_path, dtypes):
    tensors = {name: (9 * a).astype(dtype) for (name, a), dtype in zip(_tensors("f4").items(), dtypes, strict=True)}
    safetensors_file.write(tmp_path / "x.safetensors", tensors, iter(tensors.values()))
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(file.get_tensor(name), tensor)


def test_reading_casts_to_the_dtype_of_the_array(tmp_path):
    tensor = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    out = np.empty((3, 5), jnp.bfloat16)
    safetensors_file.read_into(safetensors_file.read_header(tmp_path / "x.safetensors")["x"], out)
    np.testing.assert_array_equal(out, tensor.astype(jnp.bfloat16))


def test_a_tensor_that_was_not_announced_is_a_bug(tmp_path):
    specs = {"x": np.zeros((3, 5), np.float32)}
    for wrong in (np.zeros((5, 3), np.float32), np.zeros((3, 5), np.float16)):
        with pytest.raises(ValueError, match="announced"):
            safetensors_file.write(tmp_path / "x", specs, [wrong])


def _cut(content: bytes) -> bytes:
    return content[:-1]


def _longer(content: bytes) -> bytes:
    return content + b"\0"


def _no_json(content: bytes) -> bytes:
    return content[:8] + b"?" + content[9:]


def _other_shape(content: bytes) -> bytes:
    return content.replace(b"[5,7]", b"[5,8]")


def _a_list(content: bytes) -> bytes:
    return (2).to_bytes(8, "little") + b"[]"


def _header(**changed):
    """The file with changed fields of its first tensor."""

    def damage(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header[min(header)] |= changed
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return damage


def _deep(content: bytes) -> bytes:
    text = b"[" * 100_000
    return len(text).to_bytes(8, "little") + text + content


WRONG_HEADERS = [_deep, *(_header(**one) for one in (
    {"dtype": 5}, {"dtype": "X", "shape": [3, -1]}, {"shape": [3.0]}, {"shape": [True]}, {"shape": [10**30]}
))]  # fmt: skip


@pytest.mark.parametrize("damage", WRONG_HEADERS)
def test_a_header_of_wrong_types_is_refused_by_name(tmp_path, damage):
    test_a_damaged_file_is_refused_by_name(tmp_path, damage)


@pytest.mark.parametrize(("begin", "said"), [(0, "b lies over the one before it"), (16, "leaves bytes before it")])
def test_tensors_that_overlap_or_leave_a_hole_are_refused(tmp_path, begin, said):
    """A norm would read another tensor's bytes."""
    file = tmp_path / "model.safetensors"
    save_file({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}, file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["b"]["data_offsets"] = [begin, begin + 12]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 28)
    with pytest.raises(InputError, match=f"the tensor .*{said}.*fetch it again"):
        safetensors_file.read_header(file)


@pytest.mark.parametrize(
    "damage",
    [_cut, _longer, _no_json, _other_shape, _a_list, lambda content: content[:30], lambda _: b"", lambda _: b"PK" * 9],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    save_file(_tensors(np.float32), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors.*fetch it again"):
        safetensors_file.read_header(file)


def test_a_pointer_of_git_lfs_says_what_it_is(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:782af95f\nsize 800116456\n")
    with pytest.raises(InputError, match=r"model\.safetensors is a pointer of Git LFS .*git lfs pull"):
        safetensors_file.read_header(file)

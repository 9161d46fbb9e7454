"""Checkpoints: bit-equal round trips, kills and full disks that leave the last one whole, damage that is noticed."""

import errno
import functools
import gc
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bidora_jax
from bidora_jax.errors import InputError
from bidora_jax.training.checkpoint import Checkpoints
from bidora_jax.training.state import BilevelState, init_state

ROOT = Path(bidora_jax.__file__).parents[1]


@functools.partial(jax.jit, static_argnames="rank")
def make_state(seed: int = 0, rank: int = 5) -> BilevelState:
    """A state after one AdamW step with clipping and a schedule, its magnitude in bfloat16."""
    key = jax.random.key(seed)
    direction = {"mlp": {"A": jax.random.normal(key, (3, rank, 7)), "B": jnp.full((3, 11, rank), 0.1)}}
    magnitude = {"mlp": {"m": jax.random.normal(key, (3, 11)).astype(jnp.bfloat16)}}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 13)))
    state = init_state(direction, magnitude, inner, optax.sgd(0.1, momentum=0.9), key)
    updates, inner_opt = inner.update(direction, state.inner_opt, direction)
    return state._replace(
        step=state.step + 1, direction=optax.apply_updates(direction, updates), inner_opt=inner_opt, key=key
    )


def assert_bit_equal(found, wanted) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.dtype, one.shape, type(one)) == (other.dtype, other.shape, type(other))
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder with the checkpoints 3 and 7."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(3, make_state(3), {"phase": "search"})
        checkpoints.save(7, make_state(7), {"phase": "retrain"})
    return tmp_path / "checkpoints"


# Round trip


def test_a_state_comes_back_bit_equal_in_another_manager(saved):
    info = {"phase": "search", "step": 11, "best": float("inf"), "history": [1.5, None]}
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(11, make_state(11), info)
    with Checkpoints(saved, keep=2) as checkpoints:
        state, restored_info = checkpoints.restore(11, make_state(0))
    assert_bit_equal(state, make_state(11))
    assert restored_info == info


def test_the_shape_of_a_state_is_enough_to_restore_it(saved):
    with Checkpoints(saved, keep=None) as checkpoints:
        state, _ = checkpoints.restore(7, jax.eval_shape(make_state))
    assert_bit_equal(state, make_state(7))


def test_other_dtypes_keys_and_numpy_arrays_come_back_as_they_were(tmp_path):
    state = {
        "batch of keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
        "int8": jnp.arange(-3, 4, dtype=jnp.int8),
        "bool": jnp.array([True, False]),
        "nan": jnp.array([jnp.nan, -0.0, jnp.inf]),
        "float64": np.array([1 / 3, 2 / 3]),
    }
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(0, state, {})
        assert_bit_equal(checkpoints.restore(0, state)[0], state)


def test_a_restored_state_can_be_donated_and_goes_on_as_the_original(saved):
    with Checkpoints(saved, keep=None) as checkpoints:
        state, _ = checkpoints.restore(7, make_state(0))
    go_on = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state._replace(key=state.step)), donate_argnums=0)
    assert_bit_equal(go_on(state), go_on(make_state(7)))


def test_the_last_ones_are_kept_and_latest_knows_them(saved, tmp_path):
    with Checkpoints(saved, keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        checkpoints.save(8, make_state(), {})
        assert sorted(os.listdir(saved)) == ["7", "8"]
        assert checkpoints.latest() == 8
    assert Checkpoints(tmp_path / "none", keep=2).latest() is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_step_that_does_not_grow_is_an_error(saved, step):
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(ValueError, match="must grow"):
        checkpoints.save(step, make_state(), {})
    with Checkpoints(saved, keep=None) as checkpoints:
        assert_bit_equal(checkpoints.restore(7, make_state())[0], make_state(7))


# What does not fit


def test_all_leaves_that_differ_are_listed(saved):
    other = jax.eval_shape(functools.partial(make_state, rank=2))
    other = other._replace(
        magnitude={"mlp": {"m": jnp.zeros((3, 11))}}, outer_opt=(), key=jax.random.key(1, impl="rbg")
    )
    with Checkpoints(saved, keep=None) as checkpoints, pytest.raises(InputError) as refused:
        checkpoints.restore(7, other)
    message = str(refused.value)
    assert "resume with the configuration it was made with" in message
    assert "direction.mlp.A: float32 (3, 5, 7) in the checkpoint, float32 (3, 2, 7) in this run" in message
    assert "magnitude.mlp.m: bfloat16 (3, 11) in the checkpoint, float32 (3, 11) in this run" in message
    assert "outer_opt.0.trace.mlp.m: in the checkpoint, not in this run" in message
    assert "key: key<fry> () in the checkpoint, key<rbg> () in this run" in message


def test_a_leaf_that_the_checkpoint_lacks_is_named(saved):
    with Checkpoints(saved, keep=None) as checkpoints, pytest.raises(InputError, match=r"direction\.new: not in the"):
        checkpoints.restore(7, make_state()._replace(direction={"new": jnp.zeros(2)}))


def test_a_step_that_was_not_saved_is_named(saved):
    with Checkpoints(saved, keep=None) as checkpoints, pytest.raises(InputError, match="no checkpoint of step 5 in"):
        checkpoints.restore(5, make_state())
    absent = saved / "absent"
    with Checkpoints(absent, keep=None) as checkpoints, pytest.raises(InputError, match="no checkpoint of step 5 in"):
        checkpoints.restore(5, make_state())
    assert not absent.exists()


# Damage


def damaged(data: bytes, how: str) -> bytes:
    middle = len(data) // 2
    return data[:middle] + (b"" if how == "cut" else bytes([data[middle] ^ 16]) + data[middle + 1 :])


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_newest_checkpoint_is_named_with_the_remedy(tmp_path, how, capfd):
    """orbax itself reads a flipped bit of an array without a word."""
    folder, state = tmp_path / "checkpoints", {"w": np.random.default_rng(0).normal(size=(83, 101))}
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(3, state, {})
        checkpoints.save(7, state, {})
    largest = max((folder / "7").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    largest.write_bytes(damaged(largest.read_bytes(), how))
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest() == 7
        with pytest.raises(InputError) as refused:
            checkpoints.restore(7, state)
        assert f"checkpoint {folder / '7'} is damaged" in str(refused.value)
        assert "Delete that folder and resume: it continues from step 3." in str(refused.value)
    assert capfd.readouterr().err == ""
    shutil.rmtree(folder / "7")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest() == 3
        assert_bit_equal(checkpoints.restore(3, state)[0], state)


@pytest.mark.parametrize("how", ["cut", "flipped", "nan", "said to be"])
def test_ruined_checkpoints_are_set_aside_from_the_newest_one_on(tmp_path, how, capfd):
    folder, state = tmp_path / "checkpoints", {"w": np.random.default_rng(0).normal(size=(83, 101)), "n": np.arange(3)}
    with Checkpoints(folder, keep=4) as checkpoints:
        for step in (2, 3, 5, 7):
            ruined = how == "nan" and step > 3
            checkpoints.save(step, state | ({"w": np.full((2, 2), np.nan)} if ruined else {}), {"at": step})
    for step in (5, 7) if how in ("cut", "flipped") else ():
        largest = max((folder / str(step)).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
        largest.write_bytes(damaged(largest.read_bytes(), how))
    with Checkpoints(folder, keep=4) as checkpoints:
        said = checkpoints.set_ruined_aside(4 if how == "said to be" else None)
        assert checkpoints.latest() == 3
        assert_bit_equal(checkpoints.restore(3, state)[0], state)
        checkpoints.save(5, state, {"at": "anew"})
        assert checkpoints.restore(5, state)[1] == {"at": "anew"}
        assert checkpoints.set_ruined_aside(None) == [] and checkpoints.steps() == [2, 3, 5]
    aside = tmp_path / "checkpoints-damaged"
    assert sorted(path.name for path in aside.iterdir()) == ["5", "7"]
    cause = {"nan": "holds NaN or infinity in w", "said to be": "has a loss that is NaN or infinite"}.get(
        how, "is damaged: "
    )
    assert [line.partition(cause)[0] for line in said] == [f"checkpoint {folder / str(step)} " for step in (7, 5)]
    assert [line.rpartition("; ")[2] for line in said] == [f"it is in {aside / str(step)} now" for step in (7, 5)]
    assert all("\n" not in line for line in said) and capfd.readouterr().err == ""


def test_a_second_ruined_checkpoint_of_a_step_gets_another_name(tmp_path):
    for _ in range(2):
        with Checkpoints(tmp_path / "all", keep=2) as checkpoints:
            checkpoints.save(1, {"w": np.ones(3)}, {})
            checkpoints.set_ruined_aside(1)
            assert checkpoints.latest() is None
    assert sorted(path.name for path in (tmp_path / "all-damaged").iterdir()) == ["1", "1-1"]


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_no_damaged_file_gives_a_wrong_state(saved, how):
    noticed = 0
    for path in [path for path in (saved / "7").rglob("*") if path.is_file()]:
        data = path.read_bytes()
        path.unlink()
        if how != "gone":
            path.write_bytes(damaged(data, how))
        with Checkpoints(saved, keep=None) as checkpoints:
            try:
                state, info = checkpoints.restore(7, make_state())
            except InputError:
                noticed += 1
            else:
                assert_bit_equal(state, make_state(7))
                assert info == {"phase": "retrain"}
        path.write_bytes(data)
    assert noticed > 0


# Kills and full disks

SAVE_FOREVER = """
import sys
import numpy as np
from bidora_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range((checkpoints.latest() or 0) + 1, 1000):
    checkpoints.save(step, {str(i): np.full((409, 113), step + i, np.float32) for i in range(23)}, {"step": step})
"""


def kill_while_it_saves(folder: Path) -> list[Path]:
    """Half-written checkpoints after a SIGKILL that fell between the start and the end of a write."""
    child = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(folder)], cwd=ROOT)
    try:
        before = Checkpoints(folder, keep=None).latest() or 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            finished = [path for path in folder.glob("*") if path.name.isdigit() and int(path.name) > before]
            if finished and list(folder.glob("*tmp*/state*")):
                break
    finally:
        child.kill()
        child.wait()
    return list(folder.glob("*tmp*"))


@pytest.mark.slow
def test_a_kill_during_a_write_leaves_the_checkpoint_before_it(tmp_path):
    folder, leftovers = tmp_path / "checkpoints", []
    for _ in range(2):
        leftovers += kill_while_it_saves(folder)
        with Checkpoints(folder, keep=None) as checkpoints:
            latest = checkpoints.latest()
            like = {str(i): np.zeros((409, 113), np.float32) for i in range(23)}
            state, info = checkpoints.restore(latest, like)
        assert info == {"step": latest}
        for i in range(23):
            np.testing.assert_array_equal(state[str(i)], np.full((409, 113), latest + i, np.float32))
    assert leftovers, "no kill fell into a write: the test shows nothing"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(latest + 100, state, {})
    assert len(list(folder.iterdir())) == 2
    assert not list(folder.glob("*tmp*"))


def test_reading_leaves_a_write_of_another_process_alone(saved):
    (saved / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(saved, keep=None) as checkpoints:
        assert checkpoints.latest() == 7
        checkpoints.restore(7, make_state())
    assert (saved / "9.orbax-checkpoint-tmp").exists()


def test_a_full_disk_is_an_os_error_and_the_last_checkpoint_stays(saved, monkeypatch, capfd):
    """By hand also on a full tmpfs (`mount -t tmpfs -o size=9m`), as root: the same error, checkpoint 2 of 3 intact."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with Checkpoints(saved, keep=2) as checkpoints:
        with pytest.raises(OSError, match="No space left on device") as full:
            checkpoints.save(9, make_state(9), {})
        assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(saved))
        assert checkpoints.latest() == 7
        assert_bit_equal(checkpoints.restore(7, make_state())[0], make_state(7))
    assert sorted(os.listdir(saved)) == ["3", "7"]
    assert capfd.readouterr().err == ""


def test_one_too_many_of_a_killed_process_goes(saved):
    with Checkpoints(saved, keep=None) as checkpoints:
        checkpoints.save(9, make_state(9), {})
        checkpoints.remove_surplus()  # all are kept
        assert checkpoints.steps() == [3, 7, 9]
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.remove_surplus()
        assert checkpoints.steps() == [7, 9] and sorted(os.listdir(saved)) == ["7", "9"]
        assert_bit_equal(checkpoints.restore(9, make_state())[0], make_state(9))
        checkpoints.save(11, make_state(11), {})
        assert checkpoints.steps() == [9, 11]


def test_saving_again_and_again_takes_no_more_memory(tmp_path):
    """Python's, of 40 arrays: tensorstore's OCDBT never frees 12 KB of it in each save. What is kept fills up in the first ones."""
    state = {str(i): np.full((23, 17), i, np.float32) for i in range(40)}
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:

        def traced(steps: range) -> int:
            for step in steps:
                checkpoints.save(step, state, {})
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before, after = traced(range(1, 16)), traced(range(16, 31))
        finally:
            tracemalloc.stop()
    assert after - before < 15 * 6000


SAVE_TOO_LARGE = """
import resource, sys
import numpy as np
from bidora_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
checkpoints.latest()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
state = {"large": np.random.default_rng(0).normal(size=(211, 307))} if sys.argv[2] == "state" else {"small": np.zeros(3)}
try:
    checkpoints.save(9, state, {"text": "x" * 60_000} if sys.argv[2] == "info" else {})
except OSError as error:
    print(error.errno, error.filename, checkpoints.latest())
"""


@pytest.mark.parametrize("large", ["state", "info"])
def test_an_error_while_writing_comes_out_as_the_systems_and_leaves_nothing_behind(saved, large):
    """A limit on the size of a file stands for whatever the system refuses in the middle of a write. tensorstore writes the state
    and tells the number in a text; Python writes the info, and its error has no path."""
    run = subprocess.run(
        [sys.executable, "-c", SAVE_TOO_LARGE, str(saved), large], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == f"{errno.EFBIG} {saved} 7\n"
    assert run.stderr == ""  # orbax logs what it raises, and its threads report later on
    assert sorted(os.listdir(saved)) == ["3", "7"]

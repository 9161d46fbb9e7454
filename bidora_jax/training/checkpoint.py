"""Checkpoints through orbax: a pytree of arrays, and a small dictionary that JSON can hold.

    folder/<step>/state   every leaf under its path ('direction.layers.mlp.up_proj.A') in a zarr array, keys as their data
    folder/<step>/info    {'info': …, 'leaves': {path: [dtype, shape, CRC-32 of the bytes]}}

orbax writes to a temporary name and renames, so a kill leaves the previous checkpoint as it was. It does not notice a
flipped bit in an array; the checksums do. Saving is synchronous: an adapter is small, and the caller may donate the
state to its next step at once. Arrays are not compressed, nor packed into one file (OCDBT): trained factors hardly shrink, each of
tensorstore's threads would keep a compressor's 0.8 MB, and its OCDBT lost 12 KB of memory in a save of 40 arrays.

Does not hold the base model. Of several processes the first one alone saves and reads (runs/several_hosts.py).
"""

import errno
import functools
import json
import logging
import os
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bidora_jax.errors import InputError, listing
from bidora_jax.machine import hosts
from bidora_jax.machine.files import naming
from bidora_jax.models.spread import laid

Manifest = dict[str, tuple[str, list[int]]]  # path -> (dtype, shape)

_OVERHEAD = 1 << 20  # bytes of a checkpoint besides its arrays: metadata, info
_ARRAY_OVERHEAD = 3 << 12  # of an array on a disk: its folder, its description, the rest of a block


class Checkpoints:
    """The last `keep` checkpoints in a folder; keep = None opens it for reading and changes nothing in it."""

    def __init__(self, folder: str | os.PathLike[str], keep: int | None) -> None:
        self.folder = Path(folder).absolute()
        self.keep = keep

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Writes a checkpoint; `step` must be above every step saved before.

        Raises OSError (with its errno: a full disk, a quota, no permission; and a path) and leaves the earlier checkpoints whole.
        """
        import orbax.checkpoint as ocp

        leaves = _leaves(state)
        arrays = {path: _array(leaf) for path, leaf in leaves.items()}
        manifest = {path: [*_kind(leaf), _checksum(arrays[path])] for path, leaf in leaves.items()}
        content = json.loads(json.dumps({"info": info, "leaves": manifest}))
        self._require_space(sum(array.nbytes + _ARRAY_OVERHEAD for array in arrays.values()) + _OVERHEAD)
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), info=ocp.args.JsonSave(content))
        _ignore_late_writes()
        with naming(self.folder), _quiet_orbax():
            try:
                saved = self._manager.save(step, args=args)
            except (OSError, ValueError) as error:
                _await_writers()
                self._discard(step)
                raise _as_os_error(error, self.folder) from error
        if not saved:
            raise ValueError(f"checkpoint steps must grow: {step} after {self.latest()} in {self.folder}")

    def latest(self) -> int | None:
        """The newest step, or None when nothing was saved."""
        if not self.folder.is_dir():
            return None
        with _quiet_orbax():
            return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps that are kept, in their order."""
        if not self.folder.is_dir():
            return []
        with _quiet_orbax():
            return sorted(self._manager.all_steps())

    def set_ruined_aside(self, ruined: int | None) -> list[str]:
        """Moves checkpoints that can't be gone on from beside the folder, from the newest one on until one is good; what was wrong
        with each of them, and where it is now. Those of the step `ruined` and of later ones are not good whatever they hold."""
        said = []
        for step in reversed(self.steps()):
            try:
                arrays, _ = self.part(step, lambda path: True)
                wrong = [path for path, array in arrays.items() if not _is_finite(array)]
                if not wrong and (ruined is None or step < ruined):
                    break
                cause = f"holds NaN or infinity in {wrong[0]}" if wrong else "has a loss that is NaN or infinite"
            except InputError as error:
                cause = f"is damaged: {str(error).splitlines()[0].partition(' is damaged: ')[2] or error}"
            self.close()
            aside = _free_name(self.folder.with_name(f"{self.folder.name}-damaged") / str(step))
            aside.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(aside)
            said.append(f"checkpoint {self.folder / str(step)} {cause}; it is in {aside} now")
        return said

    def remove_surplus(self) -> None:
        """Removes the oldest checkpoints beyond those that are kept: a process that was killed between writing one and removing
        another leaves one too many."""
        surplus = self.steps()[: -self.keep] if self.keep else []
        if surplus:
            self.close()
        for step in surplus:
            shutil.rmtree(self.folder / str(step))

    def part(self, step: int, wanted: Callable[[str], bool]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays by path, info) of `step`, of the leaves whose path is `wanted`; no structure is needed.

        Raises InputError for a checkpoint that is damaged.
        """
        info, leaves = self._content(step)
        return {path: self._checked(step, path, leaves) for path in leaves if wanted(path)}, info

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, info) of `step`, with the structure and the kinds of arrays of `like`, whose values are not read.

        Raises InputError that lists every leaf that differs from `like`, or says that the checkpoint is damaged.
        """
        wanted = _leaves(like)
        arrays, info = self._arrays(step, {path: _kind(leaf) for path, leaf in wanted.items()})
        restored = [_as_leaf(arrays[path], leaf) for path, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), restored), info

    def _arrays(self, step: int, wanted: Manifest) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays by path, info) of a step that has these leaves and no others."""
        info, leaves = self._content(step)
        self._require_same(step, {path: (dtype, shape) for path, (dtype, shape, _) in leaves.items()}, wanted)
        return {path: self._checked(step, path, leaves) for path in wanted}, info

    def close(self) -> None:
        """Waits for what orbax still has to do."""
        if "_manager" in self.__dict__:
            with _quiet_orbax():
                self._manager.close()
            del self._manager

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        writing = self.keep is not None
        options = ocp.CheckpointManagerOptions(
            create=writing and not hosts.several(),
            cleanup_tmp_directories=writing and not hosts.several(),
            preservation_policy=ocp.checkpoint_managers.LatestN(self.keep),
            enable_async_checkpointing=False,
        )
        if hosts.several():  # this process alone writes and reads: orbax would wait for the others
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone"
            )
            options = replace(options, multiprocessing_options=alone)
            if writing:
                self.folder.mkdir(parents=True, exist_ok=True)
        processes = options.multiprocessing_options
        state = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, multiprocessing_options=processes)
        info = ocp.JsonCheckpointHandler(multiprocessing_options=processes)
        return ocp.CheckpointManager(self.folder, options=options, item_handlers={"state": state, "info": info})

    def _content(self, step: int) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], int]]]:
        """(info, leaves) of a checkpoint."""
        content = self._read(step, "info", None)
        try:
            return content["info"], {
                path: (dtype, shape, crc) for path, (dtype, shape, crc) in content["leaves"].items()
            }
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise self._damaged(step, error) from error

    def _checked(self, step: int, path: str, leaves: dict[str, tuple[str, list[int], int]]) -> np.ndarray:
        array = self._read(step, "state", path)
        if _checksum(array) != leaves[path][2]:
            raise self._damaged(step, f"the checksum of {path} is wrong")
        return array

    def _read(self, step: int, item: str, path: str | None) -> Any:
        """The info, or one array. One by one: orbax prints a traceback for each other array when one cannot be read."""
        import orbax.checkpoint as ocp

        if path is None:
            args = ocp.args.Composite(info=ocp.args.JsonRestore())
        else:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore({path: np.zeros(())}, partial_restore=True))
        with _quiet_orbax():
            try:
                found = self._manager.restore(step, args=args)[item]
            except Exception as error:  # orbax has no class of its own: ValueError, KeyError, OSError, …
                raise self._damaged(step, error) from error
        return found if path is None else found[path]

    def _damaged(self, step: int, cause: object) -> InputError:
        folder = self.folder / str(step)
        if not folder.is_dir():
            return InputError(f"no checkpoint of step {step} in {self.folder}")
        with _quiet_orbax():
            earlier = [known for known in self._manager.all_steps() if known < step]
        remedy = f"it continues from step {max(earlier)}" if earlier else "it starts anew, there is no earlier one"
        return InputError(
            f"checkpoint {folder} is damaged: {_one_line(cause)}\nDelete that folder and resume: {remedy}."
        )

    def _require_same(self, step: int, found: Manifest, wanted: Manifest) -> None:
        differences = [f"{path}: not in the checkpoint" for path in wanted if path not in found]
        differences += [f"{path}: in the checkpoint, not in this run" for path in found if path not in wanted]
        differences += [
            f"{path}: {_words(found[path])} in the checkpoint, {_words(wanted[path])} in this run"
            for path in wanted
            if path in found and found[path] != wanted[path]
        ]
        if differences:
            raise InputError(
                f"checkpoint {self.folder / str(step)} does not fit this run; resume with the configuration it was "
                f"made with, or choose another output folder:\n{listing(differences)}"
            )

    def _require_space(self, needed: int) -> None:
        """A full disk is met before writing, where orbax would print tracebacks of its threads besides raising."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            sizes = f"a checkpoint needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({sizes})", str(self.folder))

    def _discard(self, step: int) -> None:
        """Removes a half-written checkpoint, which would go on filling the disk."""
        for leftover in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(leftover, ignore_errors=True)


class SharedCheckpoints(Checkpoints):
    """Those of a run of several processes: the first one writes and reads, and the others take over what it has read. Each of them
    calls every method, at the same time; what has to be whole everywhere is."""

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        if hosts.number() == 0:
            super().save(step, state, info)

    def latest(self) -> int | None:
        own = super().latest() if hosts.number() == 0 else None
        return json.loads(hosts.said_by_first(json.dumps(own)))

    def _arrays(self, step: int, wanted: Manifest) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        from jax.experimental import multihost_utils

        arrays, info = {path: np.zeros(shape, dtype) for path, (dtype, shape) in wanted.items()}, {}
        if hosts.number() == 0:
            arrays, info = super()._arrays(step, wanted)
        info = json.loads(hosts.said_by_first(json.dumps(info)))
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(arrays)), info


# Leaves


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _array(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _kind(leaf: Any) -> tuple[str, list[int]]:
    return str(leaf.dtype), list(leaf.shape)


def _words(kind: tuple[str, list[int]]) -> str:
    return f"{kind[0]} {tuple(kind[1])}"


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _is_finite(array: np.ndarray) -> bool:
    """Of whole numbers too, and of types that NumPy does not know."""
    return not jnp.issubdtype(array.dtype, jnp.floating) or bool(np.isfinite(array.astype(np.float32)).all())


def _free_name(path: Path) -> Path:
    """The path, or with a number after it."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(1))
    return next(one for one in chain([path], numbered) if not one.exists())


def _as_leaf(array: np.ndarray, like: Any) -> Any:
    """The array in the form of `like`: NumPy's, a typed key, or JAX's with the sharding of `like`."""
    if isinstance(like, np.ndarray | np.generic):
        return array
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))  # of the type: `like` may be a ShapeDtypeStruct
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    sharding = getattr(like, "sharding", None)
    if isinstance(sharding, NamedSharding) and len(sharding.device_set) > 1:
        return laid(array, sharding)
    return jnp.asarray(array)


# Messages of orbax


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """orbax logs what it also raises, with tracebacks; the user gets one message."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _await_writers() -> None:
    """The state and the info are written side by side: when one has failed, the thread of the other may still write."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread, timeout=60)  # orbax's own waits for a signal first, and raises


@functools.cache
def _ignore_late_writes() -> None:
    """tensorstore's threads that still write when orbax has given up report to an event loop that is closed, and Python prints a
    traceback for each of them."""
    before = sys.unraisablehook

    def hook(raised: "sys.UnraisableHookArgs") -> None:
        late = threading.current_thread() is not threading.main_thread()
        if not (late and str(raised.exc_value) == "Event loop is closed"):
            before(raised)

    sys.unraisablehook = hook


def _as_os_error(error: OSError | ValueError, folder: Path) -> Exception:
    """The OSError behind tensorstore's ValueError, whose text holds the system's error number; else the error itself."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if isinstance(error, OSError) or number is None:
        return error
    return OSError(int(number[1]), os.strerror(int(number[1])), str(folder))


def _one_line(cause: object) -> str:
    """One line of at most 200 characters."""
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(cause)
    return " ".join(text.split())[:200]

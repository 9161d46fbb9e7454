"""Several processes, on one machine or on many, as one program: they find each other, agree, and end together.

The engine is `jax.distributed`; this module adds what a run needs around it.

    agreeing   the first process's word is taken by all, and what has to be the same everywhere is compared before the first step
    ending     a process that fails leaves a note in the coordinator's key-value store, and a thread of every other process reads
               it and ends that one too, with one line: collectives would wait for the dead, and JAX's own shutdown for 5 minutes
    SIGTERM    is JAX's: all processes learn of it, and stop after the same step

The first process, number 0, is the coordinator's. It alone writes the run, and prints.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count as counter
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from bidora_jax.errors import InputError, RunError, Stopped, listing
from bidora_jax.machine.interrupts import Interrupts

NAME, START, LOAD = 60, 300, 3600
"""Seconds to wait for the name of process 0's machine to be known, for the processes to come together, and for the slowest of them
to read its files."""
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost."""
GLANCE = 0.5
_NOTES = "bidora_jax"
_numbers = counter()


class Address(NamedTuple):
    """Where the first process listens (HOST:PORT), how many processes there are, and which of them this is."""

    coordinator: str
    processes: int
    number: int


def read(setting: str) -> Address | None:
    """The processes that `--distributed` names, or None where `auto` leaves them to the cluster's variables."""
    if setting == "auto":
        return None
    address, *numbers = setting.split(",")
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and len(numbers) == 2 and all(one.isdecimal() for one in numbers)):
        raise InputError(
            f"--distributed: expected auto, off or HOST:PORT,N,I (where process 0 listens, how many processes, which of them "
            f"this is), found {setting!r}"
        )
    processes, number = map(int, numbers)
    if not 0 < int(port) < 2**16:
        raise InputError(f"--distributed {setting}: a port is from 1 to 65535, found {port}")
    if not number < processes:
        raise InputError(f"--distributed {setting}: process {number} of {processes}; the first one is 0")
    return Address(address, processes, number)


def several() -> bool:
    """Whether this process is one of several. Touches no device."""
    return _State.joined is not None


def number() -> int:
    """Which of the processes this one is; 0 of a process alone."""
    return 0 if _State.joined is None else _State.joined.number


def count() -> int:
    """How many processes there are."""
    return 1 if _State.joined is None else _State.joined.processes


def in_words() -> str:
    """The processes and what each of them has, a line each. Every process has to call it."""
    import jax

    own = jax.local_devices()
    told = exchanged(json.dumps([socket.gethostname(), os.getpid(), len(own), own[0].device_kind]))
    return "\n".join(
        f"process {which} of {len(told)}: {host}, pid {pid}, {devices} {'device' if devices == 1 else 'devices'} ({kind})"
        for which, (host, pid, devices, kind) in enumerate(map(json.loads, told))
    )


@contextmanager
def joined(setting: str) -> Iterator[None]:
    """This process as one of several, in the context; `off` leaves it alone.

    InputError for a setting that is none, for a cluster that JAX does not find, and for processes that do not come.
    """
    if setting == "off":
        yield
        return
    state = _join(read(setting))
    try:
        with _quiet(state.number > 0):
            yield
        state.leave()
    except Stopped as stopped:
        state.leave()
        if state.number == 0:
            raise
        sys.exit(stopped.status)
    except InputError as error:
        state.note_end(error)
        raise InputError(
            f"process {state.number} of {state.processes}: {error}" if state.number else str(error)
        ) from None
    except BaseException as error:
        lost = state.lost(error)
        state.note_end(lost or error)
        if lost is not None:
            raise lost from None
        raise


def said_by_first(text: str) -> str:
    """What the first process says here, in all of them. Every process has to call it, and in the same order."""
    state, key = _state(), f"{_NOTES}/said/{next(_numbers)}"
    if state.number == 0:
        state.client.key_value_set(key, text)
        return text
    return state.client.blocking_key_value_get(key, 1000 * LOAD)


def agree(what: Mapping[str, str]) -> None:
    """Goes on when all processes have the same; InputError, in a process that has others than the first, with their names."""
    first = json.loads(said_by_first(json.dumps(dict(what))))
    differing = [name for name in first.keys() | what.keys() if first.get(name) != what.get(name)]
    if differing:
        raise InputError(
            f"this process has not what process 0 has:\n{listing(sorted(differing))}\n"
            "give all of them the same files, settings and versions"
        )
    _state().client.wait_at_barrier(f"{_NOTES}/agreed/{next(_numbers)}", 1000 * LOAD)


def exchanged(text: str) -> list[str]:
    """What every process says here, in their order."""
    state, key = _state(), f"{_NOTES}/exchanged/{next(_numbers)}"
    state.client.key_value_set(f"{key}/{state.number}", text)
    return [state.client.blocking_key_value_get(f"{key}/{which}", 1000 * LOAD) for which in range(state.processes)]


class TogetherInterrupts(Interrupts):
    """SIGTERM to any of the processes asks all of them to stop after the same step; Ctrl-C ends them at once."""

    _steps = 0

    def at_step(self) -> None:
        from jax.experimental import multihost_utils

        self._steps += 1
        if self.asked is None and multihost_utils.reached_preemption_sync_point(self._steps):
            self.asked = signal.SIGTERM


# How they end


class _State:
    """What this process knows of the others."""

    joined: "_State | None" = None

    def __init__(self, client: Any, processes: int, own: int) -> None:
        self.client, self.processes, self.number = client, processes, own
        self._seen: dict[int, tuple[str, float]] = {}
        self._ended = threading.Event()
        self.watch = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self.status = 0

    def leave(self) -> None:
        """Ends the connection, when all processes have come to this point."""
        import jax

        self._ended.set()
        self.watch.join()
        jax.distributed.shutdown()
        _State.joined = None

    def note_end(self, error: BaseException) -> None:
        """Tells the others that this process fails. Its own exit waits for nobody, and comes after what its command prints."""
        self._ended.set()
        self.status, said = _outcome(error)
        with suppress(Exception):  # the coordinator may be what is gone
            self.client.key_value_set(
                f"{_NOTES}/ended/{self.number}", json.dumps([socket.gethostname(), self.status, said])
            )
        atexit.register(self._exit)

    def lost(self, error: BaseException) -> RunError | None:
        """What it means where a collective has failed: XLA says it in many lines, and does not know which process is gone."""
        if not (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)):
            return None
        # Where that one has said why it ends, the thread that watches ends this one with its words.
        time.sleep(4 * GLANCE)
        return RunError(
            f"process {self.number} of {self.processes} has lost another one in the middle of a step; {_ADVICE}"
        )

    def _exit(self) -> None:
        if self.number == 0:
            time.sleep(4 * GLANCE)  # the store goes with this process, and the others have to read it first
        _end(self.status)

    def _watch(self) -> None:
        """Reads what the others leave in the store, and shows them that this process lives."""
        for beat in counter():
            if self._ended.wait(GLANCE):
                return
            try:
                if beat % 10 == 0:
                    self.client.key_value_set(f"{_NOTES}/alive/{self.number}", str(beat), allow_overwrite=True)
                    self._look_for_signs_of_life()
                ended = self.client.key_value_dir_get(f"{_NOTES}/ended/")
            except Exception:  # jaxlib has no class of its own for a coordinator that does not answer
                if not self._ended.is_set():
                    self._end(1, "process 0 has ended, or its machine cannot be reached")
                return
            for key, value in ended:
                host, status, said = json.loads(value)
                which = f"process {key.rpartition('/')[2]} on {host}"
                if status == InputError.status:
                    _end(status, f"error: {which}: {said}")
                self._end(status, f"{which} has ended: {said}")

    def _look_for_signs_of_life(self) -> None:
        now = time.monotonic()
        for key, beat in self.client.key_value_dir_get(f"{_NOTES}/alive/"):
            which = int(key.rpartition("/")[2])
            if which not in self._seen or self._seen[which][0] != beat:
                self._seen[which] = beat, now
            elif now - self._seen[which][1] > SILENCE:
                self._end(1, f"process {which} has given no sign of life for {SILENCE:.0f} s")

    def _end(self, status: int, said: str) -> NoReturn:
        _end(status, f"stopped: {said}; {_ADVICE}")


LOST = (
    "gloo",
    "connection closed",
    "connection reset",
    "nccl",
    "heartbeat",
    "socket closed",
    "unavailable",
    "coordination",
)
_ADVICE = "a run that has saved a checkpoint goes on with --resume"


def _outcome(error: BaseException) -> tuple[int, str]:
    """The exit status, and what is said, in one line."""
    kinds = {InputError: InputError.status, RunError: RunError.status, KeyboardInterrupt: 130}
    status = next((number for kind, number in kinds.items() if isinstance(error, kind)), 1)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code)), "it was asked to"
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    said = "; ".join(lines).replace(":;", ":")[:1000]
    return status, said if said and status == InputError.status else f"{type(error).__name__}: {said}"


def _end(status: int, said: str = "") -> NoReturn:
    """Ends the process without what JAX does at the end: it would wait for processes that do not come."""
    if said:
        print(said, file=sys.__stderr__, flush=True)
    remove_scratch()
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


# How they begin


def _state() -> _State:
    assert _State.joined is not None, "not in hosts.joined"
    return _State.joined


def _refuse_unreachable(address: Address) -> None:
    """InputError where process 0 cannot listen, or nobody knows its machine: JAX ends without a word, or waits."""
    host, _, port = address.coordinator.rpartition(":")
    if address.number == 0:
        family = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
        try:
            socket.create_server(("", int(port)), **family).close()
        except OSError as error:
            raise InputError(
                f"--distributed: process 0 cannot listen on port {port} ({os.strerror(error.errno or 0)}): take one that is free; "
                "another process 0 may be running"
            ) from None
        return
    known = time.monotonic() + NAME  # a machine that has just been started may have no name yet
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), port)
            return
        except OSError as error:
            if time.monotonic() > known:
                raise InputError(
                    f"--distributed: nothing is known of {host}, where process 0 is to listen ({error.strerror}); name its machine "
                    "as the others reach it"
                ) from None
            time.sleep(GLANCE)


def _join(address: Address | None) -> _State:
    import jax
    from jax._src import distributed  # the coordinator's key-value store has no public name

    which, where = "this process", "the cluster's address"
    if address is not None:
        _refuse_unreachable(address)
        which, where = f"process {address.number} of {address.processes}", address.coordinator
    print(f"{which} waits for the others at {where}, up to {START} s", file=sys.stderr, flush=True)
    nobody = (
        f"error: {which} has not met all others at {where} within {START} s: start all of them, with one address and the numbers "
        "from 0 on, and let them reach that port"
    )
    late = threading.Timer(START, _end, (InputError.status, nobody))
    late.daemon = True
    late.start()  # when JAX's time is over, it ends the process itself, with a stack of its own
    try:
        jax.distributed.initialize(
            *(address or (None, None, None)), initialization_timeout=2 * START, heartbeat_timeout_seconds=100
        )
    except ValueError as error:
        raise InputError(
            f"--distributed auto: JAX finds no cluster here ({str(error).splitlines()[0]}); name the processes with "
            "--distributed HOST:PORT,N,I"
        ) from None
    finally:
        late.cancel()
    found = distributed.global_state
    state = _State.joined = _State(found.client, found.num_processes, found.process_id)
    state.watch.start()
    return state


@contextmanager
def _quiet(asked: bool) -> Iterator[None]:
    """Where it is asked for, nothing is printed: the first process says it. What is raised is printed after this."""
    if not asked:
        yield
        return
    kept, shown = os.dup(1), sys.stderr
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # gloo prints too
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            sys.stderr = shown


_scratch: list[str] = []


def scratch() -> Path:
    """A folder for what the first process alone keeps; it is gone when this process ends."""
    if not _scratch:
        _scratch.append(tempfile.mkdtemp(prefix="bidora_jax-"))
        atexit.register(remove_scratch)
    return Path(_scratch[0])


def remove_scratch() -> None:
    while _scratch:
        shutil.rmtree(_scratch.pop(), ignore_errors=True)

"""60 full disks: a run whose disk fills says so in one message, and ends with the bytes of a whole one when there is room again.

    python benchmarks/campaign/disks.py [--disks 40] [--limits 20] [--log FILE]

Trains the tiny run of kills.py whole, with a report and a merged model, on a file system in memory, and measures the most that it
holds. Each case trains on one of its own that is smaller, from what the inputs take up to that most; or under a limit on the size
of a file (`ulimit -f`), from 8,192 bytes (what the run prints is in files too) to the largest. It has to end with status 2 and one
message, without a traceback, that names the path; then the disk is made large, or the limit goes, and the run goes on as in
kills.py, to the same bytes and the same list of files. A case that needs no more than it is given counts as "enough". The file
systems are mounted in a name space of the process's own, and are gone with it; with --disks=0 there are none. Wrong ones are
printed; the last line has the counts. Exit status 1 where there is a wrong one.
"""

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import forks
import kills

LARGE = 64 * 2**20
PAGE, LEAST = 4096, 8192
OWN = "CAMPAIGN_NAME_SPACE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disks", type=int, default=40)
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
        inputs, whole = Path(scratch) / "inputs", Path(scratch) / "whole"
        kills.prepared(inputs, whole)
        least, sizes = held(inputs), [path.stat().st_size for path in (whole / "trained").rglob("*") if path.is_file()]
        most = peak(Path(scratch) / "disk", inputs) if options.disks else least
        print(f"a whole run: {most - least} bytes on a disk, files of {min(sizes)} to {max(sizes)} bytes", flush=True)
        disks = [least + PAGE * (number * (most - least) // PAGE // options.disks) for number in range(options.disks)]
        limits = [LEAST + number * (max(sizes) - LEAST) // options.limits for number in range(options.limits)]
        for kind, size in [*(("disk", one) for one in disks), *(("limit", one) for one in limits)]:
            with disk(Path(scratch) / "disk", size if kind == "disk" else None) as case:
                shutil.copytree(inputs, case)
                first = kills.started(case, partial(limited, size) if kind == "limit" else lambda: None)
                wrong = list(faults(first))
                if kind == "disk":
                    subprocess.run(["mount", "-o", f"remount,size={LARGE}", case.parent], check=True)
                kills.age(case)
                last = first if first.status == 0 else kills.started(case)
                wrong += (
                    [f"goes on to {last.status}: {last.err[-500:]}"]
                    if last.status
                    else [*kills.differences(whole / "trained", case / "trained")]
                )
            counts["wrong" if wrong else "enough" if first.status == 0 else "right"] += 1
            said = {"kind": kind, "size": size, "status": first.status, "said": first.err[-500:], "wrong": wrong}
            kills.log(options.log, said)
            if wrong:
                print(f"{kind} of {size} bytes: {'; '.join(wrong)}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    sys.exit(int(counts["wrong"] > 0))


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def faults(ended: forks.Ended) -> Iterator[str]:
    """What is wrong with how a run on a full disk ended."""
    if ended.status == 0:
        return
    if ended.status != 2:
        yield f"ended with {ended.status}: {ended.err[-500:]}"
    if "Traceback" in ended.err:
        yield f"a traceback: {ended.err[-500:]}"
    errors = re.findall(r"^error: .*", ended.err, re.MULTILINE)
    if len(errors) != 1 or not re.search(r"cannot write at \S+: (No space left|File too large)", errors[0]):
        yield f"said {ended.err[-500:]!r}"
    elif "trained" not in errors[0]:
        yield f"names no path of the run: {errors[0]}"


@contextmanager
def disk(folder: Path, size: int | None) -> Iterator[Path]:
    """A place for a case, on a file system of this size or, without one, on that of the folder."""
    folder.mkdir()
    if size is not None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", folder], check=True)
    try:
        yield folder / "case"
    finally:
        if size is not None:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


def held(inputs: Path) -> int:
    """Bytes that the inputs take on a disk, in whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in inputs.rglob("*") if path.is_file())


def peak(folder: Path, inputs: Path) -> int:
    """The smallest disk that a whole run ends on, to an eighth of what it takes."""
    least = held(inputs)
    low, high = least, LARGE
    while high - low > max(PAGE, (high - least) // 8):
        middle = (low + high) // 2 // PAGE * PAGE
        with disk(folder, middle) as case:
            shutil.copytree(inputs, case)
            low, high = (low, middle) if kills.started(case).status == 0 else (middle, high)
    return high


if __name__ == "__main__":
    if OWN not in os.environ and "--disks=0" not in sys.argv:
        os.environ[OWN] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--map-root-user", sys.executable, *sys.argv])
    with kills.own_caches():
        main()

"""What each of several processes reads and holds of a base that is cut over them: Qwen3-0.6B's shape, random, 1.2 GB in bfloat16.

    python benchmarks/memory/loading.py --folder FOLDER [--processes 4] [--quantization none|int8|nf4]

Each process has one device, and `mesh.shard` is their number. Prints a line for each: the bytes that it read (rchar of
/proc/self/io), the bytes of its part, by how much its resident memory grew at most, and how long it took. Making the folder needs
torch and transformers; it is kept.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from real_size import SAVE, SHAPE

from bidora_jax.machine import hosts, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--quantization", choices=("none", "int8", "nf4"), default="none")
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.address:
        with hosts.joined(options.address):
            loaded(options.folder, options.quantization)
        return
    if not (options.folder / "config.json").is_file():
        subprocess.run([sys.executable, "-c", SAVE.format(shape=SHAPE, folder=str(options.folder))], check=True)
    with socket.socket() as one:
        one.bind(("localhost", 0))
        port = one.getsockname()[1]
    running = []
    for number in range(options.processes):
        address = f"localhost:{port},{options.processes},{number}"
        command = [sys.executable, *sys.argv, "--address", address]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for number, one in enumerate(running):
        said = one.communicate()[1]
        if one.returncode:
            sys.exit(said)
        found = json.loads(said.splitlines()[-1])
        print(f"process {number}: read {found['read'] / 1e6:,.0f} MB, its part {found['part'] / 1e6:,.0f} MB, "
              f"memory grew by {found['grown'] / 1e6:,.0f} MB, {found['seconds']:.1f} s")  # fmt: skip


def loaded(folder: Path, quantization: str) -> None:
    import jax

    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.models.spread import Placement, mesh_over

    mesh = mesh_over(jax.devices(), 1, len(jax.devices()))
    architecture = hf_config.read_decoder(folder)
    before, held, began = characters(), memory.resident() or 0, time.monotonic()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = hf.load(ModelConfig(quantization=quantization), folder, architecture, over=Placement(mesh))
    jax.block_until_ready(base)
    part = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(base))
    found = {"read": characters() - before, "part": part, "grown": (memory.resident("VmHWM") or 0) - held,
             "seconds": time.monotonic() - began}  # fmt: skip
    print(json.dumps(found), file=sys.__stderr__)


def characters() -> int:
    return int(memory.read("/proc/self/io").split("rchar: ")[1].split()[0])


if __name__ == "__main__":
    main()

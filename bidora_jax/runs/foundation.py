"""What a run stands on: checksums of its data, its tokenizer, its base and the adapter that it starts from.

They are kept in the run folder. A resumed run would otherwise go on with another order of other records, or beside another base,
and nothing would say so.
"""

import hashlib
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.config import Config
from bidora_jax.errors import InputError, listing

if TYPE_CHECKING:
    from bidora_jax.data.batches import Examples
    from bidora_jax.runs.assembly import RunInputs

PIECE = 2**24  # bytes read at a time


def of(config: Config, inputs: "RunInputs") -> dict[str, str]:
    """The checksums by what they are of, in words. A base of 16 GB takes some ten seconds."""
    from bidora_jax.models.formats.tokenizer_files import tokenizer_files

    folder, problem = inputs.model_folder, inputs.problem
    template = str(inputs.tokenizer.chat_template or "")  # all of them, where there are several by name
    found = {
        "training data": of_rows(problem.train),
        "validation data": of_rows(problem.val),
        "tokenizer": _of_files(folder / file for file in tokenizer_files(folder)),
        "chat template": hashlib.sha256(template.encode()).hexdigest()[:16],
        "base weights": _of_files(sorted(folder.glob("*.safetensors"))),
    }
    if config.adapter.path:
        found["adapter to start with"] = _of_files(sorted(Path(config.adapter.path).glob("adapter_*")))
    return found


def check(folder: Path, known: dict[str, str] | None, found: dict[str, str]) -> None:
    """InputError for what has changed since the run began; nothing is known of runs of older versions."""
    changed = [what for what, checksum in (known or {}).items() if found.get(what) != checksum]
    if changed:
        raise InputError(
            f"what the run in {folder} stands on has changed since it began:\n{listing(changed)}\nput it back as it was, or "
            "start a new run in another --output-dir (tokens that a template dates change from day to day)"
        )


def of_rows(rows: "Examples") -> str:
    """The checksum of records as they are trained on."""
    from bidora_jax.data.labels import LabelledExample
    from bidora_jax.data.packing import PackedLabels

    whole = hashlib.sha256()
    for row in rows:
        marks = row.labels if isinstance(row, LabelledExample | PackedLabels) else row.trained
        whole.update(f"{len(row.tokens)} ".encode() + row.tokens.tobytes() + marks.tobytes())
    return whole.hexdigest()[:16]


def _of_files(paths: Iterable[Path]) -> str:
    there = [path for path in paths if path.is_file()]
    with ThreadPoolExecutor() as threads:
        sums = list(threads.map(_crc, there))
    return hashlib.sha256(repr([(path.name, one) for path, one in zip(there, sums, strict=True)]).encode()).hexdigest()[
        :16
    ]


def _crc(path: Path) -> int:
    """The CRC-32 of a file: it is as fast as reading, and changes with any byte."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return found

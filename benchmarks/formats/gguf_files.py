"""GGUF files beside llama.cpp: its answers from a run's files, and the bytes of its converter.

    python benchmarks/formats/gguf_files.py --run runs/quickstart [--records N]    answers to test records, and the adapter's
    python benchmarks/formats/gguf_files.py --model DIR --reference FILE.gguf      each tensor's bytes and each key

The first takes the package xllamacpp: the run is exported in every type, and llama.cpp answers the records of its test file
greedily through its own tokenizer and chat template. The second exports a model in the type of FILE.gguf, which llama.cpp's
converter wrote of the same folder: `python convert_hf_to_gguf.py DIR --outtype f16 --outfile FILE.gguf`. The converter is in the
source package of llama-cpp-python, and wants torch, transformers and sentencepiece.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))  # llama_cpp

LONGEST = 160
TYPES = ("f16", "bf16", "q8_0", "f32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    if options.run:
        answers(options.run, options.records)
    if options.model:
        beside_converter(options.model, options.reference)


def answers(run: Path, count: int) -> None:
    from llama_cpp import engine

    from bidora_jax import load
    from bidora_jax.runs.folder import run_config
    from bidora_jax.runs.gguf_exporting import export_run

    file = Path(run_config(str(run)).data.test_file)
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()][:count]
    asked = [
        "\n\n".join(record[key] for key in ("prompt", "instruction", "input") if record.get(key)) for record in records
    ]
    start = time.perf_counter()
    ours = load(run).generate([{"instruction": text} for text in asked], max_new_tokens=LONGEST)
    print(f"the adapter: {exact(ours, records)} of {len(records)} exactly as in {file.name}, {since(start)}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in TYPES:
            written = Path(folder) / f"{kind}.gguf"
            export_run(run, written, format="gguf", quantize=kind)
            start = time.perf_counter()
            with engine(written) as llama:
                theirs = [llama.chat([{"role": "user", "content": text}], LONGEST) for text in asked]
            equal = sum(one == other for one, other in zip(theirs, ours, strict=True))
            print(
                f"{kind}: {written.stat().st_size:,} bytes, {equal} of {len(records)} answers equal the adapter's, "
                f"{exact(theirs, records)} exactly as in {file.name}, {since(start)}"
            )


def exact(texts: list[str], records: list[dict[str, Any]]) -> int:
    return sum(text.strip() == record["output"].strip() for text, record in zip(texts, records, strict=True))


def since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


def beside_converter(model: Path, reference: Path) -> None:
    from gguf import GGUFReader

    from bidora_jax.models.settings import ModelConfig
    from bidora_jax.runs.gguf_exporting import export_model

    theirs = GGUFReader(reference)
    kind = {0: "f32", 1: "f16", 7: "q8_0", 32: "bf16"}[theirs.fields["general.file_type"].contents()]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        export_model(ModelConfig(path=str(model)), file := Path(folder) / "ours.gguf", quantize=kind)
        print(f"{kind}: written and proved in {since(start)}")
        ours = GGUFReader(file)
        of_them = {one.name: one for one in theirs.tensors}
        of_us = {one.name: one for one in ours.tensors}
        equal = [
            name
            for name in of_us.keys() & of_them.keys()
            if of_us[name].tensor_type == of_them[name].tensor_type
            and np.array_equal(of_us[name].data, of_them[name].data)
        ]
        print(f"tensors: {len(equal)} of the converter's {len(of_them)} are equal to the byte, of {len(of_us)} of ours")
        print(f"  only theirs or unequal: {sorted(of_them.keys() - set(equal))[:8]}")
        mine, yours = ({name: field.contents() for name, field in one.fields.items()} for one in (ours, theirs))
        for name in sorted(mine.keys() | yours.keys()):
            if name.startswith("GGUF."):
                continue
            values = [shortened(keys[name]) if name in keys else "no such key" for keys in (mine, yours)]
            if name not in mine or name not in yours or mine[name] != yours[name]:
                print(f"  {name}: ours {values[0]}, theirs {values[1]}")


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}…"


if __name__ == "__main__":
    main()

"""Writes the fine-tuning data: instructions and their code in one fixed house style.

    python -m bidora_jax.quickstart.make_data [--output DIR]

The same seed writes the same bytes. The house style, which no pretraining document shows: a module of the part's name;
color, then translate, then rotate, each on its own line; everything centred; $fn=64 on round bodies, which are given by
their diameter; holes 200 mm through; the module is called at the end. One record in five gives the part as a
specification in `input`, the others as a sentence.
"""

import argparse
import json
import random
import re
from pathlib import Path

from bidora_jax.quickstart.scenes import (
    Scene,
    Style,
    article,
    code,
    sample_scene,
    say_body,
    say_extras,
    say_second,
    specification,
)

SEED = 20261123
SPLITS = {"train": 480, "val": 144, "test": 96}
LONGEST = 106
"""Digits, words and runs of signs in a record: at most 128 tokens with the chat's markup, so that steps are short."""
HOUSE = Style(module=True, color_first=True, lines=True, center=True, facets=64, through=200)

Record = dict[str, str]


def instruction(scene: Scene, rng: random.Random) -> str:
    """A request for the scene, every number in it."""
    lead = rng.choice(("Make", "Model", "Create", "Design", "Please build", "I need", "Write"))
    subject = article(say_body(scene.body, rng, scene.color))
    clauses = say_extras(scene, rng)
    if scene.second:
        clauses.append(say_second(scene.second, rng))
    opening = rng.choice((f"{lead} {subject}, named {scene.name}", f"{lead} the {scene.name}, {subject}"))
    return ", ".join([opening, *clauses]) + "."


def record(scene: Scene, rng: random.Random) -> Record:
    """{instruction, output}, or with the specification as input."""
    output = code(scene, HOUSE)
    if rng.random() < 0.8:
        return {"instruction": instruction(scene, rng), "output": output}
    ask = rng.choice(("Make this.", "Model this.", "Write this."))
    lines = "\n".join(f"{key}: {value}" for key, value in specification(scene))
    return {"instruction": ask, "input": lines, "output": output}


def records(seed: int = SEED) -> dict[str, list[Record]]:
    """The splits. No output occurs twice, in one split or in two."""
    rng = random.Random(seed)
    unique: dict[str, Record] = {}
    while len(unique) < sum(SPLITS.values()):
        made = record(sample_scene(rng, radii=0), rng)
        if len(re.findall(r"\d|[A-Za-z]+|[^\w\s]+", "\n".join(made.values()))) <= LONGEST:
            unique.setdefault(made["output"], made)
    made = iter(unique.values())
    return {split: [next(made) for _ in range(count)] for split, count in SPLITS.items()}


def write(folder: Path) -> None:
    """Writes train.jsonl, val.jsonl and test.jsonl into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in records().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the quickstart's fine-tuning data.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data")
    write(parser.parse_args().output)

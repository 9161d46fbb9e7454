"""The files of a model folder that its tokenizer and its chat templates are read from.

What copies a model copies all of them, and what depends on a token depends on any of them. Beside the usual template a folder may
hold others by name, such as additional_chat_templates/tool_use.jinja, which transformers takes for conversations with tools.
"""

from pathlib import Path

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
TEMPLATES = ("chat_template.jinja", "chat_template.json")
BY_NAME = "additional_chat_templates/*.jinja"


def tokenizer_files(folder: Path) -> list[Path]:
    """Those that are there, relative to the folder, in a fixed order."""
    return [Path(name) for name in TOKENIZER if (folder / name).is_file()]


def template_files(folder: Path) -> list[Path]:
    """Chat templates in files of their own, relative to the folder, in a fixed order."""
    usual = [Path(name) for name in TEMPLATES if (folder / name).is_file()]
    return usual + sorted(path.relative_to(folder) for path in folder.glob(BY_NAME))

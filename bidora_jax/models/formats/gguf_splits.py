"""How a byte-level tokenizer splits a text before it merges, and llama.cpp's name for that: tokenizer.ggml.pre.

A GGUF file holds no pattern. It names one of those that are compiled into llama.cpp (src/llama-vocab.cpp), and a wrong name gives
other tokens without a word. llama.cpp's converter finds the name by a hash of one text's tokens, which knows the vocabularies that
somebody has registered. Here the tokenizer's own steps are compared with llama.cpp's: equal steps, equal name, whatever the
vocabulary; where none are equal there is no name.
"""

from collections.abc import Iterator
from typing import Any

from bidora_jax.errors import InputError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of ByteLevel's own split."""
QWEN2 = f"{_CONTRACTIONS}|{_WORDS}|{DIGIT}|{_SIGNS}|{_BLANKS}"
LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|{DIGIT}{{1,3}}|{_SIGNS}|{_BLANKS}"
QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
TEKKEN = f"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|{DIGIT}|{_SIGNS_AND_SLASHES}|{_BLANKS}"
GPT4O = (
    f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|"
    f"{DIGIT}{{1,3}}|{_SIGNS_AND_SLASHES}|{_BLANKS}"
)

NAMES: dict[tuple[str, ...], tuple[str | None, str | None]] = {
    (GPT2,): ("gpt-2", None),
    (DIGIT, GPT2): ("smollm", None),
    (QWEN2,): ("qwen2", None),
    (QWEN35,): ("qwen35", None),
    (LLAMA3,): ("smaug-bpe", "llama-bpe"),
    (TEKKEN,): (None, "tekken"),
    (GPT4O,): ("gpt-4o", None),
}
"""llama.cpp's name of each list of splits: without ignore_merges, with it. None: it has no such tokenizer."""
CASED = ("tekken", "gpt-4o")
"""Where llama.cpp has no classes of capital and small letters, and takes a letter's marks off it."""


PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
LETTERS = {chr(byte) for byte in PRINTABLE} | {chr(256 + number) for number in range(256 - len(PRINTABLE))}
"""What a byte-level tokenizer writes the 256 bytes as."""


def name_of(pre_tokenizer: dict[str, Any] | None, model: dict[str, Any]) -> str:
    """llama.cpp's name of the steps of a byte-level tokenizer, as tokenizer.json has them; InputError where it has none."""
    patterns = tuple(_patterns(list(steps(pre_tokenizer))))
    if model["unk_token"] is not None and LETTERS - model["vocab"].keys():
        raise InputError(_refusal("a token for bytes that it does not know (llama.cpp leaves them out)"))
    if not model["merges"] and not model["ignore_merges"]:
        return "gpt-2"  # every byte is a token, wherever the text is split
    said = f"the splits {', '.join(map(repr, patterns))}" if patterns else "no splits"
    if patterns not in NAMES:
        raise InputError(_refusal(said))
    name = NAMES[patterns][model["ignore_merges"]]
    if name is None:
        raise InputError(_refusal(f"ignore_merges {str(model['ignore_merges']).lower()} with {said}"))
    return name


def steps(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser or a pre-tokenizer, one after the other."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part["pretokenizers"] if "pretokenizers" in part else part["normalizers"]:
        yield from steps(inner)


def _patterns(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found or found[-1]["type"] != "ByteLevel" or any(step["type"] == "ByteLevel" for step in found[:-1]):
        raise InputError(_refusal("a pre-tokenizer that is not byte-level"))
    *splits, last = found
    if last["add_prefix_space"]:
        raise InputError(_refusal("a blank put before every text (add_prefix_space)"))
    for step in splits:
        yield _pattern(step)
    if last["use_regex"]:
        yield GPT2


def _pattern(step: dict[str, Any]) -> str:
    if step["type"] == "Digits" and step["individual_digits"]:
        return DIGIT
    plain = step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    if not plain or "Regex" not in step["pattern"]:
        raise InputError(
            _refusal(f"the step {step['type']} { ({key: value for key, value in step.items() if key != 'type'}) }")
        )
    return step["pattern"]["Regex"]


def _refusal(what: str) -> str:
    return (
        f"the tokenizer has {what}, which llama.cpp does not have: a GGUF file would give other tokens; use --format merged with "
        "another engine"
    )

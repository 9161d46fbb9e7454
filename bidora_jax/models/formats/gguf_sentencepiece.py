"""SentencePiece's BPE as tokenizer.json has it, for llama.cpp's "llama" tokenizer.

    tokenizer.json    merge the pair of lowest rank that is in the list of merges
    llama.cpp         merge the pair whose union is the token of highest score

They are the same where the list has every way to make a token out of two, and all ways of one token stand together: the score is
then −rank. So transformers makes the list out of SentencePiece's scores, and that is checked here. Merges that a trainer of byte
pairs found one by one are no such list, and are refused.
"""

from typing import Any, NamedTuple

from bidora_jax.errors import InputError, listing
from bidora_jax.models.formats import gguf_splits

BLANK = "▁"
NO_SCORE = -1e9
"""Of a token that no merge makes; nothing reads it."""
BYTES = {f"<0x{number:02X}>" for number in range(256)}


class SentencePiece(NamedTuple):
    scores: dict[int, float]
    """Of the tokens that merges make."""
    bytes: list[int]
    """The tokens of single bytes."""
    prefix: bool
    """Whether a blank is put before a text, and before what follows a special token."""
    notes: list[str]

    def score(self, number: int) -> float:
        return self.scores.get(number, NO_SCORE)


def is_one(steps: dict[str, Any]) -> bool:
    """Whether blanks are written as ▁, and what the vocabulary lacks as bytes."""
    found = [*gguf_splits.steps(steps["normalizer"]), *gguf_splits.steps(steps["pre_tokenizer"])]
    return bool(steps["model"]["byte_fallback"]) and all(
        step["type"] in ("Prepend", "Replace", "Metaspace") for step in found
    )


def read(steps: dict[str, Any], *, has_template: bool) -> SentencePiece:
    """InputError where llama.cpp would give other tokens. `has_template`: conversations, which begin with a special token, count
    for more than bare texts."""
    model = steps["model"]
    vocabulary, added = model["vocab"], {one["content"]: one for one in steps["added_tokens"]}
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = [text for text in vocabulary if text not in added]
    wrong = [*_wrong_bytes(vocabulary), *_wrong_blanks(steps, added)] or _wrong_merges(merges, made, vocabulary)
    if wrong:
        raise InputError(
            f"llama.cpp can't express this tokenizer, which writes blanks as {BLANK}:\n{listing(wrong)}\n"
            "use --format merged with another engine"
        )
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    prefix, notes = _prefix(steps, has_template)
    scores = {vocabulary[text]: -float(rank) for text, rank in ranks.items()}
    return SentencePiece(scores, [vocabulary[text] for text in BYTES], prefix, notes)


def _wrong_bytes(vocabulary: dict[str, int]) -> list[str]:
    missing = sorted(BYTES - vocabulary.keys())
    cut = [f"the token {text!r}, which llama.cpp reads up to its zero" for text in vocabulary if "\0" in text]
    return cut + ([f"no token for {len(missing)} of 256 bytes, such as {missing[0]}"] if missing else [])


def _wrong_blanks(steps: dict[str, Any], added: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    replaced = False
    for step in [*gguf_splits.steps(steps["normalizer"]), *gguf_splits.steps(steps["pre_tokenizer"])]:
        known = {
            "Prepend": lambda step: step["prepend"] == BLANK,
            "Replace": lambda step: step["pattern"] == {"String": " "} and step["content"] == BLANK,
            "Metaspace": lambda step: step["replacement"] == BLANK,
        }
        if not known[step["type"]](step):
            found.append(f"the step {step['type']} { ({key: value for key, value in step.items() if key != 'type'}) }")
        replaced |= step["type"] in ("Replace", "Metaspace")
        inside = [text for text in steps["model"]["vocab"] if BLANK in text[1:] and text not in added]
        if step["type"] == "Metaspace" and step["split"] and inside:
            found.append(
                f"a split at every blank, and tokens across blanks such as {inside[0]!r}, which llama.cpp would use"
            )
    if not replaced:
        found.append(f"no step that writes blanks as {BLANK}")
    normalised = [text for text, one in added.items() if one["normalized"] and steps["normalizer"] is not None]
    return found + [f"the added token {text!r} is looked for in the changed text (normalized)" for text in normalised]


def _wrong_merges(merges: list[tuple[str, ...]], texts: list[str], vocabulary: dict[str, int]) -> list[str]:
    """Ways to make a token that are not in the list, and merges of a token with another's between them."""
    listed, found, ended, last = set(merges), [], set(), ""
    for pair in merges:
        made = "".join(pair)
        if made != last and made in ended:
            found.append(f"merges that make {made!r} stand in several places of the list")
        ended.add(last := made)
    for text in texts:
        for at in range(1, len(text)):
            pair = (text[:at], text[at:])
            if pair[0] in vocabulary and pair[1] in vocabulary and pair not in listed:
                found.append(f"no merge of {pair[0]!r} and {pair[1]!r}, though {text!r} is a token")
    return found


def _prefix(steps: dict[str, Any], has_template: bool) -> tuple[bool, list[str]]:
    """llama.cpp puts a blank before every text and after every special token, or nowhere. So does a normaliser; Metaspace puts
    none before a blank, and with "first" none after a special token."""
    if any(step["type"] == "Prepend" for step in gguf_splits.steps(steps["normalizer"])):
        return True, []
    scheme = next(
        (s["prepend_scheme"] for s in gguf_splits.steps(steps["pre_tokenizer"]) if s["type"] == "Metaspace"), "never"
    )
    if scheme == "never":
        return False, []
    if scheme == "always":
        return True, ["before a text that begins with a blank llama.cpp puts another one, and this tokenizer none"]
    if has_template:
        return False, [
            "before a text without a special token llama.cpp puts no blank, and this tokenizer one; conversations agree"
        ]
    return True, ["after a special token llama.cpp puts a blank, and this tokenizer none"]

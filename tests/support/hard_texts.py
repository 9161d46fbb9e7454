"""Texts that a tokenizer which is only nearly the same cuts otherwise: blanks, lines, digits, contractions, scripts, marks."""

import random

LINES = (" ", "  ", "   ", "    ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\n \n", " \n", "\n ")
BLANKS = (*LINES, *"\u00a0\u2003\u3000\u2028\u2029\u0085\u200b\ufeff\x0b\x0c")
WORDS = "hello Hello HELLO hELLO don't DON'T I'll we'Ve they'RE it's o'clock rock'n'roll 's '' 'tis"
NUMBERS = "1 12 123 1234 1234567890 3.14159 1,000,000 0x1F v2.0 ٣٤ ² ½ Ⅳ"
SCRIPTS = (
    "naïve cafe\u0301 café Übung STRASSE straße ſ İstanbul привет мир Ελλάδα שלום مرحبا नमस्ते ไทย 我想在苹果工作 東京タワー "
    "カタカナ 한국어 \u1112\u1161\u11ab 𠀀 😀 👩\u200d👩\u200d👧 🇩🇪 👍🏽 e\u0301\u0302 \u0301"
)
SIGNS = '! ?! ... … -- —— () [](){} a_b a-b a.b a/b a\\b #tag @me $5 €5 50% x=y+1; != => `` "quoted" ‘quoted’ <b> </b> <| |>'
ODD = "<0x0A> <unk>x ▁ a▁b Ġ Ċ \x00 \x7f \ud7ff \ufffd \U0010ffff https://example.org/a?b=c&d=e me@example.org"
CODE = ("def f(x):\n    return x", "if (a) {\n\t\tb;\n}\n")
PARTS = (*(part for row in (WORDS, NUMBERS, SCRIPTS, SIGNS, ODD) for part in row.split(" ")), *CODE)


def hard_texts(special: tuple[str, ...] = (), count: int = 220) -> list[str]:
    """Each part alone, then random rows of parts and blanks; `special` tokens among them."""
    draw = random.Random(0)
    found = [*BLANKS, *PARTS, *(f" {part}" for part in PARTS[:20]), *(f"{part} " for part in PARTS[:20])]
    for token in special:
        found += [token, f"a{token}b", f" {token} ", f"{token}{token}", f"{token}\n", f"x {token} y"]
    while len(found) < count:
        kinds = [special if special and draw.random() < 0.1 else PARTS for _ in range(draw.randint(2, 9))]
        found.append("".join(draw.choice(kind) + draw.choice(("", *BLANKS)) for kind in kinds))
    return found

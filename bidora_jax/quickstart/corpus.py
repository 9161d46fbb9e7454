"""The text the quickstart model is pretrained on: commented OpenSCAD files, data sheets, and chats about them.

Two documents in five are code files, a comment followed by code in a random layout; one in eight is a data sheet. The
others are chats: describe this code, change one value of it, answer a question, repeat, write some part of this kind.
No chat turns a full description into its code and no document follows the house style of `make_data`: fine-tuning
teaches both.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from bidora_jax.quickstart.scenes import (
    COLORS,
    NAMES,
    Scene,
    Style,
    article,
    code,
    sample_body,
    sample_scene,
    sample_vector,
    say_body,
    say_extras,
    say_second,
    say_vector,
    specification,
)

Turn = tuple[str, str]

FILES, SHEETS = 0.38, 0.12
"""Shares of documents that are code files and data sheets; the others are chats."""


def sample_style(rng: random.Random) -> Style:
    """A layout of code found in the corpus. Never a house style: those have through=200."""
    return Style(
        module=rng.random() < 0.5,
        color_first=rng.random() < 0.5,
        lines=rng.random() < 0.3,
        center=rng.random() < 0.4,
        facets=rng.choice((0, 0, 32, 48, 100)),
        through=rng.choice((50, 100)),
    )


def sentence(scene: Scene, rng: random.Random) -> str:
    """The whole scene in one sentence."""
    name = scene.name
    subject = article(say_body(scene.body, rng, scene.color))
    clauses = say_extras(scene, rng)
    if scene.second:
        clauses.append(say_second(scene.second, rng))
    opening = rng.choice(
        (
            f"{subject}, called {name}",
            f"the {name}: {subject}",
            f"{name}, {subject}",
            f"the {name} is {subject}",
        )
    )
    return ", ".join([opening, *clauses])


def spec_lines(scene: Scene, rng: random.Random) -> list[str]:
    """The specification, one value a line."""
    mark = rng.choice((": ", " = "))
    return [f"{key}{mark}{value}" for key, value in specification(scene)]


def commented_file(rng: random.Random) -> Turn:
    """A comment, as a sentence or a specification, and the code."""
    scene = sample_scene(rng)
    if rng.random() < 0.7:
        comment = f"// {sentence(scene, rng)}"
    elif rng.random() < 0.5:
        comment = f"// {'; '.join(spec_lines(scene, rng))}"
    else:
        comment = "\n".join(f"// {line}" for line in spec_lines(scene, rng))
    return f"{comment}\n", f"{code(scene, sample_style(rng))}<|endoftext|>"


def sheet(rng: random.Random) -> Turn:
    """A sentence and its specification."""
    scene = sample_scene(rng)
    return f"{sentence(scene, rng)}.\n\n", "\n".join(spec_lines(scene, rng)) + "<|endoftext|>"


def describe(rng: random.Random) -> Turn:
    scene = sample_scene(rng)
    ask = rng.choice(("Describe this code.", "What does this code make?", "Say in words what this is."))
    return f"{ask}\n\n{code(scene, sample_style(rng))}", f"{sentence(scene, rng)}."


def tell(rng: random.Random) -> Turn:
    """Specification to English."""
    scene = sample_scene(rng)
    ask = rng.choice(("Put this into a sentence.", "Say this in words."))
    return ask + "\n\n" + "\n".join(spec_lines(scene, rng)), f"{sentence(scene, rng)}."


def edit(rng: random.Random) -> Turn:
    """One value of the code is changed, the layout stays."""
    scene, style = sample_scene(rng), sample_style(rng)
    kind = rng.choice(("color", "name", "body", "at", "style"))
    if kind == "name":
        scene, style = replace(scene, name=rng.choice(NAMES)), replace(style, module=True)
        changed = replace(scene, name=rng.choice(NAMES))
        ask = f"Rename the {scene.name} to {changed.name}."
    elif kind == "body":
        changed = replace(scene, body=sample_body(rng, radii=0.4))
        ask = f"Make it {article(say_body(changed.body, rng))}."
    elif kind == "at":
        scene, changed = replace(scene, at=sample_vector(rng)), replace(scene, at=sample_vector(rng))
        ask = f"Place it at {say_vector(changed.at or (0, 0, 0))}."
    elif kind == "style":
        changed = scene
        style, other = replace(style, module=False), replace(style, module=True)
        ask = f"Put it into a module called {scene.name}."
        return f"{ask}\n\n{code(scene, style)}", code(scene, other)
    else:
        changed = replace(scene, color=rng.choice(COLORS))
        ask = rng.choice(("Paint it", "Make it", "Change the color to")) + f" {changed.color}."
    return f"{ask}\n\n{code(scene, style)}", code(changed, style)


def question(rng: random.Random) -> Turn:
    """One value is asked for, out of English or code."""
    scene = sample_scene(rng)
    pairs = specification(scene)
    given = rng.random() < 0.6
    text = f"{sentence(scene, rng)}." if given else code(scene, replace(sample_style(rng), module=True))
    key, value = rng.choice(pairs)
    return f"{text}\n\nWhat is the {key}?", value


def request(rng: random.Random) -> Turn:
    """Code for a request that leaves all numbers open."""
    scene = sample_scene(rng)
    lead = rng.choice(("Make", "Model", "Create", "Design", "Please build", "I need", "Write"))
    wish = rng.choice((scene.name, scene.body.kind, f"{scene.color} {scene.name}", f"{scene.color} {scene.body.kind}"))
    return f"{lead} {article(wish)}.", code(scene, sample_style(rng))


def repeat(rng: random.Random) -> Turn:
    scene = sample_scene(rng)
    text = sentence(scene, rng) if rng.random() < 0.5 else code(scene, sample_style(rng))
    return f"{rng.choice(('Repeat this.', 'Copy this.', 'Say it again.'))}\n\n{text}", text


TASKS: tuple[tuple[Callable[[random.Random], Turn], int], ...] = (
    (describe, 4),
    (tell, 2),
    (edit, 4),
    (question, 1),
    (repeat, 1),
    (request, 4),
)
"""The chats with their shares."""


def chat(turn: Turn) -> Turn:
    """The two messages as the chat template writes them, up to and including the end of the answer."""
    user, assistant = turn
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", f"{assistant}<|im_end|>"


def document(rng: random.Random) -> Turn:
    """One document in two parts, what is given and what follows from it; its text is the two joined."""
    kind = rng.random()
    if kind < FILES + SHEETS:
        return commented_file(rng) if kind < FILES else sheet(rng)
    tasks, shares = zip(*TASKS, strict=True)
    return chat(rng.choices(tasks, shares)[0](rng))

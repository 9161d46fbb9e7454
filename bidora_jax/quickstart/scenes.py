"""Small 3D scenes: sampled, said in English or as a specification, and written as OpenSCAD.

A scene is one named, coloured part: a body (box, cylinder, sphere, cone), maybe moved, maybe turned, maybe with a hole,
or joined with or cut by a second body. Every sentence states every number of its scene, so the code follows from the
sentence alone. `corpus` writes the text the quickstart model is pretrained on, `make_data` the pairs it is fine-tuned
on; both speak through this module. Lengths are millimetres, angles degrees.
"""

import random
from dataclasses import dataclass

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black", "gray", "brown", "pink", "cyan")
NAMES = (
    "lid", "base", "peg", "knob", "block", "plate", "bracket", "wheel", "tower", "post", "cap", "tray", "shelf",
    "handle", "panel", "stand", "foot", "hub", "pin", "spacer", "cover", "column", "button", "dial", "mount", "step",
    "roof", "wall", "marker", "weight", "stopper", "nozzle",
)  # fmt: skip
KINDS = ("box", "cylinder", "sphere", "cone")
AXES = "xyz"
ANGLES = (10, 15, 20, 25, 30, 40, 45, 50, 60, 70, 75, 80, 90)

Vector = tuple[int, int, int]


@dataclass(frozen=True)
class Body:
    """A primitive. Its sizes, by kind: box (width, depth, height), cylinder (across, height), sphere (across,), cone
    (bottom, top, height)."""

    kind: str
    sizes: tuple[int, ...]
    radius: bool
    """Whether the sizes across are radii; diameters otherwise. A cone is always given by diameters."""


@dataclass(frozen=True)
class Second:
    """What is joined with the body or cut out of it, and where."""

    joined: bool
    body: Body
    at: Vector


@dataclass(frozen=True)
class Scene:
    """One part."""

    name: str
    color: str
    body: Body
    at: Vector | None = None
    turn: tuple[str, int] | None = None
    hole: int | None = None
    second: Second | None = None


def sample_body(rng: random.Random, radii: float, kinds: tuple[str, ...] = KINDS) -> Body:
    """A primitive with sizes of 4 to 60 mm. `radii` is the share of cylinders and spheres given by their radius."""
    kind = rng.choice(kinds)
    count = {"box": 3, "cylinder": 2, "sphere": 1, "cone": 3}[kind]
    sizes = tuple(rng.randint(4, 60) for _ in range(count))
    return Body(kind, sizes, kind in ("cylinder", "sphere") and rng.random() < radii)


def sample_vector(rng: random.Random) -> Vector:
    """An offset that is not zero; half of them along one axis."""

    def number() -> int:
        return rng.randint(1, 50) * (-1 if rng.random() < 0.15 else 1)

    if rng.random() < 0.5:
        axis = rng.randrange(3)
        x, y, z = (number() if i == axis else 0 for i in range(3))
        return x, y, z
    return number(), number() if rng.random() < 0.7 else 0, number()


def sample_scene(rng: random.Random, radii: float = 0.4) -> Scene:
    """A scene with up to two of: moved, turned, a hole; or with a second body instead."""
    name, color = rng.choice(NAMES), rng.choice(COLORS)
    if rng.random() < 0.3:
        second = Second(rng.random() < 0.5, sample_body(rng, radii, ("box", "cylinder", "sphere")), sample_vector(rng))
        return Scene(name, color, sample_body(rng, radii), second=second)
    extras = rng.sample(("at", "turn", "hole"), rng.choice((0, 1, 1, 2, 2)))
    body = sample_body(rng, radii)
    return Scene(
        name,
        color,
        body,
        sample_vector(rng) if "at" in extras else None,
        (rng.choice(AXES), rng.choice(ANGLES)) if "turn" in extras else None,
        rng.randint(2, min(body.sizes[:2]) - 1) if "hole" in extras else None,
    )


# English


def article(noun: str) -> str:
    """The noun phrase with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou8' or noun.startswith(('11 ', '18 ')) else 'a'} {noun}"


def say_list(items: list[str]) -> str:
    """a; a and b; a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def say_vector(vector: tuple[int, ...]) -> str:
    """[4,0,10], in English as in code."""
    return f"[{','.join(str(number) for number in vector)}]"


def say_sizes(body: Body, rng: random.Random) -> str:
    """The sizes as nouns or adjectives, in any order: `of width 12 and height 5`, `5 high and 12 wide`."""
    across = "radius" if body.radius else "diameter"
    nouns, adjectives = {
        "box": (("width", "depth", "height"), ("wide", "deep", "high")),
        "cylinder": ((across, "height"), (f"in {across}", "high")),
        "sphere": ((across,), (f"in {across}",)),
        "cone": (("bottom diameter", "top diameter", "height"), ("across the bottom", "across the top", "high")),
    }[body.kind]
    order = rng.sample(range(len(body.sizes)), len(body.sizes)) if rng.random() < 0.5 else range(len(body.sizes))
    if rng.random() < 0.5:
        return "of " + say_list([f"{nouns[i]} {body.sizes[i]}" for i in order])
    return say_list([f"{body.sizes[i]} {adjectives[i]}" for i in order])


def say_body(body: Body, rng: random.Random, color: str = "") -> str:
    """A noun phrase without article: `red box 12 wide, 8 deep and 5 high`."""
    noun = f"{color} {body.kind}".strip()
    if body.kind == "box" and rng.random() < 0.3:
        return f"{' x '.join(str(size) for size in body.sizes)} {noun}"
    return f"{noun} {say_sizes(body, rng)}"


def say_move(vector: Vector, rng: random.Random) -> str:
    """Where the part goes; an offset along one axis may be said by the axis alone."""
    moved = [(axis, number) for axis, number in zip(AXES, vector, strict=True) if number]
    if len(moved) == 1 and rng.random() < 0.6:
        axis, number = moved[0]
        return f"moved {number} along {axis}"
    return f"{rng.choice(('moved by', 'placed at', 'set at'))} {say_vector(vector)}"


def say_extras(scene: Scene, rng: random.Random) -> list[str]:
    """The clauses after the noun phrase, without the second body, in any order."""
    clauses = []
    if scene.at:
        clauses.append(say_move(scene.at, rng))
    if scene.turn:
        axis, angle = scene.turn
        clauses.append(f"{rng.choice(('turned', 'rotated'))} {angle} degrees about {axis}")
    if scene.hole:
        clauses.append(f"with a {rng.choice(('hole', 'bore'))} of diameter {scene.hole}")
    return rng.sample(clauses, len(clauses))


def say_second(second: Second, rng: random.Random) -> str:
    """The clause of the second body."""
    verb = rng.choice(("joined with", "plus")) if second.joined else rng.choice(("cut by", "minus"))
    return f"{verb} {article(say_body(second.body, rng))} at {say_vector(second.at)}"


def specification(scene: Scene) -> list[tuple[str, str]]:
    """The scene as (key, value) pairs in a fixed order."""
    pairs = [("name", scene.name), ("color", scene.color), ("shape", _shape(scene.body))]
    if scene.at:
        pairs.append(("at", say_vector(scene.at)))
    if scene.turn:
        pairs.append(("turn", f"{scene.turn[0]} {scene.turn[1]}"))
    if scene.hole:
        pairs.append(("hole", str(scene.hole)))
    if scene.second:
        pairs.append(("join" if scene.second.joined else "cut", _shape(scene.second.body)))
        pairs.append(("offset", say_vector(scene.second.at)))
    return pairs


def _shape(body: Body) -> str:
    across = " radius" if body.radius else " diameter" if body.kind in ("cylinder", "sphere") else ""
    return f"{body.kind}{across} {say_vector(body.sizes)}"


# OpenSCAD


@dataclass(frozen=True)
class Style:
    """How code is laid out; it never changes which numbers appear."""

    module: bool
    """Inside a module of the part's name, which is called at the end; otherwise statements at the top level."""
    color_first: bool
    """color() outside of translate() and rotate(); inside of them otherwise."""
    lines: bool
    """Each wrapper on its own line; all on one line otherwise."""
    center: bool
    facets: int
    """$fn of round bodies; 0 leaves it out."""
    through: int
    """Length of a hole."""


def code_body(body: Body, style: Style) -> str:
    """One primitive with its semicolon."""
    across = "r" if body.radius else "d"
    sizes = body.sizes
    arguments = {
        "box": lambda: [say_vector(sizes)],
        "cylinder": lambda: [f"h={sizes[1]}", f"{across}={sizes[0]}"],
        "sphere": lambda: [f"{across}={sizes[0]}"],
        "cone": lambda: [f"h={sizes[2]}", f"d1={sizes[0]}", f"d2={sizes[1]}"],
    }[body.kind]()
    if style.center and body.kind != "sphere":
        arguments.append("center=true")
    if style.facets and body.kind != "box":
        arguments.append(f"$fn={style.facets}")
    primitive = {"box": "cube", "cone": "cylinder"}
    return f"{primitive.get(body.kind, body.kind)}({','.join(arguments)});"


def code_solid(scene: Scene, style: Style) -> list[str]:
    """The body with its hole or its second body, as lines."""
    body = code_body(scene.body, style)
    if scene.hole:
        other = code_body(Body("cylinder", (scene.hole, style.through), False), style)
    elif scene.second:
        other = f"translate({say_vector(scene.second.at)}) {code_body(scene.second.body, style)}"
    else:
        return [body]
    operator = "union" if scene.second and scene.second.joined else "difference"
    return [f"{operator}() {{", f"  {body}", f"  {other}", "}"]


def code(scene: Scene, style: Style) -> str:
    """The scene as a program. Wrappers apply from the inside out: turned first, then moved."""
    moves = [f"translate({say_vector(scene.at)})"] if scene.at else []
    if scene.turn:
        axis, angle = scene.turn
        moves.append(f"rotate({say_vector(tuple(angle if axis == a else 0 for a in AXES))})")
    color = [f'color("{scene.color}")']
    wrappers = color + moves if style.color_first else moves + color
    solid = code_solid(scene, style)
    lines = [*wrappers, *solid] if style.lines else [" ".join([*wrappers, solid[0]]), *solid[1:]]
    if not style.module:
        return "\n".join(lines)
    return "\n".join([f"module {scene.name}() {{", *(f"  {line}" for line in lines), "}", f"{scene.name}();"])

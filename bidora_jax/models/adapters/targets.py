r"""Which modules an adapter's settings mean, and with what rank and scale: PEFT's rules over Hugging Face's module names.

    target_modules, exclude_modules   a list: names, or what follows a dot in them; a text: a regular expression for all of a name
    layers_to_transform               numbers of layers, where target_modules is a list
    rank_pattern, alpha_pattern       {KEY: value}: re.match(r"(.*\.)?(KEY)$", name); the first key that matches decides

These are `check_target_module_exists` and `get_pattern_key` of PEFT 0.21. A name, a layer or a pattern that matches nothing is
refused, where PEFT lets it pass. A command line can't tell a text from a list of one entry: such a list is a regular expression
when its entry has a character that no module name has. Rank 0 leaves a module out. Nothing here needs JAX.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.machine.bounds import at_most
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.architecture import (
    Architecture,
    by_role,
    embeddings,
    linear_names,
    linear_shapes,
    module_name,
)
from bidora_jax.models.architectures.heads import TRAINED_BY_PEFT, HeadSpec

ALL_LINEAR = "all-linear"

Names = str | Sequence[str]
Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Site:
    """The linear layers of one path, over the whole depth."""

    path: str
    """Path inside a layer, such as 'self_attn.q_proj'."""
    ranks: tuple[int, ...]
    """r by layer; 0 where it is not adapted."""
    scales: tuple[float, ...]
    """s by layer; 0 where it is not adapted."""

    @property
    def rank(self) -> int:
        """The rank that the factors are stacked with."""
        return max(self.ranks)

    @property
    def scale(self) -> float | None:
        """s where every layer is adapted with the same s; None where s is data, one number a layer."""
        return self.scales[0] if len(set(self.scales)) == 1 else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the adapted layers."""
        return tuple(layer for layer, rank in enumerate(self.ranks) if rank)


def sites(settings: AdapterConfig, architecture: Architecture, *, strict: bool = True) -> tuple[Site, ...]:
    """The linear layers that the settings adapt, in the architecture's order.

    InputError for a name that matches nothing, an invalid regular expression, and a rank that its layer can't have. Without
    `strict`, exclusions and patterns may match nothing, since files name modules that a model of another kind has, and a
    rank may be larger than its layer, since a conversion doubles it.
    """
    shapes, layers = linear_shapes(architecture), range(architecture.num_layers)
    paths = {module_name(architecture, layer, path): path for path in shapes for layer in layers}
    picked = _picked(settings, list(paths), architecture, strict)
    ranks = _by_pattern("rank_pattern", settings.rank, dict(settings.rank_pattern), picked, strict)
    alphas = _by_pattern("alpha_pattern", settings.alpha, dict(settings.alpha_pattern), picked, strict)
    _refuse_ranks(ranks, {name: shapes[paths[name]] for name in picked}, strict)
    if wrong := [f"{alphas[name]} at {name}" for name in picked if alphas[name] <= 0]:
        raise InputError(f"adapter.alpha must be positive, found\n{listing(wrong)}\nit is often once or twice the rank")
    root = 0.5 if settings.rslora else 1.0
    scales = {name: alphas[name] / ranks[name] ** root if ranks[name] else 0.0 for name in picked}
    if not any(ranks.values()):
        raise InputError("adapter.rank_pattern gives every module rank 0: there is nothing to adapt")
    found = []
    for path in shapes:
        names = [module_name(architecture, layer, path) for layer in layers]
        site = Site(path, tuple(ranks.get(name, 0) for name in names), tuple(scales.get(name, 0.0) for name in names))
        found += [site] if site.rank else []
    return tuple(found)


def whole_modules(settings: AdapterConfig, architecture: Architecture, head: HeadSpec | None = None) -> tuple[str, ...]:
    """The modules that are trained whole, by their key in the base tree; InputError for a name of any other module.

    Names of parts of the `head`, and the two that PEFT adds for every classifier, are none of them.
    """
    modules = {key: spec.module for key, spec in embeddings(architecture).items()}
    parts = () if head is None else head.parts
    names = [n for n in settings.modules_to_save if not any(part.is_named([n]) for part in parts)]
    tests = {name: _ending(name) for name in names if head is None or name not in TRAINED_BY_PEFT}
    if unknown := [name for name, test in tests.items() if not any(map(test, modules.values()))]:
        short = [module.rpartition(".")[2] for module in reversed(modules.values())]
        short += dict.fromkeys(part.saved_as for part in parts)
        found = ", ".join(f"{name!r}{did_you_mean(name, short)}" for name in unknown)
        raise InputError(f"adapter.modules_to_save: expected {' or '.join(short) or 'none'}, found {found}")
    return tuple(key for key, module in modules.items() if any(test(module) for test in tests.values()))


def differences(wanted: Sequence[Site], found: Sequence[Site]) -> list[str]:
    """What differs between the sites of two adapters, one line a path."""
    ours, theirs = ({site.path: site for site in sites} for sites in (wanted, found))
    pairs = {path: (ours.get(path), theirs.get(path)) for path in [*ours, *theirs]}
    return [f"{path}: {_spelt(one)}, found {_spelt(other)}" for path, (one, other) in pairs.items() if one != other]


def _spelt(site: Site | None) -> str:
    if site is None:
        return "not adapted"
    ranks, scales = (sorted({value for value in values if value}) for values in (site.ranks, site.scales))
    where = "" if all(site.ranks) else f" in layers {', '.join(map(str, site.layers))}"
    return f"rank {', '.join(map(str, ranks))} and s {', '.join(f'{scale:g}' for scale in scales)}{where}"


def as_pattern(names: Names) -> Names:
    """The settings' list by its meaning: a regular expression as a text, everything else as a list."""
    if isinstance(names, str):
        return ALL_LINEAR if names.lower() == ALL_LINEAR else names
    names = tuple(names)
    if len(names) == 1 and (names[0] == ALL_LINEAR or not re.fullmatch(r"[\w.]*", names[0])):
        return names[0]
    return names


def meant(names: Names, architecture: Architecture) -> Names:
    """`as_pattern` on this model: names of roles are those of its layers (architectures/architecture.py)."""
    names = as_pattern(names)
    return names if isinstance(names, str) else by_role(architecture, names)


def _picked(settings: AdapterConfig, linears: list[str], architecture: Architecture, strict: bool) -> list[str]:
    """Names of the modules to adapt, in the order of `linears`, which names all linear layers."""
    wanted, unwanted = (meant(names, architecture) for names in (settings.target_modules, settings.exclude_modules))
    whole = [] if wanted == ALL_LINEAR else [spec.module for spec in embeddings(architecture).values()]
    candidates, known = [*linears, *whole], linear_names(architecture)
    found = _matching("target_modules", wanted, candidates, known)
    if settings.layers_to_transform:
        found = _in_layers(settings, wanted, found, architecture)
    if unwanted:
        found -= _matching("exclude_modules", unwanted, candidates, known, strict)
    if outside := sorted(found - set(linears)):
        raise InputError(
            f"adapter.target_modules: an adapter on {', '.join(outside)} is not supported; only the linear layers "
            "inside the layers are adapted"
        )
    if not found:
        raise InputError("adapter.exclude_modules leaves nothing of adapter.target_modules: there is nothing to adapt")
    return [name for name in linears if name in found]


def _matching(setting: str, names: Names, modules: list[str], known: Sequence[str], strict: bool = True) -> set[str]:
    """The modules that the names select; `known` are the names that a message recommends."""
    if names == ALL_LINEAR:
        return set(modules)
    if isinstance(names, str):
        tests = {names: _compiled(setting, names).fullmatch}
        remedy = f"a regular expression has to match all of a name, such as {modules[0]}"
    else:
        tests = {name: _ending(name) for name in names}
        remedy = f"expected some of {', '.join(sorted(known))}, longer endings of module names, or all-linear"
    with at_most(LONGEST_SEARCH, lambda: _endless(setting, list(tests))):
        picked = {name: [module for module in modules if test(module)] for name, test in tests.items()}
    idle = [name for name, found in picked.items() if not found]
    if strict and (idle or not tests):
        endings = {module.split(".")[-1] for module in modules}
        found = ", ".join(f"{name!r}{did_you_mean(name, endings)}" for name in idle) or "none at all"
        raise InputError(f"adapter.{setting}: no linear layer of this model matches {found}; {remedy}")
    return {module for found in picked.values() for module in found}


def _ending(name: str) -> Callable[[str], bool]:
    return lambda module: module == name or module.endswith(f".{name}")


def _in_layers(settings: AdapterConfig, wanted: Names, found: set[str], architecture: Architecture) -> set[str]:
    """The modules of `found` whose layers are in layers_to_transform."""
    prefix, layers = architecture.layer_prefix, architecture.num_layers
    if isinstance(wanted, str) and wanted != ALL_LINEAR:
        raise InputError(
            "adapter.layers_to_transform needs target_modules to be a list of names, as in PEFT; a regular expression "
            rf"can name the layers itself: .*\.{prefix.rpartition('.')[2]}\.(0|1)\..*"
        )
    chosen = set(settings.layers_to_transform)
    if outside := sorted(chosen - set(range(layers))):
        raise InputError(
            f"adapter.layers_to_transform: there is no layer {', '.join(map(str, outside))}; this model has the layers "
            f"0 to {layers - 1}"
        )
    return {name for name in found if any(name.startswith(f"{prefix}.{layer}.") for layer in chosen)}


def _by_pattern(
    setting: str, default: Value, pattern: Mapping[str, Value], modules: list[str], strict: bool
) -> dict[str, Value]:
    """The value of each module: that of the first key that matches its name."""
    keys = {key: _compiled(setting, rf"(.*\.)?({key})$") for key in pattern}
    with at_most(LONGEST_SEARCH, lambda: _endless(setting, list(keys))):
        picked = {key: {module for module in modules if expression.match(module)} for key, expression in keys.items()}
    idle = [key for key, found in picked.items() if not found]
    if strict and idle:
        raise InputError(
            f"adapter.{setting}: no adapted module matches {', '.join(map(repr, idle))}; a key is the end of a module name "
            "after a dot, or a regular expression for such an end"
        )

    def value(module: str) -> Value:
        return next((pattern[key] for key, found in picked.items() if module in found), default)

    return {module: value(module) for module in modules}


LONGEST_SEARCH = 5.0
"""Seconds that a setting's expressions may take for all names of modules; a plain one takes milliseconds."""


def _endless(setting: str, expressions: list[str]) -> InputError:
    return InputError(
        f"adapter.{setting}: matching {', '.join(map(repr, expressions))} against the names of the modules takes more than "
        f"{LONGEST_SEARCH:g} s; write it without a repetition inside a repetition, such as (a+)+, or list the names"
    )


def _compiled(setting: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"adapter.{setting}: {expression!r} is not a regular expression: {error}") from None


def _refuse_ranks(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], strict: bool) -> None:
    if negative := [f"{rank} at {name}" for name, rank in ranks.items() if rank < 0]:
        raise InputError(f"adapter.rank_pattern: a rank is at least 0, found\n{listing(negative)}")
    smallest = min(min(shape) for shape in shapes.values())
    large = [
        f"rank {ranks[name]} at {name}, whose smaller side is {min(shape)}"
        for name, shape in shapes.items()
        if ranks[name] > min(shape)
    ]
    if strict and large:
        raise InputError(
            f"adapter.rank is larger than the layer:\n{listing(large)}\na rank of at most {smallest} fits everywhere; "
            "adapter.rank_pattern sets single modules"
        )

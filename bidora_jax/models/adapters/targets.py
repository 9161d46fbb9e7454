r"""Which modules an adapter's settings mean, and with what rank and scale: PEFT's rules over Hugging Face's module names.

    target_modules, exclude_modules   a list: names, or what follows a dot in them; a text: a regular expression for all of a name
    layers_to_transform               numbers of layers, where target_modules is a list
    rank_pattern, alpha_pattern       {KEY: value}: re.match(r"(.*\.)?(KEY)$", name); the first key that matches decides

These are `check_target_module_exists` and `get_pattern_key` of PEFT 0.21. What PEFT lets pass is refused: a name, a layer or
a pattern that matches nothing. A command line has no lone text: a list of one entry is a regular expression when the entry
has a character that no module name has. Rank 0 leaves a module out. Nothing here needs JAX.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bidora_jax.errors import InputError, did_you_mean, listing
from bidora_jax.models.adapters.settings import AdapterConfig

ALL_LINEAR = "all-linear"
WHOLE = ("embed_tokens", "lm_head")
"""Modules outside the layers, which can be trained whole."""

Names = str | Sequence[str]
Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Site:
    """One linear layer of the decoder, over the whole depth."""

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
        """s where every layer is adapted and has the same; None where it is data, one number a layer."""
        return self.scales[0] if len(set(self.scales)) == 1 else None

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the adapted layers."""
        return tuple(layer for layer, rank in enumerate(self.ranks) if rank)


def sites(
    settings: AdapterConfig, shapes: Mapping[str, tuple[int, int]], layers: int, *, strict: bool = True
) -> tuple[Site, ...]:
    """What the settings adapt in `layers` layers whose linear layers have these paths and shapes (O, I), in their order.

    InputError for whatever matches nothing, is no regular expression, or has a rank that its layer can't have. Without
    `strict`, exclusions and patterns may match nothing, for files name modules that a model of another kind has, and a
    rank may be larger than its layer, for a conversion doubles it.
    """
    places = {name_of(layer, path): (path, layer) for path in shapes for layer in range(layers)}
    picked = _picked(settings, list(places), layers, strict)
    ranks = _by_pattern("rank_pattern", settings.rank, dict(settings.rank_pattern), picked, strict)
    alphas = _by_pattern("alpha_pattern", settings.alpha, dict(settings.alpha_pattern), picked, strict)
    _refuse_ranks(ranks, {name: shapes[places[name][0]] for name in picked}, strict)
    if wrong := [f"{alphas[name]} at {name}" for name in picked if alphas[name] <= 0]:
        raise InputError(f"adapter.alpha must be positive, found\n{listing(wrong)}\nit is often once or twice the rank")
    root = 0.5 if settings.rslora else 1.0
    scales = {name: alphas[name] / ranks[name] ** root if ranks[name] else 0.0 for name in picked}
    if not any(ranks.values()):
        raise InputError("adapter.rank_pattern gives every module rank 0: there is nothing to adapt")
    found = []
    for path in shapes:
        names = [name_of(layer, path) for layer in range(layers)]
        site = Site(path, tuple(ranks.get(name, 0) for name in names), tuple(scales.get(name, 0.0) for name in names))
        found += [site] if site.rank else []
    return tuple(found)


def whole_modules(settings: AdapterConfig) -> tuple[str, ...]:
    """The modules that are trained whole; InputError for one that can't be."""
    names = [name.removeprefix("model.") for name in settings.modules_to_save]
    if unknown := [name for name in names if name not in WHOLE]:
        found = ", ".join(f"{name!r}{did_you_mean(name, WHOLE)}" for name in unknown)
        raise InputError(f"adapter.modules_to_save: expected lm_head or embed_tokens, found {found}")
    return tuple(name for name in WHOLE if name in names)


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


def name_of(layer: int, path: str) -> str:
    """Hugging Face's name of a module inside a decoder layer."""
    return f"model.layers.{layer}.{path}"


def as_pattern(names: Names) -> Names:
    """The settings' list as what it means: a regular expression as a text, everything else as a list."""
    if isinstance(names, str):
        return ALL_LINEAR if names.lower() == ALL_LINEAR else names
    names = tuple(names)
    if len(names) == 1 and (names[0] == ALL_LINEAR or not re.fullmatch(r"[\w.]*", names[0])):
        return names[0]
    return names


def _picked(settings: AdapterConfig, linears: list[str], layers: int, strict: bool) -> list[str]:
    """Names of the modules to adapt, in the order of `linears`."""
    wanted, unwanted = as_pattern(settings.target_modules), as_pattern(settings.exclude_modules)
    candidates = linears if wanted == ALL_LINEAR else [*linears, "model.embed_tokens", "lm_head"]
    found = _matching("target_modules", wanted, candidates)
    if settings.layers_to_transform:
        found = _in_layers(settings, wanted, found, layers)
    if unwanted:
        found -= _matching("exclude_modules", unwanted, candidates, strict)
    if outside := sorted(found - set(linears)):
        raise InputError(
            f"adapter.target_modules: an adapter on {', '.join(outside)} is not supported; only the linear layers "
            "inside the decoder layers are adapted"
        )
    if not found:
        raise InputError("adapter.exclude_modules leaves nothing of adapter.target_modules: there is nothing to adapt")
    return [name for name in linears if name in found]


def _matching(setting: str, names: Names, modules: list[str], strict: bool = True) -> set[str]:
    if names == ALL_LINEAR:
        return set(modules)
    if isinstance(names, str):
        tests = {names: _compiled(setting, names).fullmatch}
        remedy = "a regular expression has to match all of a name, such as model.layers.0.self_attn.q_proj"
    else:
        tests = {name: _ending(name) for name in names}
        known = sorted({module.split(".")[-1] for module in modules} - {"lm_head", "embed_tokens"})
        remedy = f"expected some of {', '.join(known)}, longer endings of module names, or all-linear"
    idle = [name for name, test in tests.items() if not any(map(test, modules))]
    if strict and (idle or not tests):
        endings = {module.split(".")[-1] for module in modules}
        found = ", ".join(f"{name!r}{did_you_mean(name, endings)}" for name in idle) or "none at all"
        raise InputError(f"adapter.{setting}: no linear layer of this model matches {found}; {remedy}")
    return {module for module in modules if any(test(module) for test in tests.values())}


def _ending(name: str) -> Callable[[str], bool]:
    return lambda module: module == name or module.endswith(f".{name}")


def _in_layers(settings: AdapterConfig, wanted: Names, found: set[str], layers: int) -> set[str]:
    if isinstance(wanted, str) and wanted != ALL_LINEAR:
        raise InputError(
            "adapter.layers_to_transform needs target_modules to be a list of names, as in PEFT; a regular expression "
            r"can name the layers itself: .*\.layers\.(0|1)\..*_proj"
        )
    chosen = set(settings.layers_to_transform)
    if outside := sorted(chosen - set(range(layers))):
        raise InputError(
            f"adapter.layers_to_transform: there is no layer {', '.join(map(str, outside))}; this model has the layers "
            f"0 to {layers - 1}"
        )
    return {name for name in found if any(name.startswith(f"model.layers.{layer}.") for layer in chosen)}


def _by_pattern(
    setting: str, default: Value, pattern: Mapping[str, Value], modules: list[str], strict: bool
) -> dict[str, Value]:
    """The value of each module: that of the first key that matches its name."""
    keys = {key: _compiled(setting, rf"(.*\.)?({key})$") for key in pattern}
    idle = [key for key, expression in keys.items() if not any(map(expression.match, modules))]
    if strict and idle:
        raise InputError(
            f"adapter.{setting}: no adapted module matches {', '.join(map(repr, idle))}; a key is the end of a module name "
            "after a dot, or a regular expression for such an end"
        )

    def value(module: str) -> Value:
        return next((pattern[key] for key, expression in keys.items() if expression.match(module)), default)

    return {module: value(module) for module in modules}


def _compiled(setting: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
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

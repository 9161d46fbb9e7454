"""Which modules the settings mean: PEFT's matching is the oracle, and what matches nothing is refused."""

import re
from dataclasses import replace
from itertools import product

import pytest
from tiny import CONFIG

from bidora_jax.errors import InputError
from bidora_jax.models.adapters import targets
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.architecture import module_name

DEEP = replace(CONFIG, num_layers=12)
NAMES = [module_name(DEEP, layer, linear.path) for linear in DEEP.linears for layer in range(DEEP.num_layers)]


def found(**settings) -> dict[str, tuple[int, float]]:
    """(rank, scale) of every adapted module."""
    sites = targets.sites(AdapterConfig(**settings), DEEP)
    return {
        module_name(DEEP, layer, site.path): (site.ranks[layer], site.scales[layer])
        for site in sites
        for layer in site.layers
    }


def refused(**settings) -> str:
    with pytest.raises(InputError) as error:
        found(**settings)
    return str(error.value)


TARGETS = [("q_proj", "v_proj"), ("self_attn.k_proj", "mlp.down_proj"), ("model.layers.1.mlp.up_proj", "layers.11.mlp.up_proj"),
           r".*\.layers\.(1|10)\..*_proj", r"model\.layers\.\d+\.mlp\.(gate|up)_proj"]  # fmt: skip
EXCLUDED = [(), ("layers.1.mlp.up_proj", "q_proj"), r".*\.1[01]\..*"]
PATTERNS = [{}, {"q_proj": 3, r"layers.\d.*_proj": 5}, {r"1\.self_attn\.[qk]_proj": 2, "q_proj": 4, ".*": 6}]


@pytest.mark.torch
@pytest.mark.parametrize(("wanted", "unwanted", "pattern"), list(product(TARGETS, EXCLUDED, PATTERNS)))
def test_modules_ranks_and_alphas_are_those_of_peft(wanted, unwanted, pattern):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    layers = None if isinstance(wanted, str) else [1, 10, 11]
    listed = lambda names: names if isinstance(names, str) else list(names) or None  # noqa: E731
    theirs = LoraConfig(
        r=7, target_modules=listed(wanted), exclude_modules=listed(unwanted), layers_to_transform=layers
    )
    expected = {}
    for name in NAMES:
        if check_target_module_exists(theirs, name):
            rank = pattern.get(get_pattern_key(pattern, name), 7)
            expected[name] = (rank, pattern.get(get_pattern_key(pattern, name), 9.0) / rank)
    settings = AdapterConfig(
        rank=7, alpha=9.0, target_modules=wanted, exclude_modules=unwanted, layers_to_transform=tuple(layers or ()),
        rank_pattern=tuple(pattern.items()), alpha_pattern=tuple((key, float(value)) for key, value in pattern.items()),
    )  # fmt: skip
    if not expected:
        with pytest.raises(InputError, match="nothing"):
            targets.sites(settings, DEEP, strict=False)
        return
    sites = targets.sites(settings, DEEP, strict=False)
    assert expected == {module_name(DEEP, n, s.path): (s.ranks[n], s.scales[n]) for s in sites for n in s.layers}


def test_all_linear_and_single_entries():
    assert set(found(target_modules=("all-linear",))) == set(found(target_modules="All-Linear")) == set(NAMES)
    assert (
        found(target_modules=(r".*\.q_proj",))
        == found(target_modules=r".*\.q_proj")
        == found(target_modules=("q_proj",))
    )
    assert set(found(target_modules=("all-linear",), layers_to_transform=(3,))) == {n for n in NAMES if ".3." in n}


def test_scales():
    settings = {
        "rank": 8,
        "alpha": 12.0,
        "target_modules": ("q_proj",),
        "rank_pattern": (("layers.1.self_attn.q_proj", 2),),
    }
    by_rank = found(**settings)
    assert by_rank["model.layers.0.self_attn.q_proj"] == (8, 1.5)
    assert by_rank["model.layers.1.self_attn.q_proj"] == (2, 6.0)
    assert by_rank["model.layers.11.self_attn.q_proj"] == (8, 1.5)
    assert found(**settings, rslora=True)["model.layers.1.self_attn.q_proj"] == (2, 12 / 2**0.5)


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_an_expression_without_end_is_refused(setting, monkeypatch):
    """They come from adapter_config.json, a file of somebody else's."""
    monkeypatch.setattr(targets, "LONGEST_SEARCH", 0.2)
    endless, value = "([a-z_.0-9]+)+!", 2 if setting == "rank_pattern" else 2.0
    settings = {setting: endless if setting.endswith("modules") else ((endless, value),)}
    with pytest.raises(InputError, match=rf"adapter.{setting}: matching .* takes more than 0.2 s"):
        found(**settings)
    with pytest.raises(InputError, match=rf"adapter.{setting}: .* is not a regular expression"):
        found(**{setting: "a{1,4294967296}" if setting.endswith("modules") else (("a{1,4294967296}", value),)})


def test_a_scale_is_a_number_where_it_is_one():
    def of(**settings):
        return targets.sites(
            AdapterConfig(rank=8, alpha=12.0, target_modules=("q_proj",), **settings), replace(CONFIG, num_layers=3)
        )[0]

    assert of().scale == 1.5
    key = "layers.1.self_attn.q_proj"
    assert of(rank_pattern=((key, 4),), alpha_pattern=((key, 6.0),)).scale == 1.5
    assert of(rank_pattern=((key, 4),)).scale is None
    left_out = of(rank_pattern=((key, 0),))
    assert (left_out.scale, left_out.ranks, left_out.scales, left_out.layers) == (
        None,
        (8, 0, 8),
        (1.5, 0.0, 1.5),
        (0, 2),
    )
    assert of(exclude_modules=(key,)) == left_out
    assert of(layers_to_transform=(0, 2)) == left_out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"target_modules": ("q_proj", "q_prj")},
            ["target_modules", "matches 'q_prj' (did you mean 'q_proj'?)", "all-linear"],
        ),
        ({"target_modules": ("roj",)}, ["matches 'roj'"]),  # the end of a name begins after a dot
        ({"target_modules": r".*\.x_proj"}, ["has to match all of a name, such as model.layers.0.self_attn.q_proj"]),
        ({"target_modules": r"(q_proj"}, ["adapter.target_modules: '(q_proj' is not a regular expression: missing )"]),
        ({"target_modules": (r"*.q_proj",)}, ["is not a regular expression: nothing to repeat"]),
        ({"target_modules": ("lm_head", "q_proj")}, ["an adapter on lm_head is not supported"]),
        ({"exclude_modules": ("q_poj",)}, ["exclude_modules", "matches 'q_poj'"]),
        ({"exclude_modules": r"[q_proj"}, ["exclude_modules: '[q_proj' is not a regular expression"]),
        ({"target_modules": ("q_proj",), "exclude_modules": ("self_attn.q_proj",)}, ["leaves nothing"]),
        ({"layers_to_transform": (2, 12, -1)}, ["there is no layer -1, 12", "0 to 11"]),
        ({"target_modules": r".*q_proj", "layers_to_transform": (2,)}, ["layers_to_transform needs", "as in PEFT"]),
        ({"rank_pattern": (("q_prj", 3),)}, ["rank_pattern: no adapted module matches 'q_prj'"]),
        ({"target_modules": ("q_proj",), "rank_pattern": (("v_proj", 3),)}, ["no adapted module matches 'v_proj'"]),
        ({"alpha_pattern": (("q_prj", 3.0),)}, ["alpha_pattern: no adapted module matches 'q_prj'"]),
        ({"rank_pattern": (("q_(", 3),)}, ["rank_pattern", "is not a regular expression"]),
        ({"rank_pattern": (("q_proj", -3),)}, ["a rank is at least 0", "-3 at model.layers.0.self_attn.q_proj"]),
        ({"rank_pattern": ((".*", 0),)}, ["there is nothing to adapt"]),
        ({"rank_pattern": (("k_proj", 21),)}, ["rank 21 at model.layers.0.self_attn.k_proj, whose smaller side is 20"]),
        ({"alpha_pattern": (("k_proj", 0.0),)}, ["alpha must be positive", "0.0 at model.layers.0.self_attn.k_proj"]),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    message = refused(**settings)
    for word in words:
        assert word in message


def test_a_rank_may_fill_its_own_layer():
    assert found(rank=26, target_modules=("q_proj",))[NAMES[0]][0] == 26
    assert re.search("rank 27 at .*q_proj, whose smaller side is 26", refused(rank=27, target_modules=("q_proj",)))

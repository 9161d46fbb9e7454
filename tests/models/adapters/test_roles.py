"""Names of roles and presets on every family: the layers that they mean, and as many trained parameters as PEFT counts.

models/architectures/architecture.py translates them; models/adapters/settings.py has the presets.
"""

import json

import encoders
import jax
import pytest
from peft_oracle import DEPRECATED
from tiny import CONFIG

from bidora_jax.errors import InputError
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import PRESETS, AdapterConfig
from bidora_jax.models.architectures.architecture import by_role
from bidora_jax.models.formats import peft

KINDS = ("bert", "roberta", "distilbert", "electra", "modernbert", "deberta-v3", "esm-2")


def last_names(kind, preset):
    settings = AdapterConfig(**PRESETS[preset]["adapter"])
    return [site.path for site in adapters.resolve(settings, encoders.config(kind)).sites]


def test_a_preset_means_the_layers_of_its_roles():
    assert last_names("bert", "efficient") == ["attention.self.query", "attention.self.value"]
    assert last_names("distilbert", "balanced") == [f"attention.{name}_lin" for name in ("q", "k", "v", "out")]
    assert last_names("modernbert", "efficient") == ["attn.Wqkv"]
    assert last_names("modernbert", "expressive") == ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"]
    assert {path.rpartition(".")[2] for path in last_names("deberta-v3", "efficient")} == {"query_proj", "value_proj"}
    for kind in KINDS:
        assert last_names(kind, "expressive") == [linear.path for linear in encoders.config(kind).linears]


def test_the_name_of_a_role_is_the_models_own_where_it_has_one():
    assert by_role(CONFIG, ("q_proj", "down_proj")) == ("q_proj", "down_proj")
    assert by_role(encoders.config("bert"), ("q_proj", "gate_proj", "key")) == ("query", "key")
    with pytest.raises(InputError, match="matches 'qproj'"):
        adapters.resolve(AdapterConfig(target_modules=("qproj",)), encoders.config("bert"))


def test_a_pattern_names_a_subtree():
    """{"bert.encoder.layer.11.attention": 16} of other programs, as the end of a name."""
    settings = AdapterConfig(rank=2, rank_pattern=((r"layer\.1\.attention\..*", 5),))
    found = adapters.resolve(settings, encoders.config("bert"))
    assert {site.path: site.ranks for site in found.sites} == {
        linear.path: (2, 5 if "attention" in linear.path else 2) for linear in encoders.config("bert").linears
    }


@pytest.mark.torch
@pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
@pytest.mark.parametrize("preset", ["efficient", "balanced", "expressive"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_parameters_are_trained_as_peft_counts(kind, preset, tmp_path):
    import encoder_oracle
    import peft as oracle_peft

    config = encoders.config(kind)
    settings = AdapterConfig(**PRESETS[preset]["adapter"] | {"method": "dora", "rank": 3})
    head = config.head("sequence", encoder_oracle.OUTPUTS)
    model = encoder_oracle.random(kind, "sequence")
    adapter = adapters.resolve(settings, config, head=head, present=[part.name for part in head.parts])
    base = initial.prepare_base(encoders.random_base(config), adapter)
    peft.save_adapter(
        tmp_path / "ours",
        config,
        adapter,
        settings,
        *initial.init(adapter, base, jax.random.key(0)),
        base_model_name="",
    )
    given = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    wanted = oracle_peft.LoraConfig(
        r=3,
        use_dora=True,
        task_type="SEQ_CLS",
        target_modules=given["target_modules"],
        exclude_modules=given["exclude_modules"],
    )
    trained, _ = oracle_peft.get_peft_model(model, wanted).get_nb_trainable_parameters()
    assert sum(adapters.trainable(adapter, config).values()) == trained

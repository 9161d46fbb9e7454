"""models/formats/peft_config.py: settings of PEFT that mean something else are refused."""

import pytest
import tiny
from adapter_folders import change_config, refused
from peft_oracle import DEPRECATED

from bidora_jax.models.formats import peft

pytestmark = pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"peft_type": None}, "peft_type None is not supported"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"missing: base_model\.model\.lm_head\.weight"),
        ({"modules_to_save": ["score"]}, "modules_to_save: expected lm_head or embed_tokens, found 'score'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: 'lm_head'"),
        ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, "ensure_weight_tying: True"),
        ({"rank_pattern": {"q_proj": 3}}, r"shape of .*q_proj\.lora_A\.weight: expected \(3, 26\), found \(5, 26\)"),
        ({"rank_pattern": {"q_proj": "3"}}, "rank_pattern: {'q_proj': '3'}"),
        ({"rank_pattern": {"q_(proj": 3}}, "rank_pattern: .* is not a regular expression"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 0}}, "alpha must be positive"),
        ({"layers_to_transform": [0]}, r"not used by adapter_config\.json: .*layers\.1\."),
        ({"layers_to_transform": 0}, r"not used by adapter_config\.json: .*layers\.1\."),
        ({"layers_to_transform": [2]}, "there is no layer 2"),
        ({"layers_to_transform": [True]}, "layers_to_transform"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern: 'h'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_qalora": True}, "use_qalora"),
        ({"use_bdlora": True}, "use_bdlora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"arrow_config": {"x": 1}}, "arrow_config"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"a_key_of_next_year": {"on": True}}, "a_key_of_next_year"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4' .changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"target_modules": ["q_proj", "q_prj"]}, "target_modules: .* matches 'q_prj' .did you mean 'q_proj'"),
        ({"target_modules": "q_proj"}, "matches 'q_proj'.*has to match all of a name"),
        ({"target_modules": []}, "none at all"),
        ({"target_modules": ["q_proj", "lm_head"]}, "an adapter on lm_head is not supported"),
        ({"target_modules": ["model.layers.1.self_attn.q_proj"]}, r"not used by .*layers\.0\.self_attn\.q_proj"),
        ({"exclude_modules": ["model.layers.1.self_attn.q_proj"]}, r"not used by .*layers\.1\.self_attn\.q_proj"),
        ({"exclude_modules": ["q_proj"]}, r"not used by adapter_config\.json: .*q_proj"),
        ({"exclude_modules": ["q_proj", "v_proj", "down_proj"]}, "nothing to adapt"),
        ({"target_modules": None}, "target_modules: None"),
        ({"r": "5"}, "r: '5'"),
        ({"r": True}, "r: True"),
        ({"use_dora": 1}, "use_dora: 1"),
        ({"r": 0}, "rank must be at least 1"),
        ({"r": 4}, r"shape of .*lora_A\.weight: expected \(4, 26\), found \(5, 26\)"),
    ],
)
def test_a_config_that_means_something_else_is_refused(adapter_folder, changes, message):
    change_config(adapter_folder, **changes)
    refused(adapter_folder, message)


def test_keys_that_only_name_or_train_are_accepted(adapter_folder):
    change_config(
        adapter_folder, auto_mapping={"unsloth_fixed": True}, revision="main", inference_mode=False, task_type=None,
        eva_config={"rho": 2.0}, init_lora_weights="gaussian", layers_to_transform=[], modules_to_save=[],
        unknown_but_off=False, exclude_modules=["vision_tower"], rank_pattern={"vision_tower": 3},
    )  # fmt: skip
    assert {site.ranks for site in peft.load_adapter(adapter_folder, tiny.CONFIG)[0].sites} == {(5, 5)}

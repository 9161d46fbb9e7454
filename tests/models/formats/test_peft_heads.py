"""Adapters of classifiers as PEFT writes and reads them: models/formats/peft.py and models/formats/hf_head.py.

Every family, over whole texts and over tokens: PEFT's folder gives the logits of PEFT here, and ours gives ours there.
"""

import json

import encoders
import jax
import numpy as np
import pytest
import tiny
from peft_oracle import DEPRECATED
from safetensors.numpy import load_file, save_file

from bidora_jax.errors import InputError
from bidora_jax.models import backbone, heads, stacks
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.heads import HEAD_TREE
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import hf, hf_head, peft

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")]
KINDS = ("bert", "roberta", "electra", "distilbert", "esm-2", "modernbert", "deberta-v3")
METHODS = {"sequence": "dora", "token": "lora"}
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
OUTPUTS = 5


def logits(config, spec, adapter, base, direction, magnitude, batch):
    base = base if adapter is None else initial.prepare_base(base, adapter)
    x = backbone.hidden(config, adapter, Compute(), base, (direction, magnitude), batch)
    return np.asarray(heads.outputs(spec, base, direction, x, stacks.segments_of(batch), 1))


def assert_same(found, wanted, batch, task):
    """Of texts, or of the real tokens."""
    found = found[:, 0] if task == "sequence" else found
    real = slice(None) if task == "sequence" else np.arange(found.shape[1]) < np.asarray(batch["lengths"])[:, None]
    np.testing.assert_allclose(found[real], wanted[real], atol=2e-5 * np.abs(wanted).max(), rtol=0)


def paths(config):
    """The linear layers by names that PEFT finds them alone by."""
    return [
        f"{config.layer_prefix}.{layer}.{linear.path}"
        for layer in range(config.num_layers)
        for linear in config.linears
    ]


@pytest.fixture(scope="module", params=[(kind, task) for kind in KINDS for task in TASKS], ids=" ".join)
def case(request, tmp_path_factory):
    """(kind, task, folder of a classifier, PEFT's model over it with everything trained made random)."""
    import encoder_oracle
    import peft as oracle_peft
    import torch

    kind, task = request.param
    folder = tmp_path_factory.mktemp("classifier")
    model = encoder_oracle.random(kind, task)
    model.save_pretrained(folder / "base")
    config = encoders.config(kind)
    wanted = oracle_peft.LoraConfig(
        r=3, lora_alpha=7.0, use_dora=METHODS[task] == "dora", task_type=TASKS[task], target_modules=paths(config)
    )
    adapted = oracle_peft.get_peft_model(model, wanted).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    return kind, task, folder, adapted


def of_theirs(model, batch):
    import torch

    given = {"input_ids": batch["tokens"], "attention_mask": stacks.segments_of(batch)}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = batch["types"]
    with torch.no_grad():
        return model(**{name: torch.tensor(np.asarray(part)).long() for name, part in given.items()}).logits.numpy()


def test_pefts_folder_has_its_logits_here(case):
    kind, task, folder, theirs = case
    config = encoders.config(kind)
    batch = encoders.padded(encoders.texts(config))
    adapter, direction, magnitude = peft.load_adapter(folder / "adapter", config)
    assert adapter.head is not None and adapter.head.kind == task
    spec = config.head(task, OUTPUTS)
    base = {**hf.load_base(folder / "base", config), HEAD_TREE: hf_head.load(folder / "base", config, spec)}
    assert_same(logits(config, spec, adapter, base, direction, magnitude, batch), of_theirs(theirs, batch), batch, task)


def test_our_folder_has_our_logits_there(case, tmp_path):
    """Over a base without any of the head: what PEFT would draw anew is saved."""
    import encoder_oracle
    from peft import PeftModel

    kind, task, folder, _ = case
    config = encoders.config(kind)
    batch = encoders.padded(encoders.texts(config))
    bare = tmp_path / "bare"
    tensors = load_file(folder / "base" / "model.safetensors")
    bare.mkdir()
    save_file({name: t for name, t in tensors.items() if not any(part in name for part in ("classifier", "pooler", "head."))},
              bare / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (bare / "config.json").write_text((folder / "base" / "config.json").read_text())
    settings = AdapterConfig(method=METHODS[task], rank=3, alpha=7.0, target_modules=("q_proj", "v_proj", "down_proj"))
    spec = config.head(task, OUTPUTS)
    assert hf_head.load(bare, config, spec) == {} and hf_head.outputs_in(bare, config, task) is None
    adapter = adapters.resolve(settings, config, head=spec)
    base = initial.prepare_base(hf.load_base(bare, config), adapter)
    direction, magnitude = initial.init(adapter, base, jax.random.key(0))
    direction, magnitude = tiny.noisy(adapter, direction, magnitude)
    peft.save_adapter(tmp_path / "ours", config, adapter, settings, direction, magnitude, base_model_name=str(bare))
    model = encoder_oracle.CLASSES[task].from_pretrained(bare, num_labels=OUTPUTS, attn_implementation="eager").eval()
    theirs = PeftModel.from_pretrained(model, tmp_path / "ours").eval()
    assert_same(logits(config, spec, adapter, base, direction, magnitude, batch), of_theirs(theirs, batch), batch, task)
    back = peft.load_adapter(tmp_path / "ours", config)
    assert back[0].head == adapter.head and back[0].sites == adapter.sites
    jax.tree.map(np.testing.assert_array_equal, back[1:], (direction, magnitude))


def test_an_adapter_without_its_trained_head_is_refused(tmp_path):
    config = encoders.config("bert")
    settings = AdapterConfig(method="lora", rank=3, target_modules=("q_proj",))
    adapter = adapters.resolve(settings, config, head=config.head("sequence", 3))
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
    assert (given["task_type"], given["modules_to_save"]) == ("SEQ_CLS", ["pooler", "classifier", "score"])
    file = tmp_path / "ours" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: part for name, part in tensors.items() if "pooler" not in name}, file)
    with pytest.raises(InputError, match=r"missing: base_model\.model\.bert\.pooler\.dense\.bias"):
        peft.load_adapter(tmp_path / "ours", config)
    save_file({name: part for name, part in tensors.items() if "classifier" not in name}, file)
    with pytest.raises(
        InputError, match=r"lacks base_model\.model\.classifier\.weight: .* the trained head was not saved"
    ):
        peft.load_adapter(tmp_path / "ours", config)

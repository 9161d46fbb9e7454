"""Classifiers as models/formats/export.py writes them (merged, quantised, a plain LoRA), and as transformers and PEFT read them."""

import json

import encoder_folders
import encoders
import jax
import numpy as np
import pytest
import tiny
from peft_oracle import DEPRECATED
from safetensors.numpy import load_file, save_file

from bidora_jax.models import backbone, heads, stacks
from bidora_jax.models.adapters import adapter as adapters
from bidora_jax.models.adapters import initial
from bidora_jax.models.adapters.settings import AdapterConfig
from bidora_jax.models.architectures.heads import HEAD_TREE
from bidora_jax.models.compute import Compute
from bidora_jax.models.formats import export, hf, hf_config, hf_head
from bidora_jax.models.formats.hf_head import Classes
from bidora_jax.models.settings import ModelConfig

NAMES = ("low", "high", "none", "other", "all")
CLASSES = Classes(NAMES, "single_label_classification", 0, {"type": "classification", "names": list(NAMES)})
KINDS = ("bert", "modernbert")


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """(kind, folder without a head, a trained classifier over it)."""
    kind = request.param
    folder = encoder_folders.write(tmp_path_factory.mktemp("models") / kind, kind)
    config = encoders.config(kind)
    settings = AdapterConfig(method="dora", rank=3, target_modules=("q_proj", "down_proj"))
    spec = config.head("sequence", len(NAMES))
    adapter = adapters.resolve(settings, config, head=spec)
    base = initial.prepare_base(hf.load_base(folder, config), adapter)
    trees = tiny.noisy(adapter, *initial.init(adapter, base, jax.random.key(0)))
    return kind, folder, settings, export.Trained(config, adapter, base, *trees, spec, CLASSES)


def ours(trained, batch):
    config, adapter, base, direction, magnitude, spec, _ = trained
    x = backbone.hidden(config, adapter, Compute(), base, (direction, magnitude), batch)
    return np.asarray(heads.outputs(spec, base, direction, x, stacks.segments_of(batch), 1))[:, 0]


@pytest.mark.torch
def test_a_merged_encoder_is_transformers_classifier(case, tmp_path):
    import encoder_oracle

    kind, folder, _, trained = case
    export.write_merged(tmp_path / "merged", folder, trained, dtype="float32")
    model, report = encoder_oracle.again(tmp_path / "merged", "sequence")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (
        model.config.id2label == dict(enumerate(NAMES)) and model.config.problem_type == "single_label_classification"
    )
    batch = encoders.padded(encoders.texts(encoders.config(kind)))
    wanted = ours(trained, batch)
    np.testing.assert_allclose(encoder_oracle.outputs(model, batch)[1], wanted, atol=2e-5 * np.abs(wanted).max())
    assert json.loads((tmp_path / "merged" / "labels.json").read_text()) == CLASSES.labels


@pytest.mark.torch
@pytest.mark.filterwarnings(f"ignore:{DEPRECATED}:FutureWarning")
def test_a_plain_lora_keeps_the_head(case, tmp_path):
    import encoder_oracle
    from peft import PeftModel

    kind, folder, _, trained = case
    full = encoders.config(kind).hidden_size  # a rank that holds all of W' − W0
    export.write_lora(tmp_path / "lora", str(folder), trained, rank=full)
    model = encoder_oracle.CLASSES["sequence"].from_pretrained(
        folder, num_labels=len(NAMES), attn_implementation="eager"
    )
    theirs = PeftModel.from_pretrained(model, tmp_path / "lora").eval()
    batch = encoders.padded(encoders.texts(encoders.config(kind)))
    wanted = ours(trained, batch)
    found = encoder_oracle.outputs(theirs.base_model.model, batch)[1]
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


def test_a_quantised_classifier_keeps_its_head_dense(case, tmp_path):
    _, folder, _, trained = case
    export.write_merged(tmp_path / "merged", folder, trained, dtype="float32")
    settings = ModelConfig(path=str(tmp_path / "merged"), quantization="nf4", quantized_modules=("all-linear",))
    export.write_model(tmp_path / "packed", settings)
    given = json.loads((tmp_path / "packed" / "config.json").read_text())
    modules = {part.saved_as for part in trained.head.parts}
    assert modules <= set(given["quantization_config"]["llm_int8_skip_modules"])
    assert given["id2label"] == {str(n): name for n, name in enumerate(NAMES)}
    config = hf_config.read_config(tmp_path / "packed")
    heads_of = [hf_head.load(tmp_path / name, config, trained.head) for name in ("merged", "packed")]
    jax.tree.map(np.testing.assert_array_equal, *heads_of)
    assert json.loads((tmp_path / "packed" / "labels.json").read_text()) == CLASSES.labels


def test_an_encoder_without_a_head_is_written_quantised(tmp_path):
    folder = encoder_folders.write(tmp_path / "bert", "bert")
    export.write_model(tmp_path / "packed", ModelConfig(path=str(folder), quantization="int8"))
    assert HEAD_TREE not in hf.load_base(tmp_path / "packed", hf_config.read_config(tmp_path / "packed"))
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    assert tensors["bert.encoder.layer.0.attention.self.query.weight"].dtype == np.int8


def test_a_folder_that_only_says_it_is_a_classifier_is_refused(tmp_path):
    from bidora_jax.errors import InputError

    folder = encoder_folders.write(tmp_path / "bert", "bert")
    given = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(given))
    with pytest.raises(
        InputError, match=r"says that it is a classifier, and its weights lack the head's\n(.*\n)*.*classifier\.weight"
    ):
        export.write_model(tmp_path / "packed", ModelConfig(path=str(folder), quantization="int8"))
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"classifier.weight": np.ones((3, 42), np.float32), "classifier.bias": np.zeros(3, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        InputError, match=r"lack the head's\n *bert\.pooler\.dense\.weight\n *bert\.pooler\.dense\.bias\nfetch"
    ):
        export.write_model(tmp_path / "packed", ModelConfig(path=str(folder), quantization="int8"))

"""The scores of a finished run on records that it has not read, as `evaluate --run` computes them, over a base that is shared."""

from pathlib import Path
from typing import TYPE_CHECKING

from bidora_jax.data.settings import DataConfig
from bidora_jax.runs.folder import run_config
from bidora_jax.sweeps.records import Source

if TYPE_CHECKING:
    from bidora_jax.config import Config
    from bidora_jax.runs.sharing import Shared


def scores(run: Path, source: Source, data: DataConfig, shared: "Shared") -> dict[str, float]:
    """Loss and metrics by name. `data` says how records are read, the same for every point of a sweep."""
    from bidora_jax.models.formats import hf_config
    from bidora_jax.runs import labelling

    config = run_config(str(run))
    architecture = hf_config.read_config(hf_config.resolve_folder(config.model.path, weights=False))
    if labelling.is_asked(config, architecture):
        return _of_labels(run, config, source, data, shared)
    return _of_tokens(run, config, source, data, shared)


def _of_labels(run: Path, config: "Config", source: Source, data: DataConfig, shared: "Shared") -> dict[str, float]:
    from bidora_jax.runs import classifying

    classifier = classifying.opened(config.model.path, {"": str(run / "adapter")}, config.model, shared)
    rows = classifier.read(source, data, labelled=True)
    return {**classifier.scores(rows.examples, data.batch_size)[""].facts}


def _of_tokens(run: Path, config: "Config", source: Source, data: DataConfig, shared: "Shared") -> dict[str, float]:
    from bidora_jax.data import file_batches
    from bidora_jax.data.tokenizer import folder_with_adapters, load_tokenizer
    from bidora_jax.generation import ensembles
    from bidora_jax.models.formats import hf_config, peft
    from bidora_jax.tasks import evaluation

    folder = hf_config.resolve_folder(config.model.path)
    model = hf_config.read_decoder(folder)
    base = shared.base(config.model, folder, model)
    member = ensembles.Member(*peft.load_adapter(run / "adapter", model))
    base, members = ensembles.for_serving(base, {"": member}, None, False, ())
    how = file_batches.Reading(*(getattr(data, name) for name in file_batches.Reading._fields))
    tokenizer = load_tokenizer(folder_with_adapters(folder, [run / "adapter"]))
    batches = file_batches.read(source, how, tokenizer, model.vocab_size).batches
    measure = evaluation.evaluator(model, members[""].adapter, config.model)
    return {**measure(base, members[""].direction, members[""].magnitude, batches).facts}

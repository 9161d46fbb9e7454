"""Refuses before a run starts: values and pairs of settings that can't be run, and a folder that holds another run."""

from itertools import pairwise
from pathlib import Path

from bidora_jax.config import Config, differences, leaves, read, resolve, settled
from bidora_jax.errors import InputError, listing
from bidora_jax.runs import lengthening, mesh, rates

MAY_CHANGE_ON_RESUME = ("output_dir", "log_every", "save_every", "keep", "merged", "max_new_tokens", "data.test_limit",
                        "compilation_cache", "data.token_cache", "memory_limit", "report", "tensorboard", "wandb", "samples.every",
                        "samples.prompts", "samples.count", "samples.max_new_tokens", "samples.temperature",
                        "mesh.replica", "mesh.shard", "mesh.tensor")  # fmt: skip
SETTLED = ("model.remat", "model.attention", "search.hypergradient", "data.buckets")
"""Settings whose `auto` is resolved at the start of a run. A resumed run keeps what was chosen."""


def check_config(config: Config) -> None:
    """Refuses values out of bounds and settings that contradict each other, all in one message."""
    from bidora_jax.data import splits
    from bidora_jax.training import optim
    from bidora_jax.training.watchers import tracking

    optim.check_optimizer("inner", config.inner)
    optim.check_optimizer("outer", config.outer)
    wrong = tracking.missing([name for name in ("tensorboard", "wandb") if getattr(config, name)])
    least_one = {"data.batch_size", "data.accumulation", "data.buckets", "search.lower_steps", "keep", "max_new_tokens",
                 "model.attention_chunk", "model.loss_chunk", "samples.count", "samples.max_new_tokens",
                 "mesh.replica", "mesh.shard", "mesh.tensor"}  # fmt: skip
    least_zero = {"seed", "log_every", "eval_every", "save_every", "data.test_limit", "data.max_samples",
                  "search.epochs", "search.steps",
                  "search.gram_penalty", "search.patience", "retrain.epochs", "retrain.steps", "retrain.learning_rate",
                  "outer.multiplier", "samples.every", "samples.temperature"}  # fmt: skip
    for name, value in leaves(config):
        if value != "auto" and ((name in least_one and value < 1) or (name in least_zero and value < 0)):
            wrong.append(f"{name} must be at least {1 if name in least_one else 0}, found {value}")
    wrong += [f"{name} must be whole steps, or a share of an epoch below 1, found {value:g}"
              for name, value in (("eval_every", config.eval_every), ("save_every", config.save_every))
              if value > 1 and value % 1]  # fmt: skip
    if config.data.max_length < 2:
        wrong.append(f"data.max_length must be at least 2, found {config.data.max_length}")
    if not 0 <= config.data.val_fraction < 1:
        wrong.append(f"data.val_fraction must be in [0, 1), found {config.data.val_fraction}")
    lengths = config.data.padded_lengths
    if lengths and (lengths[0] < 1 or any(one >= other for one, other in pairwise(lengths))):
        wrong.append(f"data.padded_lengths must be at least 1 and ascend, found {', '.join(map(str, lengths))}")
    if not config.model.path:
        wrong.append("model.path is not set: give a model folder or the name of a model on the Hugging Face hub")
    if not config.data.train_file:
        wrong.append("data.train_file is not set: give a file of records, such as JSONL or CSV")
    wrong += _wrong_task(config) + mesh.wrong_settings(config)
    wrong += splits.wrong_settings(config.data) + splits.bare_names(config.data)
    if config.data.val_file and config.data.val_fraction:
        wrong.append("data.val_file and data.val_fraction are both set: keep one of them")
    validated = config.data.val_file or config.data.val_fraction
    if config.adapter.method == "bidora" and not validated:
        wrong.append("method bidora trains the magnitude on a validation split, and there is none: "
                     "set data.val_file (-v), or data.val_fraction (0.2 in the paper), or choose method dora")  # fmt: skip
    if config.search.patience and not validated:
        wrong.append("search.patience needs a validation split: set data.val_file or data.val_fraction")
    if config.search.gram_penalty and config.adapter.method == "lora":
        wrong.append("search.gram_penalty is on the normalised direction, which method lora does not have")
    if config.search.lower_steps > 1 and config.adapter.method != "bidora":
        wrong.append(f"search.lower_steps needs two levels, and method {config.adapter.method} has one")
    rotates = config.search.splits == "rotate"
    if rotates and config.adapter.method != "bidora":
        wrong.append(f"search.splits rotate needs two levels, and method {config.adapter.method} has one")
    if rotates and config.search.patience:
        wrong.append(
            "search.patience needs records that are not trained on, and search.splits rotate leaves none: drop one of them"
        )
    if not config.search.epochs and not config.search.steps:
        wrong.append("search.epochs and search.steps are both 0: there is nothing to train")
    if wrong:
        raise InputError("the configuration can't be run:\n" + listing(wrong))


def _wrong_task(config: Config) -> list[str]:
    """What is wrong with the settings of the task, in lines."""
    from bidora_jax.tasks import metric_names

    task, wrong = config.task, []
    if not 0 <= task.label_smoothing < 1:
        wrong.append(f"task.label_smoothing must be in [0, 1), found {task.label_smoothing}")
    if task.label_smoothing and task.type not in ("auto", "classification", "tokens"):
        wrong.append(f"task.label_smoothing is for classification and tokens, and task.type is {task.type}")
    if task.class_weights == "balanced" and task.type in ("language_modeling", "regression"):
        wrong.append(f"task.class_weights weighs labels, and task.type is {task.type}")
    if config.search.metric not in ("auto", "loss"):
        known = [metric.name for metric in metric_names.METRICS]
        if task.type == "language_modeling" or config.search.metric not in known:
            has = "loss alone" if task.type == "language_modeling" else f"loss and of its task: {', '.join(known)}"
            wrong.append(f"search.metric {config.search.metric}: a run has {has}")
    if task.type not in ("auto", "language_modeling") and config.samples.every:
        wrong.append(f"samples are answers of a language model, and task.type is {task.type}: set samples.every to 0")
    return wrong


def as_begun(config: Config) -> Config:
    """The configuration of a resumed run: where it says auto, with what was chosen when the run began."""
    saved = Path(config.output_dir) / "config.json"
    return settled(config, resolve(read(str(saved))), SETTLED) if saved.is_file() else config


def check_folder(config: Config, resume: bool) -> None:
    """Refuses a new run in a folder that is in use, and a resumed run whose configuration differs from the folder's."""
    folder = Path(config.output_dir)
    saved = folder / "config.json"
    if not resume:
        # A process that was killed while it wrote config.json has left half of it, and no run.
        if folder.is_dir() and any(not path.name.startswith(".config.json.tmp-") for path in folder.iterdir()):
            what = "holds another run" if saved.is_file() else "is not empty"
            raise InputError(
                f"output_dir {folder} {what}: choose another one with --output-dir, or go on with --resume"
            )
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"output_dir {folder} can't be: {nearest} is a file; choose another one with --output-dir")
        return
    if not saved.is_file():
        raise InputError(f"nothing to resume: {saved} does not exist; start without --resume, or name its --output-dir")
    begun = resolve(read(str(saved)))
    changed = differences(begun, config, MAY_CHANGE_ON_RESUME + lengthening.LENGTHS + rates.may_change(folder))
    if not changed:
        lengthening.check(folder, begun, config)
    else:
        raise InputError(
            f"the configuration differs from the one that {folder} was started with:\n{listing(changed)}\n"
            f"resume with --config {saved}, or start a new run with another --output-dir"
        )

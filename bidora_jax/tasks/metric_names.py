"""The metrics of the tasks by name, and which way each is better. Loads nothing: settings are checked with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bidora_jax.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Metric:
    name: str
    types: tuple[str, ...]
    """Tasks that have it, as task.type names them."""
    about: str
    higher_is_better: bool = True

    def better(self, new: float, old: float) -> bool:
        """Whether `new` is strictly better."""
        return new > old if self.higher_is_better else new < old


METRICS = (
    Metric("accuracy", ("classification",), "share of the rows whose label is right"),
    Metric("f1", ("classification",), "F1 of the second of two labels"),
    Metric("f1_macro", ("classification", "multilabel"), "mean of the labels' F1"),
    Metric("f1_micro", ("classification", "multilabel"), "F1 of all labels together; of one label a row, the accuracy"),
    Metric("matthews", ("classification",), "Matthews' correlation coefficient; 0 of a constant prediction"),
    Metric("auc", ("classification", "multilabel"), "area under the ROC curve; of more than two labels the mean of their own"),
    Metric("log_loss", ("classification", "multilabel"), "mean −log of the probability of what is true, in nats", False),
    Metric("qwk", ("classification", "regression"), "quadratic weighted kappa of labels that are numbers, or of whole targets"),
    Metric("subset_accuracy", ("multilabel",), "share of the rows whose labels are all right"),
    Metric("pearson", ("regression",), "Pearson's correlation; of several targets the mean"),
    Metric("spearman", ("regression",), "Spearman's rank correlation; of several targets the mean"),
    Metric("rmse", ("regression",), "root mean square error; of several targets the mean of theirs", False),
    Metric("mae", ("regression",), "mean absolute error; of several targets the mean of theirs", False),
    Metric("entity_f1", ("tokens",), "F1 of whole entities, as seqeval counts them"),
    Metric("entity_precision", ("tokens",), "share of the found entities that are right"),
    Metric("entity_recall", ("tokens",), "share of the true entities that are found"),
    Metric("tag_accuracy", ("tokens",), "share of the words whose tag is right"),
)  # fmt: skip
DEFAULT = {"classification": "accuracy", "multilabel": "f1_micro", "regression": "rmse", "tokens": "entity_f1"}
"""By which a task's best step is chosen. None of them is undefined, whatever is predicted."""


def of_task(task: str) -> tuple[Metric, ...]:
    """The metrics of a task's type, in the order in which they are shown."""
    return tuple(metric for metric in METRICS if task in metric.types)


def named(name: str, task: str) -> Metric:
    """The metric of that name. InputError where the task has none of it."""
    known = of_task(task)
    found = next((metric for metric in known if metric.name == name), None)
    if found is None:
        names = [metric.name for metric in known]
        others = next((f", a metric of {' and '.join(one.types)}" for one in METRICS if one.name == name), "")
        raise InputError(
            f"the task {task} has the metrics {', '.join(names)}, found {name}{others}{did_you_mean(name, names)}"
        )
    return found


def default(task: str, names: Sequence[str]) -> Metric:
    """The metric by which the best step is chosen where nobody says which: that of DEFAULT, or of tags that mark no entities
    (parts of speech) the share of right tags."""
    entities = task != "tokens" or are_entities(names)
    return named(DEFAULT[task] if entities else "tag_accuracy", task)


def are_entities(tags: Sequence[str]) -> bool:
    """Whether every tag is O or says where in an entity a word stands: B, I, E, S (or L, U) and a type after a hyphen."""
    return all(tag == "O" or (tag[:1] in "BIESLU" and tag[1:2] == "-" and len(tag) > 2) for tag in tags)

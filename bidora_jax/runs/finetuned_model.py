"""What `finetune` returns and `load` opens: a model with its adapter, which answers and is evaluated, and its run's history.

The weights are read at the first answer or evaluation, and stay in memory as long as the object does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from bidora_jax.config import at_home
from bidora_jax.data import file_batches
from bidora_jax.data.file_batches import Long, LossOn, Reading
from bidora_jax.errors import InputError
from bidora_jax.models.settings import ModelConfig
from bidora_jax.runs import call_arguments, gguf_exporting
from bidora_jax.runs.exporting import Format, export_run
from bidora_jax.runs.folder import run_config

if TYPE_CHECKING:
    from jaxtyping import PyTree
    from matplotlib.figure import Figure

    from bidora_jax.data.settings import DataConfig
    from bidora_jax.generation.conversation import Form
    from bidora_jax.generation.decoding import Model
    from bidora_jax.generation.ensembles import Member
    from bidora_jax.generation.served_model import Opened
    from bidora_jax.models.formats.gguf_file import Quantize
    from bidora_jax.runs.classifying import Classifier
    from bidora_jax.tasks.evaluation import Evaluator

READING = tuple(name for name in Reading._fields if name != "token_cache")
"""What a call of `evaluate` may say of its records."""
Exported = Literal["source", "half", "float32", "bfloat16", "float16"]


class Metrics(list[dict[str, Any]]):
    """The steps of a run, a dictionary each: phase, step, train_loss, …"""

    def to_pandas(self) -> Any:
        """A frame with a row a step. InputError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise InputError("to_pandas needs the package pandas: pip install pandas") from None
        return pandas.DataFrame(list(self))


@dataclass(frozen=True)
class FinetunedModel:
    """A base model, an adapter where there is one, and the folder of the run that trained it where that is known."""

    model: str
    """Folder, or name on the hub."""
    adapter: str = ""
    """PEFT adapter folder."""
    form: ModelConfig = field(default_factory=ModelConfig)
    """How the base is held: dtype, quantisation."""
    folder: Path | None = None
    """The run folder."""

    @classmethod
    def of_run(cls, folder: Path) -> Self:
        """That of a finished run, its base in the form that it was trained on. InputError where the run is not finished."""
        config = run_config(str(folder))
        if not (folder / "adapter").is_dir():
            raise InputError(
                f"{folder} has no adapter/: the run is not finished; go on with finetune({str(folder / 'config.json')!r}, "
                "resume=True)"
            )
        folder = folder.absolute()
        return cls(config.model.path, str(folder / "adapter"), config.model, folder)

    # The run

    @property
    def metrics(self) -> Metrics:
        """What the run wrote at each step."""
        from bidora_jax.reporting import history

        return Metrics(history.read(self._run("metrics")).lines)

    def plot(self, name: str = "loss") -> "Figure":
        """The curves of the loss, or another picture of the report, such as learning_rate or speed."""
        from bidora_jax.reporting import charts, history, outcome_charts

        past = history.read(self._run("plot"))
        made = charts.all_charts(past) | outcome_charts.all_charts(past)
        if name not in made:
            raise InputError(f"there is no picture {name!r}; this run has {', '.join(made)}")
        return made[name][1]

    def export(
        self,
        folder: str | Path,
        format: Format | Literal["gguf", "gguf-lora"] = "merged",
        *,
        rank: int = 0,
        max_error: float = 0.1,
        dtype: Exported = "source",
        merge_base: Literal["quantized", "original"] = "quantized",
        quantize: "Quantize" = "f16",
        measure: bool = True,
    ) -> Path:
        """Writes the merged model, the PEFT adapter or the nearest plain LoRA to a new folder, or a GGUF file, as the command
        `export` does, which says what `measure` is."""
        from bidora_jax.models.formats import gguf_file

        run, output = self._run("export"), Path(folder).expanduser()
        call_arguments.one_of("format", format, (*get_args(Format), "gguf", "gguf-lora"))
        call_arguments.one_of("quantize", quantize, get_args(gguf_file.Quantize))
        call_arguments.one_of("dtype", dtype, get_args(Exported))
        call_arguments.one_of("merge_base", merge_base, ("quantized", "original"))
        if (
            format != "merged"
            and (dtype, merge_base) != ("source", "quantized")
            and (format, dtype) != ("gguf", "source")
        ):
            raise InputError(
                'dtype and merge_base are for format="merged"; adapters are float32, as PEFT writes them, and gguf has quantize'
            )
        if format != "gguf" and quantize != "f16":
            raise InputError('quantize is for format="gguf"')
        if format != "lora" and (rank, max_error) != (0, 0.1):
            raise InputError('rank and max_error are for format="lora"')
        if format in ("gguf", "gguf-lora"):
            gguf_exporting.export_run(
                run, output, format=format, quantize=quantize, merge_base=merge_base, measure=measure
            )
            return output
        export_run(
            run, output, format=format, rank=rank, max_error=max_error, dtype=dtype, merge_base=merge_base, measure=measure
        )  # fmt: skip
        return output

    def _run(self, what: str) -> Path:
        if self.folder is None:
            raise InputError(
                f"{what} needs the folder of a run, and this is {self.model}{f' with {self.adapter}' if self.adapter else ''}; "
                "open the run itself: load(OUTPUT_DIR)"
            )
        return self.folder

    # The model

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 256,
        raw: bool | None = None,
        system: str = "",
        seed: int = 0,
        batch_size: int = 8,
        **sampling: float,
    ) -> Any:
        """The answer to a prompt, or the answers to a list of them.

        A prompt is a row that asks (instruction, prompt or messages), or a text. A text is asked as the training asked: in the
        model's chat template, or as it stands where the run trained on texts. raw=True gives it as it stands, raw=False in the
        template. sampling: temperature, top_k, top_p, min_p, repetition_penalty; without a temperature the most probable
        token is taken.
        """
        from bidora_jax.data import tokenizer as tokens
        from bidora_jax.generation import answers

        several = isinstance(prompts, list | tuple)
        given = list(prompts) if several else [prompts]
        if not given:
            return []
        drawn = {"max_new_tokens": max_new_tokens, "seed": seed, **sampling}
        how = call_arguments.sampled(drawn, ("raw", "system", "batch_size"))
        call_arguments.at_least(1, batch_size=batch_size)
        opened = self._opened
        ids = [self._ids(prompt, number, raw, system) for number, prompt in enumerate(given, 1)]
        tokens.check_known(ids, opened.tokenizer, opened.config.vocab_size, "the prompts")
        answers.check_room(opened.config, ids, max_new_tokens)
        written = answers.each(self._answering, ids, how, ends=self._ends, batch_size=batch_size)
        texts = [opened.tokenizer.decode(piece.tokens, skip_special_tokens=True) for piece in written]
        return texts if several else texts[0]

    def _ids(self, prompt: Any, number: int, raw: bool | None, system: str) -> list[int]:
        from bidora_jax.data import records
        from bidora_jax.generation import conversation

        tokenizer = self._opened.tokenizer
        if system and (raw or not tokenizer.chat_template):
            raise InputError(
                "system is written by a chat template: leave it out with raw=True, and for a model without one"
            )
        in_template: conversation.Form = "chat template" if tokenizer.chat_template else "plain template"
        if isinstance(prompt, Mapping):
            try:
                record = records.question(dict(prompt), f"prompt {number}")
            except records.BadRecord as problem:
                raise InputError(f"prompt {number} {problem}") from None
            return conversation.question_ids(record, in_template if system else "raw", system, tokenizer)
        if not isinstance(prompt, str):
            raise InputError(f"prompt {number} must be a text or a dictionary, found {type(prompt).__name__}")
        form = "raw" if raw else in_template if system or raw is False else self._form
        return conversation.question_ids(records.Record({"prompt": prompt}), form, system, tokenizer)

    def evaluate(self, data: Any, **reading: Any) -> dict[str, float | int]:
        """{loss, perplexity, accuracy, tokens} over the trained tokens of a file, or of rows as `finetune` takes them. Of a
        classifier {loss, records} and the metrics of its task.

        reading: columns, max_length, loss_on, long, batch_size; those of the run where there is one, else those of `evaluate`.
        """
        call_arguments.known("evaluate", reading, READING)
        how = self._reading._replace(**reading)
        call_arguments.at_least(1, batch_size=how.batch_size)
        call_arguments.at_least(2, max_length=how.max_length)
        call_arguments.one_of("loss_on", how.loss_on, get_args(LossOn))
        call_arguments.one_of("long", how.long, get_args(Long))
        if self._labels_texts:
            own = replace(self._data, max_length=how.max_length, long=how.long)
            with call_arguments.as_file(data) as source:
                rows = self._classifier.read(source, own, labelled=True)
            (scores,) = self._classifier.scores(rows.examples, how.batch_size).values()
            return scores.facts
        opened = self._opened
        with call_arguments.as_file(data) as source:
            batches = file_batches.read(source, how, opened.tokenizer, opened.config.vocab_size).batches
        base, member = self._weights
        trained = ({}, {}) if member is None else (member.direction, member.magnitude)
        found = self._measure(base, *trained, batches)
        return found._asdict() | {"perplexity": found.perplexity}

    def predict(self, rows: Any, *, threshold: float = 0.5, batch_size: int = 8) -> Any:
        """What a classifier says of a row or a text, or of each of a list of them, as the command `predict` writes it.

        {label, probabilities}, or of several labels a row {labels, probabilities}, those with a probability of at least
        `threshold`; {value}, or {values} by name; {tags, spans} of words. A row has the columns of the training's file; a text
        stands for a row with one column. What is longer than the training's max_length is cut at the end.
        """
        from bidora_jax.runs import predicting

        several = isinstance(rows, list | tuple)
        given = list(rows) if several else [rows]
        if not given:
            return []
        call_arguments.at_least(1, batch_size=batch_size)
        if not 0 < threshold < 1:
            raise InputError(f"threshold must be between 0 and 1, found {threshold}")
        asked = [self._row(row, number) for number, row in enumerate(given, 1)]
        found = predicting.predict(
            self._classifier, asked, self._data, threshold=threshold, batch_size=batch_size, together=False
        )
        (answers,) = found.answers.values()
        return answers if several else answers[0]

    def _row(self, row: Any, number: int) -> dict[str, Any]:
        if isinstance(row, Mapping):
            return dict(row)
        if not isinstance(row, str):
            raise InputError(f"row {number} must be a text or a dictionary, found {type(row).__name__}")
        labels = self._classifier.labels
        usual = "tokens" if labels.type == "tokens" else "text"
        column, *more = self._data.text_columns or labels.text_columns or (usual,)
        if more:
            raise InputError(
                f"row {number} is one text, and the model reads pairs: give a dictionary with {column} and {more[0]}"
            )
        return {column: row}

    @cached_property
    def _data(self) -> "DataConfig":
        """How the run read its rows."""
        from bidora_jax.data.settings import DataConfig

        return DataConfig() if self.folder is None else run_config(str(self.folder)).data

    @cached_property
    def _classifier(self) -> "Classifier":
        from bidora_jax.generation.served_model import Served
        from bidora_jax.runs import classifying
        from bidora_jax.runs.serving import OF_THE_MODEL

        cache = "auto" if self.folder is None else run_config(str(self.folder)).compilation_cache
        form = {name: getattr(self.form, name) for name in OF_THE_MODEL}
        served = Served(model=self.model, adapter=self._adapters, compilation_cache=cache, **form)
        return classifying.open_classifier(served)

    @cached_property
    def _labels_texts(self) -> bool:
        """Whether it is a classifier."""
        from bidora_jax.generation.served_model import Served
        from bidora_jax.runs import classifying

        return classifying.is_classifier(Served(model=self.model, adapter=self._adapters))

    @cached_property
    def _reading(self) -> Reading:
        if self.folder is None:
            return Reading()
        data = asdict(run_config(str(self.folder)).data)
        return Reading(**{name: data[name] for name in READING})

    @cached_property
    def _opened(self) -> "Opened":
        """All but the weights."""
        from bidora_jax.generation.served_model import Served, open_folder

        cache = "auto" if self.folder is None else run_config(str(self.folder)).compilation_cache
        return open_folder(Served(model=self.model, adapter=self._adapters, compilation_cache=cache))

    @cached_property
    def _weights(self) -> "tuple[PyTree, Member | None]":
        """The base, and the adapter in the form for inference."""
        from bidora_jax.generation import ensembles
        from bidora_jax.models.formats import hf

        base = hf.load(self.form, self._opened.folder, self._opened.config)
        base, members = ensembles.for_serving(base, self._opened.members, None, False, ())
        return base, next(iter(members.values()), None)

    @cached_property
    def _answering(self) -> "Model":
        from bidora_jax.generation import decoding

        base, member = self._weights
        model = decoding.assemble(self._opened.config, base)
        return model if member is None else decoding.with_adapter(model, *member)

    @cached_property
    def _form(self) -> "Form":
        """How a text is asked where the caller does not say: as it was in training."""
        from bidora_jax.generation.served_model import Served
        from bidora_jax.runs.serving import form_of_training

        served = Served(run="" if self.folder is None else str(self.folder), adapter=self._adapters)
        return form_of_training(served, self._opened.tokenizer)

    @property
    def _adapters(self) -> tuple[str, ...]:
        return (self.adapter,) if self.adapter else ()

    @cached_property
    def _ends(self) -> list[int]:
        from bidora_jax.generation import conversation

        return conversation.ends(self._opened.folder, self._opened.tokenizer)

    @cached_property
    def _measure(self) -> "Evaluator":
        from bidora_jax.tasks import evaluation

        _, member = self._weights
        return evaluation.evaluator(self._opened.config, None if member is None else member.adapter, self.form)


def load(
    model: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    quantization: Literal["none", "int8", "nf4"] = "none",
) -> FinetunedModel:
    """A trained model as `finetune` returns it: of a run folder, of a model folder or a name on the hub, or of one with an adapter.

    dtype and quantization say how a base without a run is held; a run's is held as it was trained. InputError for what can't be
    read; the weights are read when they are first needed.
    """
    from bidora_jax.models.formats import hf_config

    folder = Path(str(at_home(str(model))))
    named = "" if adapter is None else str(at_home(str(adapter)))
    if hf_config.is_run(folder):
        if named or (dtype, quantization) != ("auto", "none"):
            raise InputError(
                f"{folder} is a run folder, which has its own adapter, dtype and quantisation: give nothing beside it, or the "
                "model that it was trained from"
            )
        found = FinetunedModel.of_run(folder)
    else:
        call_arguments.one_of("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
        call_arguments.one_of("quantization", quantization, ("none", "int8", "nf4"))
        # A path of the home folder is a Path already; a name on the hub stays the text that it is.
        form = ModelConfig(dtype=dtype, quantization=quantization)
        found = FinetunedModel(str(folder), named, form)
    if not found._labels_texts:  # a classifier is opened with its weights, when it is first asked
        found._opened  # noqa: B018 - refuses what cannot be read
    return found

"""The options of `diablo-ds evaluate`; light, so that a command can name them without torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from diablo_ds.config.choices import AUTO, ControlTokens, Corpus, Template, check_control_tokens
from diablo_ds.config.setting import REQUIRED, check_settings, setting
from diablo_ds.config.task_limits import parse_limits
from diablo_ds.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which models answer which tasks, and how.

    Raises:
        UserError: if a value is illegal, or has no effect.
    """

    task: tuple[str, ...] = setting(
        REQUIRED,
        "Task, or several with commas between them; may be repeated. TASK:LABEL asks a task a "
        "second time, on other data.",
        "data",
    )
    data: tuple[str, ...] = setting(
        (), "File or folder of a task's questions, as TASK=PATH; may be repeated.", "data"
    )
    limit: tuple[str, ...] = setting(
        (),
        "ROWS of each task, the first ones, or TASK=ROWS of one; 0 for all; several with commas; "
        "may be repeated.",
        "data",
        shown_default="all",
    )
    metric: tuple[str, ...] = setting(
        (),
        "Metric, or several with commas; only these are computed, and of commonsense tasks only "
        "what they need is asked: generation, choice or choice_norm. May be repeated.",
        "data",
        shown_default="all of each task",
    )
    match: Literal["", "exact", "contains", "regex"] = setting(
        "",
        "How answers of the task jsonl are compared with references.",
        "data",
        shown_default="exact",
    )
    template: Template = setting(
        AUTO,
        "Prompt template; auto takes that of a model's training data where the task follows it, "
        "else that of the task.",
        "data",
    )
    control_tokens: ControlTokens = setting(
        AUTO,
        "Control tokens in text of the template plain: read, text, or auto for what they were in a "
        "model's training data, else read where a text begins or ends with one.",
        "data",
    )
    corpus: Corpus = setting(
        AUTO, "Family of the rows of the tasks loss and forgetting; auto knows it by them.", "data"
    )
    column: tuple[str, ...] = setting(
        (),
        "Column of the rows of the tasks loss and forgetting, as FIELD=COLUMN; may be repeated.",
        "data",
    )
    adapter: tuple[str, ...] = setting(
        (),
        "Adapter: its folder, a checkpoint, or the folder of a run that is done; may be repeated.",
        "sources",
    )
    merged: tuple[str, ...] = setting((), "Folder of a merged model; may be repeated.", "sources")
    base: str = setting(
        "",
        "Base model: a folder, hf://owner/name, or default.",
        "sources",
        shown_default="as the adapters record",
    )
    skip_base: bool = setting(False, "Do not evaluate the base itself.", "sources")
    force: bool = setting(
        False, "Evaluate although the base is not the one of an adapter.", "sources"
    )
    judge: str = setting(
        "",
        "Folder of a model that judges refusals too, for the tasks safety and overrefusal.",
        "sources",
    )
    output: Path = setting(
        REQUIRED, "Folder for the results; one that was begun is continued.", "run"
    )
    num_samples: int | None = setting(
        None, "Answers to each question.", "run", minimum=1, shown_default="as the task has it"
    )
    temperature: float | None = setting(
        None,
        "What logits are divided by before a token is drawn; 0 for the likeliest token.",
        "run",
        minimum=0,
        shown_default="as the task has it",
    )
    top_p: float | None = setting(
        None,
        "Probability of the smallest set of likeliest tokens that are drawn from.",
        "run",
        above=0,
        maximum=1,
        shown_default="as the task has it",
    )
    seed: int = setting(0, "Seed of drawn tokens.", "run", minimum=0)
    max_new_tokens: int | None = setting(
        None, "Most tokens of an answer.", "run", minimum=1, shown_default="as the task has it"
    )
    max_length: int | None = setting(
        None,
        "Longest example of the tasks loss and forgetting, in tokens.",
        "run",
        minimum=2,
        shown_default="2048, or what the models take",
    )
    allow_code_execution: bool = setting(
        False, "Run the programs that models write, for the tasks humaneval and mbpp.", "run"
    )
    weak_sandbox: bool = setting(
        False,
        "Run programs also where files and network cannot be kept from them; for a machine that "
        "you can lose.",
        "run",
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        AUTO, "Precision of weights; auto takes what the device is good at.", "memory and speed"
    )
    placement: Literal["auto", "copies", "sharded"] = setting(
        AUTO,
        "Where the model is: copies on each rank, or sharded over all of them by ZeRO-3; auto "
        "shards what does not fit.",
        "memory and speed",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.task_names:
            raise UserError(f"task must name at least one task; got task={self.task!r:.60}")
        for name in self.task_names:
            if self.task_names.count(name) > 1:
                raise UserError(
                    f"each task must be given once; got {name!r} twice; name it {name}:LABEL for "
                    "other data"
                )
        parse_limits(self.limit, self.task_names, "limit")
        check_control_tokens(self.control_tokens, self.template)
        if self.skip_base and not (self.adapter or self.merged):
            raise UserError(
                "an evaluation needs a model; got skip_base=True and no adapter or merged model"
            )
        if not (self.adapter or self.merged or self.base):
            raise UserError(
                "an evaluation needs a model; got none; give --adapter, --merged or --base, such "
                "as --base default"
            )
        if self.skip_base and self.base and not self.adapter:
            raise UserError(
                f"base has no effect without adapter where skip_base is set; got base={self.base!r}"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the values by name, as JSON has them."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
            elif isinstance(value, Path):
                values[name] = str(value)
        return values

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return _split(self.task)

    @property
    def limits(self) -> dict[str, int]:
        """The most questions of each task by its name; 0 for all."""
        return parse_limits(self.limit, self.task_names, "limit")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were chosen; none for all."""
        return _split(self.metric)


def _split(texts: tuple[str, ...]) -> tuple[str, ...]:
    words = (word.strip() for text in texts for word in text.split(","))
    return tuple(word for word in words if word)

"""The config of a DiaBlo adapter in PEFT: what `adapter_config.json` holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from diablo_ds.adapter.layer_names import compiled
from diablo_ds.errors import UserError
from diablo_ds.peft.support import add_peft_type


@dataclass
class DiaBloConfig(PeftConfig):
    """Which layers of a model get a delta, and of how many blocks each.

    Args:
        num_blocks: number of diagonal blocks of a delta; must divide both widths of each layer
            but those that `num_blocks_pattern` names. Or "auto:<share>", e.g. "auto:1%": for each
            layer the number whose trainable share is nearest; the model replaces it by numbers.
        num_blocks_pattern: other numbers of blocks, by a regular expression that must match the end
            of a layer's full name from the start of one of its parts, e.g. ``{"down_proj": 32}``.
            The first key that matches counts.
        target_modules: the linear layers that get a delta: names or the last parts of names, or one
            regular expression that must match the full name, or "all-linear"; by default those of
            the model's type in `diablo_ds.adapter.targets.DEFAULT_TARGETS`.
        exclude_modules: layers to leave out, in the same forms.
        layers_to_transform: numbers of the decoder layers to keep; all by default. Only with a
            list of last parts of names in `target_modules`.
        layers_pattern: name of the list of decoder layers, if PEFT does not find the number.
        dropout: share of the adapter's input that is zeroed while training, in [0, 1).
        modules_to_save: other modules to train in full and to save with the adapter.
        init_weights: start at zero, so that a new adapter changes nothing; False for small random
            values, which only tests need.
        base_fingerprint: hash of the base files that the adapter was trained on; see
            `diablo_ds.model.finding.fingerprint`.
        num_deltas: number of deltas in the folder.
        step: training step after which the adapter was saved.
        heldout_loss: held-out loss at that step.
        library_versions: versions of the libraries that trained it.
        parent: the adapter that its training started from.

    The last five are the trainer's, for information. All but `parent` are dropped where the adapter
    is loaded to be trained further, since they would no longer hold.

    Raises:
        UserError: if a value is out of its range.
    """

    num_blocks: int | str = field(
        default=64, metadata={"help": "Number of diagonal blocks of a delta."}
    )
    num_blocks_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Other numbers of blocks by regular expression on a layer's name."},
    )
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Layers that get a delta."}
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Layers that get none."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the decoder layers that get deltas."}
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata={"help": "Name of the list of decoder layers."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Other modules to train in full."}
    )
    init_weights: bool = field(default=True, metadata={"help": "Start at zero."})
    base_fingerprint: str | None = field(
        default=None, metadata={"help": "Hash of the base files that the adapter belongs to."}
    )
    num_deltas: int | None = field(default=None, metadata={"help": "Number of deltas."})
    step: int | None = field(default=None, metadata={"help": "Training step."})
    heldout_loss: float | None = field(default=None, metadata={"help": "Held-out loss."})
    library_versions: dict[str, str] | None = field(
        default=None, metadata={"help": "Versions of the libraries that trained the adapter."}
    )
    parent: Any = field(default=None, metadata={"help": "The adapter that this one began from."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type()
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)
        self.num_blocks_pattern = self.num_blocks_pattern or {}
        self._check()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; names of modules in order, so that equal configs are equal files."""
        fields: dict[str, Any] = super().to_dict()
        return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}

    def _check(self) -> None:
        pattern: Any = self.num_blocks_pattern
        if not isinstance(pattern, dict):
            raise UserError(
                f"num_blocks_pattern must be numbers by regular expression; got {pattern!r:.80}"
            )
        for key in pattern:
            compiled(key, "num_blocks_pattern")
        counts: dict[str, Any] = dict(pattern)
        if isinstance(self.num_blocks, str):
            if counts or not self.num_blocks.startswith("auto:"):
                raise UserError(
                    'num_blocks must be a number, or "auto:<share>" without a num_blocks_pattern; '
                    f"got num_blocks={self.num_blocks!r}, num_blocks_pattern={counts!r}"
                )
        else:
            counts["num_blocks"] = self.num_blocks
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise UserError(f"num_blocks must be an integer from 1; got {name}={count!r}")
        dropout: Any = self.dropout
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise UserError(f"dropout must be a number in [0, 1); got dropout={dropout!r}")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), str):
                compiled(value, name)
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name} cannot be used when target_modules is a str; got "
                        f"{name}={getattr(self, name)!r}, target_modules={self.target_modules!r}; "
                        "put the layers into the regular expression"
                    )
        if self.layers_pattern and self.layers_to_transform is None:
            raise UserError(
                "layers_pattern must come with layers_to_transform, which it is for; got "
                f"layers_pattern={self.layers_pattern!r}"
            )

"""Words that settings take, for checks and help texts that need no other module."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

from diablo_ds.errors import UserError

DS_CONFIGS = Path(__file__).parent / "ds_configs"
"""The DeepSpeed config files that come with the program."""

AUTO: Final = "auto"
PLAIN: Final = "plain"
CHAT: Final = "chat"
READ: Final = "read"
TEXT: Final = "text"
Corpus = Literal["auto", "commonsense", "math", "code", "safety"]
CORPORA: tuple[Corpus, ...] = get_args(Corpus)
"""Families of corpora; auto knows rows by their fields."""
FORMER_CORPORA: dict[str, Corpus] = {"": "auto", "jsonl": "auto"}
"""Names that earlier versions gave to families, in their files."""
ATTENTIONS = ("auto", "sdpa", "varlen", "flash_attention_2", "flash_attention_3", "eager")
DataOrder = Literal["auto", "hashed", "seed-plus-epoch"]
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
Overlong = Literal["drop", "cut-prompt", "cut-completion", "error"]
"""What may be done with an example longer than the limit."""
Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
COMPILE = ("auto", "on", "off")
TRACKERS = ("wandb", "mlflow", "trackio")
"""By the names of their packages."""
DELTA_PATHS = (
    "auto",
    "fused",
    "summed",
    "prefilled",
    "triton",
    "triton_summed",
    "triton_prefilled",
)
DEFAULT_NUM_BLOCKS = "64"
MAX_BAD_ROWS = 0.01
"""Share of rows that may fail to fit, by default."""
Template = Literal["auto", "alpaca", "gsm8k", "plain", "chat"]
TextForm = Literal["auto", "chunk", "row"]
"""What becomes of texts without a prompt."""
ControlTokens = Literal["auto", "read", "text"]
"""What text such as "<|im_end|>" is in rows of the template plain."""
CONTROL_TOKENS: tuple[ControlTokens, ...] = get_args(ControlTokens)


def check_control_tokens(control_tokens: str, template: str) -> None:
    """Raise UserError where control_tokens has no effect: text of other templates stays text."""
    if control_tokens != AUTO and template not in (AUTO, PLAIN):
        raise UserError(
            f"control_tokens needs the template {PLAIN}, as text of others always stays text; got "
            f"control_tokens={control_tokens!r}, template={template!r}"
        )

"""Words that settings take, for checks and help texts that need no other module."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.errors import UserError

DS_CONFIGS = Path(__file__).parent / "ds_configs"
"""The DeepSpeed config files that come with the program."""


CORPORA = ("commonsense", "math", "code", "safety", "jsonl")
ATTENTIONS = ("sdpa", "varlen", "flash_attention_2", "flash_attention_3", "eager")
DATA_ORDERS = ("hashed", "seed-plus-epoch")
PRECISIONS = ("bf16", "fp16", "fp32")
OVERLONG = ("drop", "cut-prompt", "cut-completion", "error")
"""What may be done with an example longer than the limit."""
SCHEDULES = ("linear", "cosine", "constant")
AUTO, PLAIN, CHAT = "auto", "plain", "chat"
TEMPLATES = ("alpaca", "gsm8k", PLAIN, CHAT)
READ = "read"
CONTROL_TOKENS = (AUTO, READ, "text")
"""What text such as "<|im_end|>" is in rows of the template plain."""


def check_control_tokens(control_tokens: str, template: str) -> None:
    """Raise UserError where control_tokens has no effect: text of other templates stays text."""
    if control_tokens != AUTO and template not in (AUTO, PLAIN):
        raise UserError(
            f"control_tokens needs the template {PLAIN}, as text of others always stays text; got "
            f"control_tokens={control_tokens!r}, template={template!r}"
        )

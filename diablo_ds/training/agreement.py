"""What every host must have alike before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from diablo_ds.data.text.tokenization import fingerprint as tokenizer_digest
from diablo_ds.model.finding import fingerprint
from diablo_ds.ranks import distributed
from diablo_ds.ranks.software import path_digest


def check_same_model(folder: Path) -> None:
    """Raise UserError on every rank unless all find the same model in its folder.

    Collective: every rank must call this.
    """
    config, weights, tokenizer = distributed.on_every_rank(
        lambda: (path_digest(folder / "config.json"), fingerprint(folder), tokenizer_digest(folder))
    )
    distributed.check_same(
        {
            f"config.json of {folder} (its digest)": config[:12],
            f"weights in {folder} (their fingerprint)": weights[:12],
            f"tokenizer in {folder} (its fingerprint)": tokenizer[:12],
        },
        "host",
    )

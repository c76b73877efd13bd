"""What a plan comes to, in a sentence: what fits, how fast, how long, with how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diablo_ds.data.prepare.manifest import load_manifest
from diablo_ds.errors import UserError
from diablo_ds.files.layout import MANIFEST_FILE
from diablo_ds.planning.candidate import TIGHT_SHARE, Candidate
from diablo_ds.planning.hardware import GB, ClusterSize

BYTES_PER_TOKEN = 4
"""Of a file's text, as tokenizers with large vocabularies split English; a rough figure."""


def count_tokens(data: Path) -> tuple[int, str]:
    """Return the tokens of one pass over data, and how they were counted.

    Those of a prepared dataset are recorded; those of files are estimated from their size.

    Raises:
        UserError: if there is no data.
    """
    if (data / MANIFEST_FILE).is_file():
        part = load_manifest(data)["parts"].get("train", {})
        return int(part.get("tokens", 0)), "recorded by prepare"
    if not data.exists():
        raise UserError(f"data must be a file, a folder or a prepared dataset; got {data}")
    files = [data] if data.is_file() else [p for p in data.rglob("*") if p.is_file()]
    num_bytes = sum(file.stat().st_size for file in files)
    if not num_bytes:
        raise UserError(f"data must not be empty; got {data}")
    note = f"about, at {BYTES_PER_TOKEN} bytes of file per token"
    return max(1, num_bytes // BYTES_PER_TOKEN), note


def sentence(
    name: str,
    cluster: ClusterSize,
    gpu: str,
    best: Candidate | None,
    safer: Candidate | None,
    tried: Sequence[Candidate],
    tokens: tuple[int, str] | None,
) -> str:
    """Return what fits, at which rate and for how long; and a safer layout where it is tight.

    Args:
        name: the model's name.
        cluster: what was planned for.
        gpu: the GPU model's name.
        best: the fastest layout that fits, if one does.
        safer: the fastest that is not tight, if the best one is and there is one.
        tried: all layouts of the planned block count.
        tokens: how many are to be trained on and how they were counted, if that is known.
    """
    where = f"{cluster.world_size} x {gpu}"
    if best is None:
        smallest = min(c.run_config.micro_batch for c in tried)
        return f"{name} does not fit on {where}, not even at micro batch {smallest}."
    largest = max(c.run_config.micro_batch for c in tried)
    at_largest = any(c.fits for c in tried if c.run_config.micro_batch == largest)
    text = f"{name} fits on {where} with {_describe(best)}, {_hours(best, tokens)}."
    if not at_largest:
        text += f" At micro batch {largest} nothing fits."
    if best.is_tight:
        text += f" That is tight: less than {TIGHT_SHARE:.0%} of the memory is left; "
        text += f"next safer: {_describe(safer)}." if safer else "no layout leaves more."
    return text


def _describe(candidate: Candidate) -> str:
    layers = {"none": "no layer", "all": "all layers"}.get(
        candidate.recomputed, f"{candidate.recomputed} layers"
    )
    taken = candidate.memory.total + candidate.cluster.reserved_bytes
    return (
        f"{candidate.variant.name}, micro batch {candidate.run_config.micro_batch} and {layers} "
        f"recomputed: about {candidate.tokens_per_s:,.0f} tokens/s, {taken / GB:,.1f} of "
        f"{candidate.cluster.memory_bytes / GB:g} GB per GPU"
    )


def hours(candidate: Candidate, num_tokens: int) -> float:
    """Return the hours that a layout takes for a number of tokens."""
    return num_tokens / candidate.tokens_per_s / 3600


def _hours(candidate: Candidate, tokens: tuple[int, str] | None) -> str:
    if tokens is None:
        return f"{hours(candidate, 10**9):,.1f} hours per billion tokens"
    number, counted = tokens
    how = f" ({counted})" if counted else ""
    return f"{hours(candidate, number):,.2f} hours for {number:,} tokens{how}"

"""A prepared dataset for a person to look at: examples with masks, lengths, totals, a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from diablo_ds.data.labels import IGNORE_LABEL, Example
from diablo_ds.data.prepare.manifest import count_examples, describe, load_manifest
from diablo_ds.data.prepare.writing import NUM_BINS
from diablo_ds.data.text.encoders import Encoder
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_file

PLOT_FILE = "lengths.png"
_BAR_WIDTH = 50


def inspect_dataset(
    folder: Path, num_examples: int, tokenizer: str, find_tokenizer: Callable[[str], Path]
) -> None:
    """Print examples, length histogram and totals, and write a plot into the folder.

    Args:
        folder: the prepared dataset.
        num_examples: examples to print, spread evenly over the training part.
        tokenizer: tokenizer to decode with; empty for the one the manifest names.
        find_tokenizer: turns its name into its folder or file.

    Raises:
        UserError: if the folder holds no prepared dataset, or its tokenizer is not to be found.
    """
    from diablo_ds.data.token_table import TokenTable

    manifest = load_manifest(folder)
    loaded = load_tokenizer(find_tokenizer(tokenizer or manifest["tokenizer"]["name"]))
    if not loaded.reads_as(manifest["tokenizer"]["probe"]):
        raise UserError(
            "tokenizer must be the one the dataset was made with; got "
            f"{tokenizer or manifest['tokenizer']['name']!r}, which reads a text as other tokens"
        )
    table = TokenTable.load(folder, "train")
    shown = min(num_examples, len(table))
    for number in range(shown):
        index = number * len(table) // shown
        example = table[index]
        click.echo(
            f"--- example {index:,} of {len(table):,}, {len(example.input_ids)} tokens; "
            + click.style("green carries loss", fg="green")
            + ", "
            + click.style("underlined are control tokens", underline=True)
        )
        click.echo(colored(example, loaded.encoder) + "\n")
    for part, described in manifest["parts"].items():
        click.echo(f"{part}: examples by length in tokens")
        click.echo(_histogram(described["length_histogram"], described["longest"]) + "\n")
    click.echo(describe(manifest))
    plot_lengths(manifest["parts"], folder / PLOT_FILE)
    click.echo(f"Plot: {folder / PLOT_FILE}")


def colored(example: Example, encoder: Encoder) -> str:
    """Return an example's text: what carries loss in green, control tokens underlined."""
    ids, labels = list(map(int, example.input_ids)), list(map(int, example.labels))
    control_ids = encoder.control.ids
    kinds = [
        (label == IGNORE_LABEL, token in control_ids)
        for token, label in zip(ids, labels, strict=True)
    ]
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        masked, is_control = kinds[start]
        if end < len(ids) and kinds[end] == kinds[start]:
            continue
        # Decoded from the beginning, since some tokenizers drop a text's first space.
        before = encoder.decode(ids[:start]) if start else ""
        piece = encoder.decode(ids[:end])[len(before) :]
        if is_control:
            piece = click.style(piece, underline=True, reset=masked)
        text += piece if masked else click.style(piece, fg="green", bold=True)
        start = end
    return text


def _histogram(histogram: dict[str, Any], longest: int) -> str:
    """Draw a histogram in characters, without the empty bins beyond the longest example."""
    width, counts = histogram["bin_width"], histogram["counts"]
    num_bins = -(-longest // width)
    most = max(counts)
    rows = []
    for index in range(min(num_bins, NUM_BINS)):
        bar = "#" * round(_BAR_WIDTH * counts[index] / most)
        rows.append(f"{index * width + 1:6d}-{(index + 1) * width:<6d} {counts[index]:9,} {bar}")
    return "\n".join(rows)


def plot_lengths(parts: dict[str, Any], path: Path) -> None:
    """Draw the lengths of each part's examples as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for part, described in parts.items():
        width = described["length_histogram"]["bin_width"]
        counts = described["length_histogram"]["counts"]
        num_examples = count_examples(described)
        share = [count / num_examples for count in counts]
        edges = [width * index for index in range(len(counts) + 1)]
        axes.stairs(share, edges, fill=True, alpha=0.5, label=f"{part} ({num_examples:,})")
    axes.set_xlabel("length of an example (tokens)")
    axes.set_ylabel(f"share of examples, in bins of {width} tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")

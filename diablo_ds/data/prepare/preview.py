"""A prepared dataset for a person to look at: examples with masks, lengths, totals, a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diablo_ds.data.labels import Example
from diablo_ds.data.prepare.manifest import count_examples, describe, load_manifest
from diablo_ds.data.prepare.writing import NUM_BINS
from diablo_ds.data.text.encoders import Encoder
from diablo_ds.data.text.marking import pieces
from diablo_ds.data.text.tokenization import load_tokenizer
from diablo_ds.data.token_table import TokenTable
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import new_file
from diablo_ds.files.figures import figure_class
from diablo_ds.files.shown_text import shown

PLOT_FILE = "lengths.png"
_BAR_WIDTH = 50
_GREEN, _BOLD, _UNDERLINE, _RESET = "\x1b[32m", "\x1b[1m", "\x1b[4m", "\x1b[0m"


def inspect_dataset(
    folder: Path, num_examples: int, tokenizer: str, find_tokenizer: Callable[[str], Path]
) -> Iterator[str]:
    """Yield examples, length histograms and totals as text, and write a plot into the folder.

    Args:
        folder: the prepared dataset.
        num_examples: examples to show, spread evenly over the training part.
        tokenizer: tokenizer to decode with; empty for the one that the manifest names.
        find_tokenizer: returns the folder or file of a tokenizer's name.

    Raises:
        UserError: if the folder holds no prepared dataset, or its tokenizer cannot be found.
    """
    manifest = load_manifest(folder)
    name = tokenizer or manifest["tokenizer"]["name"]
    loaded = load_tokenizer(find_tokenizer(name))
    if not loaded.reads_as(manifest["tokenizer"]["probe"]):
        raise UserError(
            f"tokenizer must be the one the dataset was made with; got {name!r}, which splits text "
            "into other tokens"
        )
    table = TokenTable.load(folder, "train")
    num_shown = min(num_examples, len(table))
    legend = (
        f"{_GREEN}green carries loss{_RESET}, {_UNDERLINE}underlined are control tokens{_RESET}"
    )
    for number in range(num_shown):
        index = number * len(table) // num_shown
        example = table[index]
        yield f"--- example {index:,} of {len(table):,}, {len(example.input_ids)} tokens; {legend}"
        yield colored(example, loaded.encoder) + "\n"
    for part, described in manifest["parts"].items():
        yield f"{part}: examples by length in tokens"
        yield _histogram(described["length_histogram"], described["longest"]) + "\n"
    yield describe(manifest)
    plot_lengths(manifest["parts"], folder / PLOT_FILE)
    yield f"Plot: {folder / PLOT_FILE}"


def colored(example: Example, encoder: Encoder) -> str:
    """Return an example's text, with loss in green and control tokens underlined (ANSI codes)."""
    text = ""
    for piece, has_loss, is_control in pieces(example, encoder):
        piece = shown(piece)
        if is_control:
            piece = f"{_UNDERLINE}{piece}{'' if has_loss else _RESET}"
        text += f"{_GREEN}{_BOLD}{piece}{_RESET}" if has_loss else piece
    return text


def _histogram(histogram: dict[str, Any], longest: int) -> str:
    """Return a histogram as text, without the empty bins beyond the longest example."""
    width, counts = histogram["bin_width"], histogram["counts"]
    num_bins = -(-longest // width)
    most = max(counts)
    rows = []
    for index in range(min(num_bins, NUM_BINS)):
        bar = "#" * round(_BAR_WIDTH * counts[index] / most)
        rows.append(f"{index * width + 1:6d}-{(index + 1) * width:<6d} {counts[index]:9,} {bar}")
    return "\n".join(rows)


def plot_lengths(parts: dict[str, Any], path: Path) -> None:
    """Plot the lengths of each part's examples as a PNG."""
    figure = figure_class()(figsize=(8, 4.5), layout="constrained")
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

"""How step time and memory grow with length, vocabulary, blocks and ranks.

    python -m benchmarks.growth

One quantity at a time is varied, on a model of SmolLM2's layer shapes with fewer layers. Beside
every measurement stands the frozen base, forward and backward on each rank alone, at the same
length, vocabulary and number of ranks.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from benchmarks.plots import plot_lines
from benchmarks.random_llama import save_random_llama
from benchmarks.ranks import run_ranks
from benchmarks.report import table, write_report

NUM_LAYERS = 6


class Point(NamedTuple):
    """One set of quantities; the defaults are those held fixed."""

    length: int = 512
    vocabulary: int = 49152
    num_blocks: int = 64
    ranks: int = 2


SERIES = {
    "length": (128, 256, 512, 1024, 2048),
    "vocabulary": (32_768, 65_536, 131_072, 262_144),
    "num_blocks": (16, 32, 64, 128),
    "ranks": (1, 2, 4),
}


def make_model(folder: Path, vocabulary: int) -> Path:
    """Save a random model with SmolLM2-135M's layers, wider, so that 128 blocks fit."""
    path = folder / f"vocabulary-{vocabulary}"
    if not path.exists():
        save_random_llama(
            path,
            torch.bfloat16,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=12,
            num_key_value_heads=4,
            vocab_size=vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    return path


def measure(point: Point, method: str, folder: Path) -> dict[str, float]:
    """Return seconds of a step and the peak of the largest rank in bytes."""
    settings: dict[str, Any] = {
        "method": method,
        "model": str(make_model(folder, point.vocabulary)),
        "length": point.length,
        "num_blocks": str(point.num_blocks),
        "micro_batch": 1,
        "num_steps": 5,
    }
    ranks = run_ranks("benchmarks.methods", settings, point.ranks)
    steps = zip(*(r["step_s"] for r in ranks), strict=True)
    return {
        "step_s": statistics.median(max(times) for times in steps),
        "memory_bytes": max(r["memory_bytes"] for r in ranks),
    }


@click.command(context_settings={"show_default": True})
@click.option(
    "--series", "names", multiple=True, default=tuple(SERIES), type=click.Choice(list(SERIES))
)
def main(names: tuple[str, ...]) -> None:
    """Vary one quantity at a time, under ZeRO-3."""
    known: dict[tuple[Point, str], dict[str, float]] = {}
    rows, figures = [], []
    panels: dict[str, dict[str, dict[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def look(point: Point, method: str) -> dict[str, float]:
            if method == "frozen":  # it has no blocks
                point = point._replace(num_blocks=Point().num_blocks)
            if (point, method) not in known:
                known[point, method] = measure(point, method, Path(folder))
                click.echo(f"{method} {point}: {known[point, method]}", err=True)
            return known[point, method]

        for name in names:
            panels[name] = {"DiaBlo, ZeRO-3": {}, "frozen base": {}}
            for value in SERIES[name]:
                point = Point()._replace(**{name: value})
                ours, frozen = look(point, "fused"), look(point, "frozen")
                panels[name]["DiaBlo, ZeRO-3"][value] = ours["memory_bytes"] / 1e9
                panels[name]["frozen base"][value] = frozen["memory_bytes"] / 1e9
                figures.append({"varied": name, **point._asdict(), "ours": ours, "frozen": frozen})
                rows.append(
                    [
                        f"{name} {value:,}",
                        f"{ours['step_s']:.3f}",
                        f"{frozen['step_s']:.3f}",
                        f"{ours['step_s'] / frozen['step_s']:.2f}",
                        f"{ours['memory_bytes'] / 1e9:.2f}",
                        f"{frozen['memory_bytes'] / 1e9:.2f}",
                    ]
                )
    text = (
        f"A random Llama of {NUM_LAYERS} layers, 768 wide, bf16, ZeRO-3, micro batch 1, all "
        f"tokens targets. Held fixed: {Point()._asdict()}. The ranks share the cores. Peak "
        "memory is of the largest rank's process, libraries included, in the measured steps.\n\n"
        + table(["varied", "step, s", "frozen, s", "ratio", "peak, GB", "frozen peak, GB"], rows)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = write_report("growth", "Growth of time and memory", {"points": figures}, text, device)
    plot_lines(path.with_suffix(".png"), panels, "peak memory of a rank (GB)")


if __name__ == "__main__":
    main()

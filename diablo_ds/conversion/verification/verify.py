"""Whether a merged model is base plus adapter: by its files and, where it fits, by outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diablo_ds.adapter.storage import load_adapter
from diablo_ds.conversion.verification.folders import folder_problems, index_problems
from diablo_ds.conversion.verification.options import Method
from diablo_ds.conversion.verification.outputs import OutputCheck, compare_outputs
from diablo_ds.conversion.verification.prompts import PROMPTS
from diablo_ds.conversion.verification.tensors import (
    TensorCheck,
    check_copied,
    check_merged,
    unit_roundoff,
)
from diablo_ds.errors import UserError
from diablo_ds.files.atomic import read_json
from diablo_ds.files.layout import MERGE_REPORT_FILE
from diablo_ds.files.tensor_files import StoredTensor, find_tensors
from diablo_ds.model.finding import fingerprint
from diablo_ds.model.weight_names import find_weights
from diablo_ds.ranks.free_memory import device_at_hand, free_bytes
from diablo_ds.ranks.progress import BYTES, Progress

_MODEL_OVERHEAD = 1.2
"""Memory of a loaded model over that of its weights in fp32, for buffers and a layer's copies."""
_ACTIVATION_BYTES = 1 << 30
_SHOWN = 5


@dataclass
class Verification:
    """What was compared, and what is wrong."""

    lines: list[str] = field(default_factory=list)
    """What was measured, with its bound."""
    problems: list[str] = field(default_factory=list)

    def check(self, merged: Path) -> None:
        """Raise UserError if the merged model is not what it should be."""
        if self.problems:
            more = len(self.problems) - _SHOWN
            text = "; ".join(self.problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
            raise UserError(
                f"a merged model must be its base plus the adapter; got {merged}: {text}"
            )


def verify_merge(
    base: Path, adapter: Path, merged: Path, *, method: Method = "auto"
) -> Verification:
    """Compare a merged model with its base and adapter; changes nothing.

    First the files, streamed: config, index and tokenizer, each tensor against what one correct
    rounding gives, each merged layer's outputs on random inputs; see `verification.tensors`. Then,
    where a model fits into memory, logits and greedy continuations; see `verification.outputs`.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        merged: folder of the merged model.
        method: "files" for the files alone; "model" for both; "auto" for both where they fit.

    Raises:
        UserError: if a folder is damaged, or too large to be loaded for "model".
    """
    deltas, config = load_adapter(adapter)
    tensors, found = find_tensors(base), find_tensors(merged)
    result = Verification()
    result.problems += index_problems(tensors, found, merged)
    is_comparable = not result.problems
    result.problems += folder_problems(base, adapter, merged)
    can_load = not result.problems
    if config.base_fingerprint and config.base_fingerprint != fingerprint(base):
        result.lines.append(
            f"Note: {base} is not the base that the adapter records, {config.base_model!r}"
        )
    device = device_at_hand()
    with_outputs = _takes_outputs(method, tensors, device)
    if not is_comparable:
        return result
    names = find_weights(base, tensors, config.num_blocks)
    _check_shapes(names, tensors, deltas)
    layer_of = {name: layer for layer, name in names.items()}
    is_stochastic = _is_stochastic(merged)
    _compare_tensors(tensors, found, layer_of, deltas, result, is_stochastic=is_stochastic)
    if not can_load:
        return result
    if not with_outputs:
        if method == "auto":
            result.lines.append(
                f"Logits: not compared, as {_needed_bytes(tensors) / 1e9:.1f} GB are not free on "
                f"{device.type}"
            )
        return result
    dtype = next(found[name].dtype for name in layer_of)
    converted = {n: found[n].dtype for n, t in tensors.items() if t.dtype != found[n].dtype}
    others = dtype if len(converted) == len(tensors) else torch.float32
    u = unit_roundoff(dtype, is_stochastic=is_stochastic)
    check = compare_outputs(base, config.num_blocks, deltas, merged, u, device, converted, others)
    _report_outputs(check, dtype, device, result)
    return result


def _is_stochastic(merged: Path) -> bool:
    """Return whether the merge rounded at random, as its report says; to nearest without one."""
    report = merged / MERGE_REPORT_FILE
    values = read_json(report) if report.is_file() else {}
    is_known = isinstance(values, dict) and values.get("rounding") == "stochastic"
    dtype = values.get("dtype") if isinstance(values, dict) else None
    if is_known and dtype not in ("bf16", "fp16"):
        raise UserError(
            "stochastic rounding must be to bf16 or fp16; got another dtype in "
            f"{MERGE_REPORT_FILE} of {merged}"
        )
    return is_known


def _takes_outputs(
    method: Method, tensors: Mapping[str, StoredTensor], device: torch.device
) -> bool:
    if method == "files":
        return False
    needed, free = _needed_bytes(tensors), free_bytes(device)
    if needed > free and method == "model":
        raise UserError(
            "the model must fit into memory in fp32 to be computed; got "
            f"{needed / 1e9:.1f} GB with {free / 1e9:.1f} GB free on {device.type}; compare the "
            "files alone, --method files"
        )
    return needed <= free


def _needed_bytes(tensors: Mapping[str, StoredTensor]) -> int:
    elements = sum(tensor.num_elements for tensor in tensors.values())
    return int(elements * 4 * _MODEL_OVERHEAD) + _ACTIVATION_BYTES


def _check_shapes(
    names: Mapping[str, str], tensors: Mapping[str, StoredTensor], deltas: Mapping[str, Tensor]
) -> None:
    for layer, name in names.items():
        num_blocks, in_block, out_block = deltas[f"{layer}.delta"].shape
        wanted = num_blocks * out_block, num_blocks * in_block
        if tensors[name].shape != wanted:
            raise UserError(
                "a delta must have the blocks of its layer's weight; got a delta for "
                f"{list(wanted)} and {name} of {list(tensors[name].shape)}"
            )


def _compare_tensors(
    base: Mapping[str, StoredTensor],
    merged: Mapping[str, StoredTensor],
    layer_of: Mapping[str, str],
    deltas: Mapping[str, Tensor],
    result: Verification,
    *,
    is_stochastic: bool,
) -> None:
    total = sum(t.num_bytes for t in (*base.values(), *merged.values()))
    generator = torch.Generator().manual_seed(0)
    checks: dict[str, TensorCheck] = {}
    with Progress("Comparing tensors", total, BYTES) as progress:
        for name, tensor in base.items():
            if name in layer_of:
                delta = deltas[f"{layer_of[name]}.delta"]
                checks[name] = check_merged(
                    tensor, merged[name], delta, generator, is_stochastic=is_stochastic
                )
            else:
                checks[name] = check_copied(tensor, merged[name])
            progress.advance(tensor.num_bytes + merged[name].num_bytes)
    wrong = {name: check for name, check in checks.items() if check.num_wrong}
    layers = [checks[name] for name in layer_of]
    error = max((check.error for check in layers), default=0.0)
    output_error = max((check.output_error for check in layers), default=0.0)
    num_elements = sum(base[name].num_elements for name in checks)
    result.lines += [
        f"Tensors: {len(checks) - len(wrong)} of {len(checks)} are exact ({num_elements:,} "
        f"elements), {len(layers)} with a delta; largest rounding error {error:.3f} of its bound, "
        f"{'a' if is_stochastic else 'half a'} unit in the last place",
        f"Layer outputs on random inputs: largest error {output_error:.3f} of its bound",
    ]
    for name, check in wrong.items():
        places = "elements" if name in layer_of else "rows"
        result.problems.append(
            f"{name} has {check.num_wrong} wrong {places}, the worst off by {check.error:.3g} "
            "times the bound of one rounding"
        )
    for name in layer_of:
        if checks[name].output_error > 1 and name not in wrong:
            result.problems.append(
                f"{layer_of[name]} has outputs off by {checks[name].output_error:.3g} times their "
                "bound"
            )


def _report_outputs(
    check: OutputCheck, dtype: torch.dtype, device: torch.device, result: Verification
) -> None:
    name = str(dtype).removeprefix("torch.")
    result.lines += [
        f"Logits of {len(PROMPTS)} prompts in fp32 on {device.type}: largest difference "
        f"{check.difference:.3g}, bound {check.bound:.3g} (twice what random roundings to {name} "
        f"changed), standard deviation of the logits {check.scale:.3g}",
        f"Greedy continuations: {check.num_equal} of {check.num_tokens} tokens are the same",
    ]
    if not check.is_explained:
        text = (
            f"logits differ by {check.difference:.3g}, more than rounding to {name} explains, "
            f"{check.bound:.3g}"
        )
        if check.num_unexplained:
            text += f", and {check.num_unexplained} tokens with them"
        if not result.problems:
            text += (
                "; all tensors are exact, so rounding has swallowed a part of the deltas that "
                "matters: merge with --dtype fp32 or --rounding stochastic"
            )
        result.problems.append(text)

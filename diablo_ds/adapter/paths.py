"""Delta paths: the formulations of a layer's product, and which one "auto" is."""

from __future__ import annotations

import torch

from diablo_ds.adapter.kernels.triton_support import WITHOUT_TRITON
from diablo_ds.errors import UserError

TRITON_PATHS = tuple(WITHOUT_TRITON)
SUMMED_PATHS = ("summed", "triton_summed")
PREFILLED_PATHS = ("prefilled", "triton_prefilled")
DELTA_PATHS = ("fused", "summed", "prefilled", *TRITON_PATHS)
"""`diablo_ds.adapter.autograd.DiaBloProduct` says what each computes."""
SEPARATE_PATHS = ("fused", "triton")
"""Those of a base without a dense weight: the delta's product is computed apart, and added."""


def resolve_delta_path(
    setting: str, dtype: torch.dtype, dropout: float, device_type: str = "cpu"
) -> str:
    """Return "summed", "prefilled" or "fused" for "auto", and any other setting as it is.

    In half precision on a GPU prefilled is the fastest of those that round the delta for itself
    (benchmarks/results has the figures), but for Triton's, which gain half a percent more.
    On a CPU summed is faster than fused, and in fp32 equal up to rounding. In bf16 a single product
    gives no reason to prefer one: measured against fp64, the error of the output is 0.0017 summed
    and 0.0017 to 0.0024 fused, for deltas of 0.1 % to 100 % of the weight. They differ in what is
    rounded: summed, the delta as it acts is off by 80 % of its norm where it is 0.1 % of the
    weight, by 16 % at 1 % and by 1.7 % at 10 %; fused, the output is rounded once more. What either
    does over many steps has not been studied. Until it is, summed is taken in half precision only
    where it was asked for, and so are the other paths.
    """
    if setting != "auto":
        return setting
    if dtype == torch.float32 and not dropout:
        return "summed"
    return "prefilled" if device_type == "cuda" else "fused"


def check_delta_path(delta_path: str, *, dropout: float, is_dense: bool) -> None:
    """Raise UserError unless a layer can use a delta path.

    Args:
        delta_path: its name.
        dropout: of the adapter's input.
        is_dense: whether the base has a dense weight.
    """
    if delta_path not in DELTA_PATHS:
        raise UserError(
            f"delta_path must be one of {', '.join(DELTA_PATHS)}; got delta_path={delta_path!r}"
        )
    if delta_path in SUMMED_PATHS and dropout:
        raise UserError(
            f"delta_path {delta_path!r} needs dropout=0, since the adapter sees the base's "
            f"input; got dropout={dropout}; use 'fused'"
        )
    if delta_path not in SEPARATE_PATHS and not is_dense:
        raise UserError(
            f"delta_path {delta_path!r} needs a base whose weight is a dense matrix of floats; got "
            "a base without one; use 'fused'"
        )

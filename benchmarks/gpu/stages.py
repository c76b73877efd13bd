"""The stages of the measurement, the most telling first, and the process that runs one."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.records import Records

STAGES = {
    "ceilings": "ceilings.cases",
    "step-frozen": "frozen.step_cases",
    "step-zero2": "ours.zero2_cases",
    "step-levers": "ours.lever_cases",
    "checks": "checks.cases",
    "step-trainer": "trainer.step_cases",
    "layers": "layers.cases",
    "loss": "loss_heads.cases",
    "chosen": "chosen.cases",
    "step-zero3": "ours.zero3_cases",
    "slice-zero2": "ours.slice_cases",
    "slice-frozen": "frozen.slice_cases",
    "slice-trainer": "trainer.slice_cases",
    "step-zero0": "ours.zero0_cases",
    "start": "start.cases",
}
"""By name: the module and its function that yields the cases of a scale, in order."""

_AGAIN, _NO_DEVICE = 3, 4
"""How a stage's process ends where the next case needs a new one, or CUDA cannot be initialised."""
_POLL_S = 0.1


def import_libraries() -> None:
    """Import what every stage needs, once, without touching the GPU: forked processes have it."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from diablo_ds.zero.joining import import_deepspeed

    importlib.import_module("transformers.models.llama.modeling_llama")
    import_deepspeed()
    if torch.cuda.is_initialized():
        raise RuntimeError("a library initialised CUDA on import; a forked process cannot use it")


def run_stage(
    stage: str, records: Records, scale: str, deadline: float, start_method: str = "fork"
) -> None:
    """Measure the cases of a stage that have no figures yet.

    Args:
        stage: a key of `STAGES`.
        records: where figures go.
        scale: "full" or "tiny".
        deadline: by `time.monotonic`; the case that runs then is dropped, and measured by a
            second run.
        start_method: "fork", with libraries imported once, or "spawn".
    """
    log = records.path.with_name(f"{stage}.log")
    while time.monotonic() < deadline:
        context: Any = multiprocessing.get_context(start_method)
        process = context.Process(target=_work, args=(stage, records, scale, log))
        process.start()
        try:
            ended_by = _watch(process, records, stage, deadline)
        except BaseException:  # whoever ends this process means its stage, too
            _kill(process)
            raise
        if ended_by == "deadline":
            return
        if process.exitcode == _NO_DEVICE and start_method == "fork":
            start_method = (
                "spawn"  # a library touched CUDA on import, which a fork does not survive
            )
            continue
        unfinished = records.unfinished(stage)
        if unfinished is not None:
            reason = ended_by or f"its process ended with {process.exitcode}: {_tail(log)}"
            records.fail(stage, unfinished["case"], reason, like=unfinished)
        elif process.exitcode not in (0, _AGAIN):
            records.fail(stage, "start", f"ended with {process.exitcode}: {_tail(log)}", like={})
            return
        if process.exitcode == 0:
            return


def _watch(process: BaseProcess, records: Records, stage: str, deadline: float) -> str:
    """Wait for a stage's process; return why it was ended, or nothing where it ended itself."""
    started, since = None, time.monotonic()
    while process.is_alive():
        process.join(_POLL_S)
        case = records.unfinished(stage)
        if case != started:
            started, since = case, time.monotonic()
        if time.monotonic() > deadline:
            _kill(process)
            return "deadline"
        if case is not None and time.monotonic() - since > case["limit_s"]:
            _kill(process)
            return f"it took more than {case['limit_s']:g} s"
    return ""


def _kill(process: BaseProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.is_file() else ""


def _work(stage: str, records: Records, scale: str, log: Path) -> None:
    """Measure case by case in this forked process, until one needs a fresh one, and exit."""
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        if torch.cuda.is_available():
            torch.cuda.init()
    except RuntimeError:
        traceback.print_exc()
        os._exit(_NO_DEVICE)
    try:
        module, _, function = STAGES[stage].rpartition(".")
        cases = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        for case in cases(scale):
            if case.name in records.ended(stage):
                continue
            records.start(stage, case.name, case.limit_s)
            try:
                figures = case.run()
            except Exception as error:
                traceback.print_exc()
                records.fail(stage, case.name, f"{type(error).__name__}: {error}")
                code = _AGAIN  # whatever it left behind, memory first, goes with the process
                break
            records.add(stage, case.name, figures)
            if case.alone:
                code = _AGAIN
                break
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

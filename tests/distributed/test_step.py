"""What a step costs beyond DeepSpeed's own work, and what one that is not finite leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diablo_ds.errors import NonFiniteError
from diablo_ds.ranks import distributed
from diablo_ds.ranks.stopping import Boundaries, StopAgreed, StopRequests
from diablo_ds.training.exchange import Exchange
from diablo_ds.training.step import train_step
from diablo_ds.zero.engine import Engine
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, build, learning_rate, micro_batches
from tests.tiny import save_model

pytestmark = pytest.mark.distributed
BF16 = dataclasses.replace(CONFIG, precision="bf16")
CASES = {
    **{
        f"{precision} {name}": (f"{name}.json", precision)
        for precision in ("bf16", "fp32")
        for name in ("zero0", "zero1", "zero2", "zero3")
    },
    "bf16 zero3_offload": ("zero3_offload.json", "bf16"),
}
COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "reduce",
    "reduce_scatter_tensor",
)
READS = ("item", "tolist", "__float__", "__int__", "__bool__")


class _Calls:
    """Calls that this package makes, by function; not DeepSpeed's, and none that replaces one."""

    def __init__(self) -> None:
        self.collectives: list[str] = []
        self.reads: list[str] = []

    @contextmanager
    def counting(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in COLLECTIVES:
                self._wrap(patch, dist, name, self.collectives, lambda args: True)
            for name in READS:
                # Integers are labels on the CPU, whatever the device.
                self._wrap(
                    patch, torch.Tensor, name, self.reads, lambda args: args[0].is_floating_point()
                )
            yield

    def _wrap(
        self,
        patch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        calls: list[str],
        counts: Callable[[tuple[Any, ...]], bool],
    ) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            folders = Path(caller.co_filename).parts
            if "diablo_ds" in folders and "private" not in folders and counts(args):
                calls.append(f"{name} in {caller.co_name}")
            return original(*args, **kwargs)

        patch.setattr(owner, name, counted)


def _is_float(args: tuple[Any, ...]) -> bool:
    tensor: torch.Tensor = args[0]
    return tensor.is_floating_point()


class _Source:
    """The real micro batches of each step; may fail at one, on one rank."""

    def __init__(self, config: Any, failing: tuple[int, int] | None = None) -> None:
        self.config, self.failing = config, failing

    def step(self, step: int) -> list[Any]:
        if self.failing == (step, distributed.rank()):
            raise OSError(28, "No space left on device")
        return micro_batches(step, self.config, distributed.rank(), distributed.world_size())


def _exchange(engine: Engine, source: Any, requests: StopRequests) -> Exchange:
    boundaries = Boundaries(requests, engine.device, clock=lambda: 0.0)
    return Exchange(source, boundaries, num_steps=4, failure=lambda: None)


def _take(engine: Engine, exchange: Exchange, step: int, config: Any) -> Any:
    result = train_step(
        engine,
        exchange.micro_batches,
        learning_rate(config, step),
        totals=exchange.totals,
        boundaries=exchange._boundaries,
        message=exchange.message,
    )
    exchange.receive(result.messages)
    return result


def _count(engine: Engine, config: Any) -> dict[str, list[str]]:
    """The collectives and reads of the third step, with everything that a run adds to it."""
    exchange = _exchange(engine, _Source(config), StopRequests())
    exchange._boundaries.seconds = 1e-3  # short steps; the clock stands still
    exchange.open(0)
    exchange._boundaries.seconds = 1e-3
    calls = _Calls()
    for step in range(3):
        exchange._boundaries.seconds = 1e-3
        if step < 2:
            _take(engine, exchange, step, config)
            continue
        with calls.counting():
            _take(engine, exchange, step, config)
            exchange.check()
    return {"collectives": calls.collectives, "reads": calls.reads}


def _state(engine: Engine) -> dict[str, torch.Tensor]:
    """Deltas as the forward sees them, masters and moments, of this rank."""
    engine.gather_deltas()
    result = {name: delta.detach().clone() for name, delta in engine.deltas.items()}
    for name, tensors in engine.gather_state().deltas.items():
        result |= {f"{name}.{key}": value for key, value in tensors.items()}
    return result


def _refused(engine: Engine, config: Any, *, of_gradient: bool) -> dict[str, Any]:
    """Make rank 1's loss, or only a gradient, NaN in one micro batch; return what is said."""
    before = _state(engine)
    batches = micro_batches(3, config, distributed.rank(), distributed.world_size())
    loss_of = engine.loss
    message, hooks = "", []
    if of_gradient:
        delta = next(iter(engine.deltas.values()))
        hooks.append(delta.register_hook(lambda grad: grad * math.nan))
    elif distributed.rank() == 1:
        # The gradient stays finite: only the loss tells.
        engine.loss = lambda batch: _nan_with_finite_gradient(loss_of(batch))
    try:
        train_step(engine, batches, 1e-3)
    except NonFiniteError as error:
        message = str(error)
    for hook in hooks:
        hook.remove()
    engine.loss = loss_of
    after = _state(engine)
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return {"message": message, "changed": changed}


class _AddNaN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss + math.nan

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


def _nan_with_finite_gradient(loss: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _AddNaN.apply(loss)
    return result


def _ended_together(engine: Engine, config: Any, ended: type[Exception]) -> int:
    """Let rank 1 fail, or be asked to stop, in step 1; return how many steps were taken."""
    requests = StopRequests()
    failing = (2, 1) if ended is OSError else None
    exchange = _exchange(engine, _Source(config, failing), requests)
    exchange.open(0)
    for step in range(4):
        try:
            exchange.check()
        except ended:
            return step
        if step == 1 and distributed.rank() == 1 and ended is StopAgreed:
            exchange.message = _asked(exchange.message, requests)
        _take(engine, exchange, step, config)
    raise AssertionError("nothing ended the run")


def _asked(message: Callable[[], list[float]], requests: StopRequests) -> Callable[[], list[float]]:
    def message_of_request() -> list[float]:
        requests.signal_name = "SIGUSR1"
        return message()

    return message_of_request


def _check(rank: int, folder: Path, output: Path) -> None:
    found: dict[str, Any] = {}
    engine = build(folder, "zero1.json", CONFIG)
    found["ended"] = {
        ended.__name__: _ended_together(engine, CONFIG, ended) for ended in (OSError, StopAgreed)
    }
    engine.close()
    for case, (ds_file, precision) in CASES.items():
        config = dataclasses.replace(CONFIG, precision=precision)
        engine = build(folder, ds_file, config)
        found[case] = {
            **_count(engine, config),
            "loss": _refused(engine, config, of_gradient=False),
            "gradient": _refused(engine, config, of_gradient=True),
        }
        engine.close()
    everyone = distributed.gather_values(found)
    if rank == 0:
        output.write_text(json.dumps(everyone))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def found(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    run_distributed(_check, 2, folder, model_folder, folder / "found.json")
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_step_adds_one_collective_and_one_wait_for_the_device(case, found):
    for of_rank in found:
        assert of_rank[case]["collectives"] == ["all_gather_into_tensor in gather_floats"]
        assert of_rank[case]["reads"] == ["tolist in gather_floats"]


@pytest.mark.parametrize("case", CASES)
def test_a_loss_that_is_no_number_on_one_rank_updates_nothing_on_any(case, found):
    for of_rank in found:
        assert of_rank[case]["loss"]["message"] == "loss must be finite; got loss=nan on rank 1"
        assert of_rank[case]["loss"]["changed"] == []


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_is_no_number_updates_nothing(case, found):
    for of_rank in found:
        assert "gradient norm must be finite" in of_rank[case]["gradient"]["message"]
        assert of_rank[case]["gradient"]["changed"] == []


def test_what_one_rank_tells_in_a_step_ends_all_of_them_after_it(found):
    # A source that fails for the third step, and a request in the second one: two steps are done.
    assert [of_rank["ended"] for of_rank in found] == [{"OSError": 2, "StopAgreed": 2}] * 2

"""Every ZeRO stage on two ranks trains exactly what one plain process trains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from diablo_ds.config.run import RunConfig
from tests.distributed.runner import run_distributed
from tests.distributed.training import CONFIG, TRACING, train_and_save, train_plain
from tests.tiny import save_model

pytestmark = pytest.mark.distributed

# fp32 sums in another order differ in the last bits, about 1e-7 relative; AdamW divides by the
# root of the second moment, which in the first steps turns that into about 1e-5 of a step (1e-2).
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference(model_folder):
    return train_plain(model_folder)


def _check(output, reference):
    points = json.loads(output.with_suffix(".json").read_text())
    deltas = torch.load(output.with_suffix(".pt"))
    assert_close(torch.tensor(points), torch.tensor(reference[0]), rtol=1e-5, atol=1e-6)
    assert deltas.keys() == reference[1].keys()
    for name, delta in deltas.items():
        assert delta.dtype == torch.float32
        assert delta.abs().max() > 1e-3  # it was trained
        assert_close(delta, reference[1][name], **TOLERANCE)


# --- each group of trainings on ranks that are started once --------------------------------------


@pytest.fixture(scope="module")
def train_all(model_folder, tmp_path_factory):
    """Train in several ways, one after another on the same ranks; return where results are."""

    def train(jobs: dict[str, Job], num_ranks: int = 2) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("results")
        filled = {
            folder / str(number): dataclasses.replace(job, model=job.model or model_folder)
            for number, job in enumerate(jobs.values())
        }
        run_distributed(_train_in_turn, num_ranks, folder, filled)
        return dict(zip(jobs, filled, strict=True))

    return train


@dataclasses.dataclass
class Job:
    """A training; without a model that of this module. Ranks compile by their backends."""

    ds_file: str
    config: RunConfig = CONFIG
    model: Path | None = None
    backends: tuple[str, ...] = (TRACING,)


def _train_in_turn(rank: int, jobs: dict[Path, Job]) -> None:
    for output, job in jobs.items():
        with _named(job):
            train_and_save(rank, job.model, job.ds_file, job.config, output, job.backends)


@contextmanager
def _named(job: Job) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"with {job}")
        raise


STAGES = ("zero0.json", "zero1.json", "zero2.json", "zero3.json", "zero3_offload.json")


@pytest.fixture(scope="module")
def stages(train_all):
    return train_all({name: Job(name) for name in STAGES})


@pytest.mark.parametrize("ds_file", STAGES)
def test_two_ranks_equal_one_process(ds_file, stages, reference):
    _check(stages[ds_file], reference)


CHECKPOINTING = [
    (ds_file, reentrant)
    for ds_file in ("zero0.json", "zero2.json", "zero3.json")
    for reentrant in (False, True)
]


@pytest.fixture(scope="module")
def recomputation(train_all):
    # In fp32 auto is summed; here the other formulation.
    config = dataclasses.replace(CONFIG, recompute=True, delta_path="fused")
    return train_all(
        {
            (ds_file, reentrant): Job(ds_file, dataclasses.replace(config, reentrant=reentrant))
            for ds_file, reentrant in CHECKPOINTING
        }
    )


@pytest.mark.parametrize(("ds_file", "reentrant"), CHECKPOINTING)
def test_recomputation_changes_nothing(ds_file, reentrant, recomputation, reference):
    _check(recomputation[ds_file, reentrant], reference)


COMPILED = dataclasses.replace(CONFIG, compile="on", delta_path="fused", recomputed_layers=1)
COMPILING = {
    "all": Job("zero3.json", COMPILED),
    "one rank cannot": Job("zero3.json", COMPILED, backends=(TRACING, "missing")),
    "summed": Job("zero1.json", dataclasses.replace(CONFIG, compile="on", delta_path="summed")),
}


@pytest.fixture(scope="module")
def compiling(train_all):
    return train_all(COMPILING)


@pytest.mark.parametrize("kind", COMPILING)
def test_compiled_layers_change_nothing(kind, compiling, reference):
    _check(compiling[kind], reference)


def test_one_rank_with_zero3_equals_one_process(train_all, reference):
    _check(train_all({"alone": Job("zero3.json")}, num_ranks=1)["alone"], reference)


FAMILIES = ("mistral", "qwen2", "gpt_neox")


@pytest.fixture(scope="module")
def families(train_all, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    models = {name: save_model(folder / name, name) for name in FAMILIES}
    results = train_all({name: Job("zero3.json", model=models[name]) for name in FAMILIES})
    return {name: (models[name], results[name]) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_under_zero3(family, families):
    model, output = families[family]
    _check(output, train_plain(model))


@pytest.fixture(scope="module")
def in_bf16(train_all):
    config = dataclasses.replace(CONFIG, precision="bf16")
    return train_all({name: Job(name, config) for name in STAGES[:4]})


@pytest.mark.parametrize("ds_file", STAGES[:4])
def test_bf16_keeps_fp32_master_copies(ds_file, in_bf16, reference):
    output = in_bf16[ds_file]
    losses = [point[0] for point in json.loads(output.with_suffix(".json").read_text())]
    assert_close(losses, [point[0] for point in reference[0]], rtol=1e-2, atol=0.0)
    deltas = torch.load(output.with_suffix(".pt"))
    values = torch.cat([delta.flatten() for delta in deltas.values()])
    assert values.dtype == torch.float32
    # Not representable in bf16: the optimizer's own copy is finer than the model's.
    assert (values != values.bfloat16().float()).float().mean() > 0.9

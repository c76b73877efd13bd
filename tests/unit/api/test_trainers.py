"""The same functions under transformers' Trainer and under Accelerate, in one process on a CPU."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

import diablo_ds
from tests.tiny import build_model

ROWS = [{"input_ids": list(range(i, i + 12)), "labels": list(range(i, i + 12))} for i in range(8)]


def _batch():
    ids = torch.tensor([row["input_ids"] for row in ROWS])
    return {"input_ids": ids, "labels": ids}


def _frozen(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_transformers_trainer_trains_the_deltas_alone(checkpointing, tmp_path):
    model = build_model()
    deltas = diablo_ds.attach(model, 4)
    before, first = _frozen(model), float(model(**_batch()).loss.detach())
    if checkpointing:
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        learning_rate=0.02,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=ROWS).train()
    assert all(delta.detach().any() for delta in deltas.values())
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in before.items())
    model.eval()
    last = float(model(**_batch()).loss.detach())
    assert last < first
    diablo_ds.save(model, tmp_path / "a")
    other = diablo_ds.load(build_model().eval(), tmp_path / "a")
    assert float(other(**_batch()).loss.detach()) == last


def test_accelerate_trains_the_deltas_alone(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = build_model()
    deltas = diablo_ds.attach(model, 4)
    before = _frozen(model)
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(deltas.values(), lr=0.02)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    for _ in range(4):
        loss = prepared(**_batch()).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in before.items())
    folder = diablo_ds.save(prepared, tmp_path / "a")
    other = diablo_ds.load(build_model(), folder)
    assert torch.equal(other(**_batch()).logits, model(**_batch()).logits)

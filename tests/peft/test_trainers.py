"""The trainers of transformers and TRL, on adapters of ours; each starts and ends in a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from diablo_ds.adapter.storage import AdapterConfig, load_adapter, save_adapter
from tests.peft.models import config, deltas, logits, tiny_peft_model, tokens
from tests.tiny import build_model, byte_tokenizer, save_model

PAIRS = [(f"{a} + {b} =", f" {a + b}") for a, b in ((1, 2), (3, 4), (5, 1), (2, 2))]
OPTIONS = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}
TEXT_OPTIONS = {**OPTIONS, "bf16": False, "gradient_checkpointing": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as our trainer saves it."""
    model = tiny_peft_model(seed=7)
    layers = [name.split(".", 2)[2].removesuffix(".diablo_delta.default") for name in deltas(model)]
    base = save_model(tmp_path / "base")
    adapter = AdapterConfig(str(base), "", dict.fromkeys(layers, 4))
    values = [delta.detach() for delta in deltas(model).values()]
    tensors = {f"{layer}.delta": value for layer, value in zip(layers, values, strict=True)}
    save_adapter(tmp_path / "stage-1", tensors, adapter)
    return tmp_path / "stage-1"


def loaded(folder: Path, *, is_trainable: bool = False) -> PeftModel:
    return PeftModel.from_pretrained(build_model().eval(), folder, is_trainable=is_trainable)


def train(trainer: Trainer) -> list[float]:
    """Train, and return the losses; shows that the deltas moved and the base did not."""
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(deltas(trainer.model))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def check_saved(trainer: Trainer, folder: Path) -> None:
    """What is saved is what was trained: by PEFT, and by our reader."""
    trainer.save_model(str(folder))
    torch.testing.assert_close(logits(loaded(folder)), logits(trainer.model.eval()), rtol=0, atol=0)
    tensors, _ = load_adapter(folder)
    for name, tensor in tensors.items():
        layer = name.removesuffix(".delta")
        trained = deltas(trainer.model)[f"base_model.model.{layer}.diablo_delta.default"]
        assert torch.equal(tensor, trained)


def rows() -> datasets.Dataset:
    ids = tokens(8, 6).tolist()
    return datasets.Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def arguments(folder: Path, **changes: object) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder / "out"), **{**OPTIONS, **changes})


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_trainer_of_transformers(tmp_path, recomputes):
    model = get_peft_model(build_model(), config(init_weights=True))
    changes = {"gradient_checkpointing": recomputes}
    trainer = Trainer(model=model, args=arguments(tmp_path, **changes), train_dataset=rows())
    train(trainer)
    check_saved(trainer, tmp_path / "saved")


def test_a_run_of_the_trainer_continues_from_its_checkpoint(tmp_path):
    def trainer(**changes: object) -> Trainer:
        model = get_peft_model(build_model(), config(init_weights=True))
        changes = {"save_strategy": "steps", "save_steps": 2, **changes}
        return Trainer(model=model, args=arguments(tmp_path, **changes), train_dataset=rows())

    undisturbed = trainer()
    undisturbed.train()
    continued = trainer()
    continued.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    torch.testing.assert_close(
        logits(continued.model.eval()), logits(undisturbed.model.eval()), rtol=0, atol=0
    )


def test_the_trainer_continues_from_our_folder(tmp_path, folder):
    trainer = Trainer(
        model=loaded(folder, is_trainable=True), args=arguments(tmp_path), train_dataset=rows()
    )
    train(trainer)
    check_saved(trainer, tmp_path / "stage-2")


def text_dataset() -> datasets.Dataset:
    return datasets.Dataset.from_list([{"prompt": p, "completion": c} for p, c in PAIRS])


@pytest.mark.parametrize("stage", [1, 2])
def test_sft_trainer(tmp_path, folder, stage):
    model = build_model() if stage == 1 else loaded(folder, is_trainable=True)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path / "out"), **TEXT_OPTIONS),
        train_dataset=text_dataset(),
        processing_class=byte_tokenizer(),
        peft_config=config(init_weights=True) if stage == 1 else None,
    )
    train(trainer)
    check_saved(trainer, tmp_path / "saved")


def dpo_trainer(tmp_path: Path, model: torch.nn.Module, **options: object) -> DPOTrainer:
    pairs = [{"prompt": p, "chosen": c, "rejected": c[::-1] + " no"} for p, c in PAIRS]
    return DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(tmp_path / "out"), **TEXT_OPTIONS),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=byte_tokenizer(),
        **options,
    )


def reference(trainer: DPOTrainer) -> torch.Tensor:
    batch = next(iter(trainer.get_train_dataloader()))
    return torch.cat(trainer.compute_ref_log_probs(trainer.model, batch))


def log_probs(trainer: DPOTrainer, model: torch.nn.Module) -> torch.Tensor:
    """What a model by itself gives the completions of the trainer's first batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    return (found[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2) * mask).sum(1)


def test_dpo_trainer_has_the_base_as_its_reference(tmp_path):
    model = build_model()
    base = copy.deepcopy(model).eval()
    trainer = dpo_trainer(tmp_path, model, peft_config=config(init_weights=True))
    torch.manual_seed(0)
    before = reference(trainer)
    losses = train(trainer)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: model and reference agree
    assert losses[-1] < losses[0]
    trainer.model.eval()
    torch.manual_seed(0)
    assert torch.equal(reference(trainer), before)
    torch.manual_seed(0)
    torch.testing.assert_close(before, log_probs(trainer, base), rtol=1e-5, atol=1e-5)
    torch.manual_seed(0)
    assert not torch.allclose(before, log_probs(trainer, trainer.model), atol=1e-2)
    check_saved(trainer, tmp_path / "saved")


def test_dpo_trainer_on_our_folder_has_it_as_its_reference(tmp_path, folder):
    trainer = dpo_trainer(tmp_path, loaded(folder, is_trainable=True))
    losses = train(trainer)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    torch.manual_seed(0)
    found = reference(trainer)
    torch.manual_seed(0)
    torch.testing.assert_close(found, log_probs(trainer, loaded(folder)), rtol=1e-5, atol=1e-5)
    check_saved(trainer, tmp_path / "saved")

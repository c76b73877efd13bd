"""The models of an evaluation: found, checked, switched; where they are put."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diablo_ds
from diablo_ds.errors import UserError
from diablo_ds.evaluation import placement
from diablo_ds.evaluation.model_names import model_names
from diablo_ds.evaluation.models import open_models
from diablo_ds.files.atomic import write_json
from diablo_ds.model.architecture import build_meta_model
from diablo_ds.ranks import distributed
from tests.answers import answers, save_base_and_adapter
from tests.tiny import FAMILIES, save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A base and an adapter."""
    return save_base_and_adapter(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_base_adapter_and_merged_model_answer_beside_each_other(folders, tmp_path, precision):
    base, adapter = folders
    merged = tmp_path / "merged"
    diablo_ds.merge(diablo_ds.load(base, adapter)).save_pretrained(merged)
    for file in base.glob("token*"):
        (merged / file.name).write_bytes(file.read_bytes())
    models = open_models(adapters=[adapter, merged], base=str(base), precision=precision)
    assert models.names == ("base", "tuned", "merged")
    found = {}
    for name in (*models.names, "base", "tuned"):
        with models.use(name) as model:
            answer = answers(model.engine)
            assert found.setdefault(name, answer) == answer  # nothing is left of another model
    assert found["base"] != found["tuned"]
    tolerance = 1e-3 if precision == "fp32" else 0.5
    for key, value in (("choose", "log_likelihoods"), ("losses", "nats")):
        for one, other in zip(found["tuned"][key], found["merged"][key], strict=True):
            assert one[value] == pytest.approx(other[value], rel=0.05, abs=tolerance)
    if precision == "fp32":
        assert found["tuned"]["generate"] == found["merged"]["generate"]


def test_an_adapter_names_its_base_and_the_ends_of_its_answers(folders, tmp_path):
    base, adapter = folders
    write_json(base / "generation_config.json", {"eos_token_id": [3, 4]})
    write_json(adapter / "generation_config.json", {"eos_token_id": 5})
    models = open_models(adapters=[adapter], include_base=True, precision="fp32")
    with models.use("tuned") as model:
        assert model.end_ids == {3, 4, 5, 256}
        assert (model.adapter, model.base) == (adapter, base)
        assert model.engine.max_length == 128
    with models.use("base") as model:
        assert model.end_ids == {3, 4}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/one", "a/two"], ["one", "two"]),
        (["a/same", "b/same"], ["a/same", "b/same"]),
        (["runs/x/adapter"], ["x"]),
        (["runs/x/checkpoints/step-000010"], ["x/step-000010"]),
        (["runs/base", "runs/x"], ["runs/base", "runs/x"]),
    ],
)
def test_names_tell_models_apart(given, names):
    assert model_names([Path(path) for path in given]) == names


def test_models_that_cannot_be_compared_are_refused(folders, tmp_path):
    base, adapter = folders
    other = save_model(tmp_path / "other", "llama")
    with pytest.raises(UserError, match="must be loaded on the base model it was trained on"):
        open_models(base=str(other), adapters=[adapter])
    assert open_models(base=str(other), adapters=[adapter], force=True).names == ("base", "tuned")
    narrow = save_model(tmp_path / "narrow", "llama", num_hidden_layers=1)
    with pytest.raises(UserError, match="must be linear layers of the model"):
        open_models(base=str(narrow), adapters=[adapter], force=True)
    with pytest.raises(UserError, match="must be given once"):
        open_models(base=str(base), adapters=[adapter, adapter])
    with pytest.raises(UserError, match="needs a model; got none"):
        open_models()
    with pytest.raises(UserError, match="needs several ranks"):
        open_models(base=str(base), placement="sharded")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        open_models(base=str(base), precision="fp16", device=CPU)


@pytest.mark.parametrize(("free", "is_sharded"), [(10**9, False), (1000, True)])
def test_a_model_is_sharded_where_it_does_not_fit(monkeypatch, free, is_sharded):
    shapes = build_meta_model(FAMILIES["llama"])
    monkeypatch.setattr(placement, "free_bytes", lambda device: free)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_values", lambda value: [value, value])
    found, reason = placement.choose_placement("auto", shapes, "fp32", CPU)
    assert found is is_sharded
    assert "GB are free for each rank" in reason
    assert placement.choose_placement("copies", shapes, "fp32", CPU)[0] is False
    assert placement.choose_placement("sharded", shapes, "fp32", CPU)[0] is True

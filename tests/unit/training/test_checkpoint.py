from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from diablo_ds.adapter.storage import AdapterConfig
from diablo_ds.errors import UserError
from diablo_ds.files.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_TENSOR_FILE,
    CHECKSUMS_FILE,
    EARLY_TENSOR_FILE,
    MANIFEST_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    list_checkpoints,
)
from diablo_ds.training import checkpoint
from diablo_ds.training.checkpoint import Checkpoint
from diablo_ds.training.pruning import remove_leftovers
from tests.early_adapters import make_early, renew_checksums


def _checkpoint(step=4) -> Checkpoint:
    names = ("a.delta", "b.delta")
    state = {
        name: {key: torch.rand(2, 3, 4) for key in ("master", "exp_avg", "exp_avg_sq")}
        for name in names
    }
    adapter = AdapterConfig("tiny", "abc", {"a": 2, "b": 2})
    return Checkpoint(step, 8, 0, step, adapter, state, {"cur_scale": 4.0})


def _save(root, step, keep_last=5):
    return checkpoint.save_checkpoint(root, _checkpoint(step), keep_last)


def test_loaded_equals_saved(tmp_path):
    saved = _checkpoint()
    folder = checkpoint.save_checkpoint(tmp_path, saved, 2)
    checkpoint.verify_checkpoint(folder)
    loaded = checkpoint.load_checkpoint(folder)
    for name, state in saved.state.items():
        for key, tensor in state.items():
            assert torch.equal(loaded.state[name][key], tensor)
    assert dataclasses.replace(loaded, state={}) == dataclasses.replace(saved, state={})


def test_size_is_that_of_the_deltas_and_their_moments(tmp_path):
    folder = _save(tmp_path, 1)
    num_bytes = sum(path.stat().st_size for path in folder.iterdir())
    assert num_bytes < 2 * 3 * 24 * 4 + 4000  # two deltas, three tensors, and text


def test_the_last_ones_are_kept_and_the_latest_is_found(tmp_path):
    for step in (9, 10, 100):
        _save(tmp_path, step, keep_last=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000100", "step-000010"]
    assert checkpoint.find_checkpoint(tmp_path) == (tmp_path / "step-000100", [])
    assert checkpoint.find_checkpoint(tmp_path / "none") == (None, [])


def test_the_best_one_is_kept_beside_the_last_ones(tmp_path):
    for step in (1, 2, 3, 4, 5):
        checkpoint.save_checkpoint(tmp_path, _checkpoint(step), keep_last=2, best_step=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == [
        "step-000005",
        "step-000004",
        "step-000002",
    ]
    checkpoint.save_checkpoint(tmp_path, _checkpoint(6), keep_last=1, best_step=5)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000006", "step-000005"]
    # One of the last ones is kept already.
    checkpoint.save_checkpoint(tmp_path, _checkpoint(7), keep_last=2, best_step=6)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000007", "step-000006"]


@pytest.mark.parametrize("name", [ADAPTER_TENSOR_FILE, OPTIMIZER_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(tmp_path, name, damage):
    old, new = _save(tmp_path, 1), _save(tmp_path, 2)
    path = new / name
    whole = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(whole[:-1])
    elif damage == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        path.unlink()
    found, problems = checkpoint.find_checkpoint(tmp_path)
    assert found == old
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_missing_checksums_make_a_checkpoint_damaged(tmp_path):
    old, new = _save(tmp_path, 1), _save(tmp_path, 2)
    (new / CHECKSUMS_FILE).unlink()
    assert checkpoint.find_checkpoint(tmp_path)[0] == old


def test_checksums_under_the_name_of_early_versions_are_read(tmp_path):
    old, new = _save(tmp_path, 1), _save(tmp_path, 2)
    for folder in (old, new):
        (folder / CHECKSUMS_FILE).rename(folder / MANIFEST_FILE)
    assert checkpoint.find_checkpoint(tmp_path)[0] == new
    (new / "state.json").write_text("{}")
    assert checkpoint.find_checkpoint(tmp_path)[0] == old
    assert _save(tmp_path, 3, keep_last=2) in list_checkpoints(tmp_path)
    assert list_checkpoints(tmp_path)[1] == old  # the one whose sizes are wrong went


def test_checkpoints_of_early_versions_are_read_and_damage_to_them_is_seen(tmp_path):
    saved = _checkpoint(2)
    old, new = _save(tmp_path, 1), checkpoint.save_checkpoint(tmp_path, saved, 5)
    for folder in (old, new):
        make_early(folder)
    assert checkpoint.find_checkpoint(tmp_path) == (new, [])
    loaded = checkpoint.load_checkpoint(new)
    assert loaded.adapter == saved.adapter
    assert all(torch.equal(loaded.masters[name], saved.masters[name]) for name in saved.masters)
    (new / EARLY_TENSOR_FILE).write_bytes(b"")
    assert checkpoint.find_checkpoint(tmp_path)[0] == old


def test_damaged_checkpoints_alone_stop_the_run(tmp_path):
    (_save(tmp_path, 1) / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"at least one checkpoint must be intact; .*state\.json"):
        checkpoint.find_checkpoint(tmp_path)


def test_a_failed_save_leaves_the_older_checkpoints_and_nothing_else(tmp_path):
    old = _save(tmp_path, 1)
    broken = dataclasses.replace(_checkpoint(2), seed=object())  # cannot be written as JSON
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(tmp_path, broken, 1)
    assert list(tmp_path.iterdir()) == [old]
    checkpoint.verify_checkpoint(old)


def _damage(folder, *, keep_size):
    path = folder / "optimizer.safetensors"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)) if keep_size else whole[:-1])


@pytest.mark.parametrize("keep_size", [True, False])
@pytest.mark.parametrize("num_damaged", [1, 2])
def test_damaged_newer_checkpoints_go_before_good_ones(num_damaged, keep_size, tmp_path):
    newer = [_save(tmp_path, 10 + step) for step in range(num_damaged)]
    for folder in newer:
        _damage(folder, keep_size=keep_size)
    good = _save(tmp_path, 4, keep_last=num_damaged)  # the run was resumed before the damaged ones
    assert checkpoint.find_checkpoint(tmp_path)[0] == good
    assert len(list_checkpoints(tmp_path)) == num_damaged
    second = _save(tmp_path, 5, keep_last=2)
    assert list_checkpoints(tmp_path) == [second, good]


def test_a_damaged_older_checkpoint_goes_before_a_good_older_one(tmp_path):
    good, damaged = _save(tmp_path, 1), _save(tmp_path, 2)
    _damage(damaged, keep_size=False)
    newest = _save(tmp_path, 3, keep_last=2)
    assert list_checkpoints(tmp_path) == [newest, good]


def test_what_a_killed_save_left_is_put_right(tmp_path):
    (tmp_path / ".step-000009.abcd.tmp").mkdir()
    replaced, kept = _save(tmp_path, 3), _save(tmp_path, 5)
    replaced.rename(tmp_path / ".step-000003.abcd.old")  # killed between two renames
    shutil.copytree(kept, tmp_path / ".step-000005.abcd.old")  # killed after them
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [replaced, kept]
    checkpoint.verify_checkpoint(replaced)


def test_half_written_folders_are_not_taken_for_checkpoints(tmp_path):
    (tmp_path / ".step-000009.abcd.tmp").mkdir()
    for name in ("step-12x", "step-", "step-\u00b2", f"step-{10**30}"):
        (tmp_path / name).mkdir()
    assert list_checkpoints(tmp_path) == []


# --- checksums that hold, and content that does not fit ------------------------------------------


def _edit_json(name, change):
    def edit(folder):
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(value)))

    return edit


def _edit_tensors(name, change):
    def edit(folder):
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return edit


def _state(**values):
    return _edit_json("state.json", lambda state: state | values)


def _tensor(file, key, change):
    def edit(tensors):
        tensors[key] = change(tensors[key])

    return _edit_tensors(file, edit)


CONFIG, ADAPTER, OPTIMIZER = ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, OPTIMIZER_FILE
A_DELTA = "base_model.model.a.diablo_delta"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit_json("state.json", lambda state: [state]), "must be a JSON object; got list"),
        (_edit_json("state.json", lambda _: {}), "must have an integer step"),
        (_state(step=-2), "must have an integer step >= 0; got step=-2"),
        (_state(step="2"), "got step='2'"),
        (_state(step=True), "got step=True"),
        (_state(step=7), "must hold the step of its name; got step=7"),
        (_state(global_batch=0), "integer global_batch >= 1"),
        (_state(num_optimizer_steps=9), "num_optimizer_steps must be at most step"),
        (_state(loss_scaler=[1]), "loss_scaler must be an object of numbers"),
        (_state(loss_scaler={"cur_scale": "big"}), "loss_scaler must be an object of numbers"),
        (_state(format=2), "must have format 1"),
        (_state(data=[1]), "data must be an object"),
        (_edit_json(CONFIG, lambda _: []), "must have the peft_type"),
        (_edit_json(CONFIG, lambda v: v | {"num_blocks": [2]}), "num_blocks"),
        (_edit_json(CONFIG, lambda v: v | {"num_blocks_pattern": {"b": 3}}), "num_blocks=3"),
        (_edit_json(CONFIG, lambda v: v | {"dropout": "x"}), "dropout"),
        (_edit_json(CONFIG, lambda v: v | {"surprise": 1}), "surprise"),
        (_edit_tensors(ADAPTER, lambda t: t.pop(A_DELTA)), "got 1 in"),
        (_edit_tensors(OPTIMIZER, lambda t: t.pop("a.delta.exp_avg")), "1 missing"),
        (_edit_tensors(OPTIMIZER, lambda t: t.update(x=torch.ones(1))), "1 unknown"),
        (_tensor(ADAPTER, A_DELTA, lambda t: t[:1].clone()), "for a with num_blocks=2"),
        (_tensor(ADAPTER, A_DELTA, lambda t: t.double()), "got F64 for a"),
        (_tensor(ADAPTER, A_DELTA, lambda t: t * torch.nan), "NaN or infinity in a.delta"),
        (_tensor(OPTIMIZER, "a.delta.exp_avg", lambda _: torch.ones(())), "of shape [2, 3, 4]"),
        (_tensor(OPTIMIZER, "a.delta.exp_avg", lambda _: torch.ones(1, 1, 1)), "[2, 3, 4]"),
        (_tensor(OPTIMIZER, "a.delta.exp_avg", lambda t: t.double()), "in float64"),
        (_tensor(OPTIMIZER, "a.delta.exp_avg", lambda t: t / 0), "NaN or infinity"),
        (_tensor(OPTIMIZER, "a.delta.exp_avg_sq", lambda t: -t - 1), "must not be negative"),
    ],
)
def test_content_that_does_not_fit_is_passed_over_whatever_the_checksums_say(
    edit, message, tmp_path
):
    old, new = _save(tmp_path, 1), _save(tmp_path, 2)
    edit(new)
    renew_checksums(new)
    checkpoint.verify_checkpoint(new)
    found, problems = checkpoint.find_checkpoint(tmp_path)
    assert found == old
    assert message in problems[0]
    assert str(new) in problems[0] or "missing" in message or "unknown" in message


@pytest.mark.parametrize("files", [{}, [], {"state.json": "x"}, {"../../x": {"sha256": ""}}])
def test_checksums_must_be_those_of_exactly_the_files_of_a_checkpoint(files, tmp_path):
    folder = _save(tmp_path, 1)
    (folder / CHECKSUMS_FILE).write_text(json.dumps({"format": 1, "files": files}))
    with pytest.raises(UserError, match=r"checksums must (list|be those of exactly)"):
        checkpoint.verify_checkpoint(folder)

"""What is looked at before a launch: batch sizes for every number of ranks, packages, folders."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from diablo_ds.cli.run_options import DEFAULT_DS_CONFIG
from diablo_ds.cli.run_start import with_global_batch, with_output
from diablo_ds.config.run import RunConfig
from diablo_ds.config.run_files import save_run_config
from diablo_ds.data.corpora.sources import find_sources
from diablo_ds.errors import UserError
from diablo_ds.launcher.checks import check_hosts, nvme_folders, table
from diablo_ds.launcher.cluster import Cluster, Host
from diablo_ds.ranks.software import versions


def _global_batch(world_sizes, **settings):
    return with_global_batch(RunConfig(**settings), DEFAULT_DS_CONFIG, world_sizes).global_batch


def test_an_open_global_batch_suits_every_number_of_ranks(capsys):
    assert _global_batch([8]) == 8
    assert (
        "global batch 8 = micro batch 1 x accumulation 1 x world size 8" in capsys.readouterr().err
    )
    assert _global_batch([16, 24, 32]) == 96
    assert capsys.readouterr().err.splitlines() == [
        "global batch 96 = micro batch 3 x accumulation 2 x world size 16",
        "global batch 96 = micro batch 4 x accumulation 1 x world size 24",
        "global batch 96 = micro batch 3 x accumulation 1 x world size 32",
    ]
    assert _global_batch([4, 8], micro_batch=3) == 24
    assert _global_batch([4], micro_batch_tokens=2048) == 8


def test_a_given_global_batch_is_kept_or_refused():
    assert _global_batch([4, 8], global_batch=64) == 64
    with pytest.raises(UserError, match="global_batch=8, world size=3"):
        _global_batch([3], global_batch=8)
    with pytest.raises(UserError, match=r"global_batch must be given .* ranks=8, 16, 24"):
        _global_batch([8 * nodes for nodes in range(1, 9)])


def test_a_launch_again_keeps_the_global_batch_of_the_run(tmp_path):
    save_run_config(RunConfig(micro_batch=3, global_batch=9), tmp_path / "run.json")
    assert _global_batch([1], output=str(tmp_path)) == 9
    with pytest.raises(UserError, match="global_batch=9, world size=4"):
        _global_batch([4], output=str(tmp_path))


def test_hosts_are_compared_in_every_package_that_changes_a_run():
    assert {"python", "torch", "tokenizers", "flash-attn", "flash-attn-3"} <= versions().keys()


def test_folders_for_nvme_offload_must_be_there(tmp_path):
    path, missing = tmp_path / "ds.json", tmp_path / "missing"
    offload = {"offload_param": {"device": "nvme", "nvme_path": str(missing)}}
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **offload}}))
    assert nvme_folders(path) == [str(missing)]
    assert nvme_folders(DEFAULT_DS_CONFIG) == []
    cluster = Cluster(hosts=(Host("localhost", 1),))
    run = RunConfig(output=str(tmp_path / "run"))
    problem = f"{missing} is missing"
    assert problem in table(check_hosts(run, path, cluster))
    missing.mkdir()
    assert problem not in table(check_hosts(run, path, cluster))


def test_an_initial_adapter_must_be_there_unless_the_run_continues(tmp_path):
    wrong = RunConfig(init_adapter=str(tmp_path / "nowhere"), output=str(tmp_path / "run"))
    with pytest.raises(UserError, match="must lead to an adapter"):
        with_output(wrong, reserve=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "other").mkdir()
    held = replace(wrong, init_adapter=str(tmp_path / "other"))
    with pytest.raises(UserError, match="an empty folder"):
        with_output(held, reserve=True, for_later=True)
    # Where a queued run starts, there may be other file systems.
    assert with_output(wrong, reserve=False, for_later=True) == wrong
    (tmp_path / "run" / "checkpoints" / "step-000004").mkdir(parents=True)
    save_run_config(wrong, tmp_path / "run" / "run.json")
    assert with_output(wrong, reserve=False) == wrong


def test_every_source_has_a_name(tmp_path, monkeypatch):
    """Rows of a source without one would count as held-out."""
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n")
    monkeypatch.chdir(folder)
    for text in ("train.jsonl", "./train.jsonl", str(folder / "train.jsonl")):
        ((source,), _) = find_sources([text])
        assert source.name == "sums"

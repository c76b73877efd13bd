from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from diablo_ds.launcher.log_folders import make_log_folder, next_log_folder
from diablo_ds.ranks.records import RankRecord, write_record
from tests.unit.launcher.cases import make_cluster


def _record(rank: int, **changes) -> RankRecord:
    return RankRecord(rank=rank, host="h", pid=1, world_size=3, started=1.0, **changes)


def test_all_hosts_of_a_start_come_to_the_same_log_folder(tmp_path):
    first, second = (make_cluster("no-ssh", node_rank=rank) for rank in (0, 1))
    expected = tmp_path / "attempt-001"
    assert next_log_folder(tmp_path, first) == expected
    expected.mkdir(parents=True)
    write_record(expected, _record(0))  # the first host has started already
    assert next_log_folder(tmp_path, second) == expected
    assert next_log_folder(tmp_path, first) == tmp_path / "attempt-002"
    assert make_log_folder(tmp_path, second) == expected


def test_two_launchers_never_share_a_log_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_log_folder(tmp_path, make_cluster()), range(8)))
    assert sorted(path.name for path in folders) == [f"attempt-{n:03d}" for n in range(1, 9)]

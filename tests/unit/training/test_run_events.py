"""What a rank that fell to another one can tell of its cause."""

from __future__ import annotations

import os

from diablo_ds.ranks.records import RankRecord, write_record
from diablo_ds.training.run_events import describe_failed, find_cause


def _record(folder, rank: int, **fields) -> RankRecord:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"pid": os.getpid() if rank == 0 else 1, "host": "a", "world_size": 3, "started": 1.0}
    record = RankRecord(rank=rank, **values | fields)
    write_record(folder, record)
    return record


def test_the_cause_is_the_other_rank_that_failed_first(tmp_path):
    own, ended = tmp_path / "attempt-2", {"ended": 2.0, "exit_code": 137, "cause": "killed"}
    _record(own, 0)
    _record(own, 2, ended=3.0, exit_code=1)
    cause = _record(own, 1, **ended, phase="forward of step 5")
    assert find_cause(tmp_path, rank=0) == cause
    assert describe_failed(cause) == "rank 1 on a failed, in forward of step 5: killed"


def test_nothing_is_known_without_a_failure_or_without_guards(tmp_path):
    assert find_cause(tmp_path, rank=0, wait_s=5.0) is None
    ended = {"ended": 2.0, "exit_code": 137, "cause": "killed"}
    _record(tmp_path / "attempt-1", 0, pid=2)  # another start's
    _record(tmp_path / "attempt-1", 1, **ended)
    assert find_cause(tmp_path, rank=0, wait_s=5.0) is None
    _record(tmp_path / "attempt-1", 0)
    _record(tmp_path / "attempt-1", 1, ended=2.0, exit_code=143, by_request=True)
    assert find_cause(tmp_path, rank=0, wait_s=0.0) is None

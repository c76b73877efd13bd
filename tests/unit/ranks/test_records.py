from __future__ import annotations

from diablo_ds.ranks.records import STOPPED, RankRecord, first_failure


def _record(rank: int, **changes) -> RankRecord:
    return RankRecord(rank=rank, host="h", pid=1, world_size=3, started=1.0, **changes)


def test_the_first_failure_is_found_among_its_victims():
    killed = _record(0, ended=5.0, exit_code=137, cause="killed by SIGKILL")
    victim = _record(1, ended=5.2, exit_code=1, cause="exit code 1")
    asked = _record(2, ended=4.0, exit_code=143, by_request=True)
    assert first_failure([asked, victim, killed]) is killed
    assert first_failure([victim, _record(2)]).rank == 2  # it vanished with its host
    silent = "no sign of life for 8 s"
    hung = _record(0, ended=5.0, exit_code=137, cause=silent)
    stopped = _record(1, ended=5.3, exit_code=137, cause=f"{silent}; it is {STOPPED}")
    assert first_failure([hung, stopped]) is stopped
    assert first_failure([_record(0, ended=1.0, exit_code=0)]) is None

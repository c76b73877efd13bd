from __future__ import annotations

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.job import time_limit_s
from tests.unit.launcher.cases import make_job


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partition": "p --uid=0"}, "partition must be a word"),
        ({"partition": "--uid=0"}, "partition must be a word"),
        ({"account": "a\nb"}, "account must be text without control characters"),
        ({"time": "1:00 --nice"}, "time must be a word"),
        ({"name": "a\n#SBATCH --uid=0"}, "name must be text without control characters"),
        ({"name": " "}, "name must not be empty"),
        ({"setup": ("module load a\nb",)}, "setup must be text without control characters"),
        ({"setup": ("export HF_TOKEN=abc",)}, "setup must not hold .* that sets HF_TOKEN"),
        ({"sbatch_option": ("--export=ALL,A_KEY=b",)}, "sbatch_option .* that sets A_KEY"),
        ({"wrap": "apptainer exec --env A_KEY=b x"}, "wrap must not hold .* that sets A_KEY"),
        ({"mem": "much"}, "mem must be a number with K, M, G or T"),
        ({"wrap": "a\rb"}, "wrap must be text without control characters"),
        ({"sbatch_option": ("exclusive",)}, "sbatch_option must be one option"),
        ({"sbatch_option": ("--time=1",)}, "must be given by --time"),
        ({"sbatch_option": ("-t1",)}, "must be given by --time"),
        ({"sbatch_option": ("--signal=B:USR1",)}, "must be given by --time and --warning-s"),
        ({"master_addr": "h;id"}, "master_addr must be an address"),
    ],
)
def test_what_would_be_more_than_one_option_of_sbatch_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_job(**changes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300),
        ("5:30", 330),
        ("1:02:03", 3723),
        ("2-1", 176400),
        ("1-0:30", 88200),
        ("1-1:1:1", 90061),
        ("UNLIMITED", 0),
        ("0", 0),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, seconds):
    assert time_limit_s(text) == seconds


@pytest.mark.parametrize("text", ["1h", "1:2:3:4", "-5", "1-", "soon"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(UserError, match="time must be minutes"):
        time_limit_s(text)


@pytest.mark.parametrize(("time", "warning_s"), [("1", 120), ("3:00", 120), ("0:30", 1)])
def test_a_job_that_would_stop_at_once_for_ever_is_refused(time, warning_s):
    with pytest.raises(UserError, match=f"time must be longer .* got time='{time}'"):
        make_job(time=time, warning_s=warning_s)
    make_job(time="3:01", warning_s=120)
    make_job(time="0", warning_s=120)

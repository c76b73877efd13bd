"""What ranks are started with by the real deepspeed: their devices, their port, another attempt."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diablo_ds.ranks.exit_codes import EXIT_PORT_IN_USE, EXIT_STOPPED, EXIT_USER_ERROR
from diablo_ds.ranks.records import read_records
from tests.e2e.commands import ROOT, environment
from tests.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.e2e

_ENTER = """\
#!/bin/sh
# In the place of a container: shows what a rank would get, and starts none.
attempt=$(ls -d "$0".first-$RANK 2> /dev/null)
echo "$RANK/$WORLD_SIZE cuda=$CUDA_VISIBLE_DEVICES hip=$HIP_VISIBLE_DEVICES port=$MASTER_PORT" \
>> "$0".seen
[ -n "$attempt" ] && exit 0
touch "$0".first-$RANK
exit {first_code}
"""


def _start(tmp_path: Path, command: str, first_code: int, **variables: str) -> list[str]:
    enter = tmp_path / "enter"
    enter.write_text(_ENTER.replace("{first_code}", str(first_code)))
    enter.chmod(0o755)
    done = subprocess.run(
        [*command.split(), "--wrap", str(enter), "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted((tmp_path / "enter.seen").read_text().splitlines())


def test_a_taken_port_means_another_attempt_on_the_devices_that_were_given(tmp_path):
    given = "GPU-8932f937,MIG-c2a7b8e0"
    launch = "diablo-ds launch --skip-checks"
    seen = _start(tmp_path, launch, EXIT_PORT_IN_USE, CUDA_VISIBLE_DEVICES=given)
    last = [line.partition(" port=") for line in seen]
    assert {devices for devices, _, _ in last} == {f"{rank}/2 cuda={given} hip=" for rank in (0, 1)}
    attempts = [(tmp_path / f"run/logs/attempt-00{n}/master-port").read_text() for n in (1, 2)]
    assert {int(port) for _, _, port in last} == {int(port) for port in attempts}


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "6,4,5"}, "cuda=6,4 hip="),
        ({"HIP_VISIBLE_DEVICES": "3,2"}, "cuda= hip=3,2"),
    ],
)
def test_plain_deepspeed_keeps_the_devices_and_takes_any_port(tmp_path, variables, devices):
    command = "deepspeed --num_gpus 2 --master_port 0 launch/train.py"
    seen = [line.partition(" port=") for line in _start(tmp_path, command, 0, **variables)]
    assert [rank for rank, _, _ in seen] == [f"{rank}/2 {devices}" for rank in (0, 1)]
    assert len({port for _, _, port in seen}) == 1
    assert int(seen[0][2]) > 0


_FAIL = """\
#!{python}
# In the place of a container: the first rank fails by a defect, the next by a wrong setting.
import pathlib, sys
from diablo_ds.cli.console import clean_errors
count = pathlib.Path(sys.argv[0] + ".count")
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
with clean_errors():
    if number == 0:
        from diablo_ds.data.packing import pack
        pack([5, -1], 8)  # numpy's ValueError, inside the package
    from diablo_ds.config.run import RunConfig
    RunConfig(dropout=2.0)
"""


def test_a_defect_is_worth_a_restart_and_a_wrong_setting_is_not(tmp_path):
    fail = tmp_path / "fail"
    fail.write_text(_FAIL.format(python=sys.executable))
    fail.chmod(0o755)
    command = "diablo-ds launch --skip-checks --gpus-per-node 1 --max-restarts 5"
    done = subprocess.run(
        [*command.split(), "--wrap", str(fail), "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    text = done.stdout + done.stderr
    assert done.returncode == EXIT_USER_ERROR, text
    assert "Restart 1 of 5" in text
    assert "Restart 2 of 5" not in text
    assert "  | ValueError: " in text  # the defect's traceback
    assert "Error: dropout must be" in text
    codes = [read_records(tmp_path / f"run/logs/attempt-00{n}")[0].exit_code for n in (1, 2)]
    assert codes == [1, EXIT_USER_ERROR]


_STOPS = """\
#!/bin/sh
# In the place of a container: a rank that stops as it is asked to.
trap 'echo Stopped after step 4; exit 85' TERM
touch "$0".$RANK
while :; do sleep 0.1; done
"""


def test_control_c_ends_with_the_sentence_of_the_rank(tmp_path):
    enter = tmp_path / "enter"
    enter.write_text(_STOPS)
    enter.chmod(0o755)
    command = "diablo-ds launch --skip-checks --gpus-per-node 2"
    process = subprocess.Popen(
        [*command.split(), "--wrap", str(enter), "--output", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: len(list(tmp_path.glob("enter.*"))) == 2, "the ranks")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == EXIT_STOPPED, output
    assert output.splitlines()[-1] == "Stopped after step 4"
    assert "return code" not in output

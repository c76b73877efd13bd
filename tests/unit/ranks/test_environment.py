"""Variables of the ranks: which are hidden, and how the hidden ones travel."""

from __future__ import annotations

import os

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.cluster import Cluster, Host
from diablo_ds.ranks import environment
from diablo_ds.ranks.environment import (
    ignored_exports,
    is_secret_name,
    parse_env,
    read_exports,
    read_hidden,
    secret_assignment,
    shared_key,
    split_exported,
    write_exports,
    write_hidden,
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/lib/mine")
    monkeypatch.chdir(work)
    return home


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "DB_PASSWD",
        "MY_CREDENTIALS",
        "GIT_AUTH",
        "hf_token",
        "TOKENS",
        "APIKEY",
    ],
)
def test_names_of_secrets_are_known(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PWD", "OMP_NUM_THREADS", "DS_X"])
def test_other_names_are_not_secrets(name):
    assert not is_secret_name(name)


def test_what_is_given_by_name_or_looks_secret_is_hidden(monkeypatch):
    monkeypatch.setenv("PRESENT", "1=2\nx")
    found = parse_env(("A=b=c", "PRESENT", "MY_KEY=xyz", "MY_KEY=abc"))
    assert found.shown == {"A": "b=c"}
    assert found.hidden == {"PRESENT": "1=2\nx", "MY_KEY": "abc"}
    assert found.written_out == ("MY_KEY",)
    assert "xyz" not in repr(found)
    assert "abc" not in repr(found)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("ABSENT_HERE", "got env='ABSENT_HERE'"),
        ("A=b\nc", "control characters"),
        ("NOT-A-NAME_TOKEN=abc", r"got env='NOT-A-NAME_TOKEN=\*\*\*'"),
    ],
)
def test_wrong_variables_are_refused_and_masked(pair, message):
    with pytest.raises(UserError, match=message):
        parse_env((pair,))


def test_a_cluster_does_not_show_what_is_hidden():
    cluster = Cluster(hosts=(Host("h", 1),), hidden_env={"HF_TOKEN": "xyz"})
    assert "xyz" not in repr(cluster)
    assert cluster.rank_env() == {}


def test_hidden_variables_arrive_as_they_were(tmp_path):
    path = write_hidden(tmp_path, {"A": 'b\n"c" 文'})
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_hidden(path) == {"A": 'b\n"c" 文'}
    assert write_hidden(tmp_path, {}) == path  # left by a launcher that was killed


def test_a_missing_file_of_hidden_variables_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_SHARED_WAIT_S", 0.0)
    with pytest.raises(UserError, match="log folder, which all hosts share"):
        read_hidden(tmp_path / "environment")


def test_all_launchers_of_a_run_come_to_the_same_key(tmp_path):
    key = shared_key(tmp_path)
    assert len(bytes.fromhex(key)) == 32
    assert shared_key(tmp_path) == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_script_line_that_sets_a_secret_is_found():
    assert secret_assignment("export HF_TOKEN=hf_abc") == "HF_TOKEN"
    assert secret_assignment("WANDB_API_KEY='x' true") == "WANDB_API_KEY"
    assert secret_assignment('export HF_TOKEN="$(cat token)" TOKENIZERS_PARALLELISM=0') == ""
    assert secret_assignment("module load cuda; export HF_TOKEN=$TOKEN") == ""


# --- what DeepSpeed puts on command lines --------------------------------------------------------


def test_what_deepspeed_would_export_is_taken_out_but_for_what_imports_need():
    settings = {"MLFLOW_TRACKING_PASSWORD": "x", "MLFLOW_RUN": "1", "UCX_TLS": "tcp"}
    settings |= {"PYTHONWARNINGS": "ignore", "MV2_X": "1", "NCCL_DEBUG": "INFO"}
    kept = {"PYTHONPATH": "/lib", "PYTHONHOME": "/usr", "HF_TOKEN": "y"}  # not exported, the last
    assert split_exported(settings | kept) == (kept, settings)


def test_the_working_folder_is_not_on_the_ranks_path(home, tmp_path):
    (home / ".deepspeed_env").write_text("# ours\n\nA=1\nMY_TOKEN=xyz\n")
    found = read_exports()
    assert found.shown == {"PYTHONPATH": "/lib/mine", "A": "1"}
    assert found.hidden == {"MY_TOKEN": "xyz"}
    assert write_exports(tmp_path, found.shown).read_text() == "PYTHONPATH=/lib/mine\nA=1\n"


def test_exports_of_the_working_folder_are_obeyed_only_where_they_are_named(home, monkeypatch):
    (home / ".deepspeed_env").write_text("A=1\n")
    assert ignored_exports() == ""
    planted = home.parent / "work" / ".deepspeed_env"
    planted.write_text("A=2\nLD_PRELOAD=/tmp/evil.so\n")
    assert read_exports().shown == {"PYTHONPATH": "/lib/mine", "A": "1"}
    assert ignored_exports().startswith(f"Not obeyed: {planted}; ")
    monkeypatch.setenv("DS_ENV_FILE", "./.deepspeed_env")
    assert read_exports().shown["A"] == "2"
    assert ignored_exports() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_exports_of_another_user_are_refused(home):
    (home / ".deepspeed_env").write_text("LD_PRELOAD=/tmp/evil.so\n")
    os.chown(home / ".deepspeed_env", 65534, 65534)
    with pytest.raises(UserError, match="must be your own"):
        read_exports()

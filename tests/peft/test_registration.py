"""DiaBlo as a member of PEFT's list of methods."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import pickle
import subprocess
import sys

import peft
import pytest
from peft import PeftConfig, PeftType

import diablo_ds.peft
from diablo_ds.peft import support


def test_the_type_is_a_member_like_any_other():
    member = PeftType("DIABLO")
    assert member is PeftType.DIABLO is PeftType["DIABLO"]
    assert member == "DIABLO"
    assert member.name == member.value == "DIABLO"
    assert list(PeftType).count(member) == 1
    assert member in PeftType
    assert "DIABLO" in list(PeftType)
    assert copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member
    assert PeftType("LORA") is PeftType.LORA
    assert len(set(PeftType)) == len(PeftType) == len(PeftType.__members__)


def test_a_second_import_changes_nothing():
    before = list(PeftType)
    module = importlib.reload(diablo_ds.peft)
    assert list(PeftType) == before
    registered = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.DIABLO]
    assert registered is module.DiaBloConfig


def test_a_config_is_unpickled_by_a_process_that_did_not_import_the_package():
    config = diablo_ds.peft.DiaBloConfig(num_blocks=8, target_modules=["q_proj"])
    code = (
        "import pickle, sys; c = pickle.load(sys.stdin.buffer); "
        "from peft import PeftType; assert c.peft_type is PeftType.DIABLO; print(c.num_blocks)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=pickle.dumps(config), capture_output=True, check=True)
    assert done.stdout.strip() == b"8"


def test_another_version_of_peft_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.20.3")
    with pytest.raises(ImportError, match=r"needs PEFT 0\.21.*got peft 0\.20\.3.*pip install"):
        support.check_peft()


def test_a_missing_peft_is_named(monkeypatch):
    def absent(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ImportError, match=r"got none; install it with pip install 'diablo-ds"):
        support.check_peft()


def test_another_method_of_this_name_is_refused(monkeypatch):
    from diablo_ds.peft import registration

    mapping = {**peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.DIABLO: PeftConfig}
    monkeypatch.setattr(registration.mapping, "PEFT_TYPE_TO_CONFIG_MAPPING", mapping)
    with pytest.raises(ImportError, match="no other method named DIABLO"):
        registration.register()

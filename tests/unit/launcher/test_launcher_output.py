from __future__ import annotations

from diablo_ds.launcher import launcher_output
from diablo_ds.launcher.launcher_output import Printer, say
from diablo_ds.ranks.records import FAILED_FILE


def test_noise_is_dropped_and_an_error_is_held_until_it_is_known_whose_it_is(tmp_path, capsys):
    printer = Printer(tmp_path)
    for line in ("[INFO] [runner.py:1] cmd\n", "step 1\n", "[ERROR] of a victim\n", "more\n"):
        printer.take(line)
    assert capsys.readouterr().out == "step 1\n"
    printer.flush()
    assert capsys.readouterr().out == "[ERROR] of a victim\nmore\n"


def test_a_held_error_is_shown_in_time_unless_a_rank_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(launcher_output, "HOLD_S", -1.0)
    printer = Printer(tmp_path)
    (tmp_path / FAILED_FILE).touch()
    printer.take("[ERROR] x\n")
    printer.flush_old()
    assert capsys.readouterr().out == ""
    (tmp_path / FAILED_FILE).unlink()
    printer.flush_old()
    assert capsys.readouterr().out == "[ERROR] x\n"


def test_the_launchers_own_lines_go_to_stderr(capsys):
    say("Restart 1 of 2.")
    assert capsys.readouterr() == ("", "Restart 1 of 2.\n")

from __future__ import annotations

import sys

import pytest

from diablo_ds.errors import UserError
from diablo_ds.launcher.sweep_report import Result, write_sweep
from diablo_ds.reporting.curves import thinned
from diablo_ds.reporting.plot import check_plot, plot_runs
from diablo_ds.reporting.record import find_runs, read_given
from diablo_ds.reporting.response import find_response, response_of_folder
from diablo_ds.training.standing import DONE
from tests.unit.reporting.runs import write_run

BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_curves_are_drawn_in_each_format(kind, tmp_path):
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "_a $x_{$", losses=(2.0, 1.0, 1.2))
    write_run(tmp_path / "b", losses=(2.0, 1.5))
    path = tmp_path / f"plot.{kind}"
    plot_runs(list(find_runs(tmp_path)), path)
    assert path.read_bytes().startswith(BEGINNINGS[kind])


def test_a_plot_needs_a_known_kind_of_file_steps_and_matplotlib(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"must be a \.png, \.svg or \.pdf file"):
        check_plot(tmp_path / "plot.txt")
    with pytest.raises(UserError, match="needs runs with steps"):
        plot_runs([], tmp_path / "plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        check_plot(tmp_path / "plot.png")


def test_the_response_goes_over_the_setting_with_the_most_numbers():
    rates = ("0.001", "0.01", "0.1")
    runs = [({"rate": r, "n": n}, float(r) + int(n)) for n in ("4", "8") for r in rates]
    response = find_response([*runs, ({"rate": "1", "n": "4"}, None)])
    assert (response.option, response.is_log) == ("rate", True)
    assert response.lines == (
        ("n=4", ((0.001, 4.001), (0.01, 4.01), (0.1, 4.1))),
        ("n=8", ((0.001, 8.001), (0.01, 8.01), (0.1, 8.1))),
    )


def test_what_was_not_swept_over_numbers_has_no_response():
    assert find_response([]) is None
    assert find_response([({"packing": "on"}, 1.0), ({"packing": "off"}, 2.0)]) is None
    assert find_response([({"seed": "1"}, 1.0)]) is None


def test_a_sweep_stands_for_its_runs_and_has_a_response(tmp_path):
    for rate in ("0.1", "0.2"):
        write_run(tmp_path / f"rate={rate}", losses=(2.0, float(rate)))
    results = [Result(f"rate={rate}", {"rate": rate}, DONE) for rate in ("0.1", "0.2")]
    write_sweep(tmp_path, "the command", results)
    runs = read_given([tmp_path])
    assert [run.name for run in runs] == ["rate=0.1", "rate=0.2"]
    response = response_of_folder(tmp_path, runs)
    assert response.lines == (("", ((0.1, 0.1), (0.2, 0.2))),)
    assert response_of_folder(tmp_path, runs[:1]) is None
    assert response_of_folder(runs[0].folder, runs) is None


def test_a_long_curve_is_thinned_without_losing_its_extremes():
    curve = [(step, 1.0) for step in range(100_000)]
    curve[4321], curve[70_001] = (4321, 9.0), (70_001, -3.0)
    few = thinned(curve)
    assert len(few) <= 400
    assert {curve[4321], curve[70_001]} <= set(few)
    assert few == sorted(few)

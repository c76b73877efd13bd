import re

import pytest

from benchmarks.quality.arms import Findings
from benchmarks.quality.parts import PARTS, TITLES, wanted_of
from benchmarks.quality.report import write_study_report
from diablo_ds.errors import UserError
from tests.unit.benchmarks.quality import made_up

STUDY = made_up.study()


def _records(parts, device="cpu"):
    findings = Findings([], device)
    study = made_up.study(device)
    for part in parts:
        made_up.complete(part, study, findings, lambda s: made_up.record(s, device))
    return list(findings.records.values())


def _section(text, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)[1]


def test_the_report_of_a_complete_study(tmp_path):
    records = _records(PARTS)
    text = write_study_report(tmp_path, records, {"cpu": STUDY}).read_text()
    for title in TITLES.values():
        assert "Not run." not in _section(text, title), title
    rates = _section(text, TITLES["rate"])
    # The parabolas' lowest points differ by 0.01, and by how far the grid is from each.
    assert re.search(r"DiaBlo N=64 has a lower loss than LoRA of the size of N=64: -0\.0", rates)
    assert "DiaBlo N=64 has a higher loss than full fine-tuning: +0.0" in rates
    assert "| DiaBlo N=64 | 1,000,000 | 0.004 | " in rates
    assert "Batch 512: " in _section(text, "Not run")
    short = _section(text, "In short")
    assert "against LoRA of equal size, 2 comparisons: lower in 2" in short
    power = float(re.search(r"\*\* (-?[\d.]+);", short)[1])
    assert power == pytest.approx(0.5, abs=0.1)
    plots = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(plots) == len(set(plots)) >= 4
    assert all((tmp_path / plot).stat().st_size > 1000 for plot in plots)


def test_what_is_missing_is_listed_as_not_run(tmp_path):
    first = wanted_of("rate", STUDY, Findings([], "cpu"))[:3]
    records = [made_up.record(spec) for spec in first]
    text = write_study_report(tmp_path, records, {"cpu": STUDY}).read_text()
    rates = _section(text, TITLES["rate"])
    assert "one seed shows nothing" in rates
    assert "Not tuned yet: DiaBlo N=64, LoRA of the size of N=64." in rates
    missing = _section(text, "Not run")
    for part in PARTS:
        assert TITLES[part] in missing
        assert part == "rate" or _section(text, TITLES[part]).strip() == "Not run."


def test_failures_and_divergence_are_listed(tmp_path):
    first, second, third = wanted_of("rate", STUDY, Findings([], "cpu"))[:3]
    records = [
        made_up.failure(first),
        made_up.record(second, value=float("inf")),
        made_up.record(third),
    ]
    text = write_study_report(tmp_path, records, {"cpu": STUDY}).read_text()
    listed = _section(text, "Diverged and failed")
    assert "1 trainings diverged" in listed
    assert "1 trainings failed" in listed


def test_devices_are_kept_apart(tmp_path):
    card = "NVIDIA H100"
    records = [*_records(["rate"]), *_records(["rate"], card)]
    studies = {"cpu": STUDY, card: made_up.study(card)}
    text = write_study_report(tmp_path, records, studies).read_text()
    assert text.count("## Learning rate") == 2
    assert (tmp_path / "cpu-rate.png").is_file()
    assert (tmp_path / "nvidia-h100-rate.png").is_file()


def test_a_change_of_the_data_is_said(tmp_path):
    first, second = wanted_of("rate", STUDY, Findings([], "cpu"))[:2]
    records = [made_up.record(first), made_up.record(second) | {"data": {"digest": "other"}}]
    text = write_study_report(tmp_path, records, {"cpu": STUDY}).read_text()
    assert "The data changed" in text


def test_a_report_needs_a_study(tmp_path):
    with pytest.raises(UserError, match="a study that was started"):
        write_study_report(tmp_path, [], {})

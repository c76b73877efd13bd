import dataclasses

import pytest

from benchmarks.quality.parts import PARTS, wanted_of_all
from benchmarks.quality.records import Records
from benchmarks.quality.session import Session, check_data
from benchmarks.quality.settings import (
    check_same,
    load_studies,
    new_study,
    parse_amounts,
    save_study,
    with_amounts,
)
from diablo_ds.errors import UserError
from tests.tiny import save_model
from tests.unit.benchmarks.quality import made_up


def test_a_study_is_kept_beside_those_of_other_devices(tmp_path):
    studies = [made_up.study(), made_up.study("NVIDIA H100")]
    for study in studies:
        save_study(tmp_path, study)
    assert load_studies(tmp_path) == {study.device: study for study in studies}
    (tmp_path / "study.json").write_text('{"cpu": {}}')
    with pytest.raises(UserError, match="must be a study"):
        load_studies(tmp_path)


def test_a_new_study_knows_the_models_layers(tmp_path):
    study = new_study(str(save_model(tmp_path / "model")), "fp32")
    assert study.legal() == [1, 2, 4, 8, 16]
    assert len(study.widths["all-linear"]) == 2 * 7
    assert study.precision == "fp32"


def test_settings_of_a_kept_study_stay(tmp_path):
    study = made_up.study()
    assert check_same(study, None, None) == study
    assert check_same(study, "default", "fp32") == study
    with pytest.raises(UserError, match="precision must stay"):
        check_same(study, None, "bf16")
    with pytest.raises(UserError, match="model must stay"):
        check_same(study, "/models/other", None)


def test_amounts_are_given_by_name():
    fixed = parse_amounts(["num_seeds=5", "final_questions=0"])
    study = with_amounts(made_up.study(), 512, fixed)
    assert (study.amounts.num_examples, study.amounts.num_seeds) == (512, 5)
    assert study.amounts.batch_examples == 1024
    # A later call changes what it names alone.
    assert with_amounts(study, None, {"num_held_out": 10}).amounts.num_seeds == 5
    for wrong in ("seeds=5", "num_seeds", "num_seeds=-1", "num_seeds=0", "num_seeds=x"):
        with pytest.raises(UserError, match="must be"):
            parse_amounts([wrong])


def test_data_are_looked_for_that_the_parts_need(tmp_path):
    sources = {"commonsense": tmp_path, "gsm8k": tmp_path / "none"}
    study = made_up.study()
    check_data(study, ["rate", "batch"], sources)
    with pytest.raises(UserError, match="these parts need: final"):
        check_data(study, list(PARTS), sources)
    with pytest.raises(UserError, match="these parts need: rate, batch"):
        check_data(dataclasses.replace(study, data="gsm8k"), ["rate", "batch"], sources)


def test_a_plan_lists_what_is_left_and_changes_nothing(tmp_path):
    study = made_up.study()
    session = Session(
        output=tmp_path / "study",
        study=study,
        parts=list(PARTS),
        budget_s=3600.0,
        sources={},
        workers=2,
        is_sized=True,
        fixed={},
    )
    plan = session.plan()
    assert "rate: Learning rate, 88 trainings" in plan
    assert "2 at a time: 192 training examples" in plan
    assert "Times are guesses" in plan
    assert not session.output.exists()
    with Records(session.output) as records:
        for _, spec in wanted_of_all(["rate"], study, made_up.Findings([], "cpu"))[:3]:
            records.add(made_up.record(spec))
    plan = session.plan()
    assert "rate: Learning rate, 85 trainings" in plan
    assert "Times are guesses" not in plan
    # Where the amounts are not kept yet, they are those that would fit.
    small = dataclasses.replace(session, is_sized=False, fixed={"num_seeds": 1}).plan()
    assert "1 seeds" in small

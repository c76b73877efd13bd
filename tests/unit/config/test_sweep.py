from __future__ import annotations

import pytest

from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import settings_of
from diablo_ds.config.sweep import combinations, parse_axes
from diablo_ds.errors import UserError

SETTINGS = [setting for setting in settings_of(RunConfig) if setting.name != "output"]
MANY = ",".join(map(str, range(101)))


def _runs(*texts: str):
    return combinations(parse_axes(texts, SETTINGS, ()))


def test_all_combinations_are_runs_in_the_order_of_the_command():
    runs = _runs("learning-rate=1e-3,2e-5", "num_blocks=32,64")
    assert [run.name for run in runs] == [
        "learning-rate=0.001,num-blocks=32",
        "learning-rate=0.001,num-blocks=64",
        "learning-rate=2e-05,num-blocks=32",
        "learning-rate=2e-05,num-blocks=64",
    ]
    assert runs[1].values == {"learning_rate": 1e-3, "num_blocks": "64"}
    assert runs[1].shown == ("0.001", "64")


@pytest.mark.parametrize(
    ("text", "values", "names"),
    [
        ("packing=on,No", [True, False], ["on", "off"]),
        ("--seed=1, 2", [1, 2], ["1", "2"]),
        ("layers=0-3,8;4-7", ["0-3,8", "4-7"], ["0-3-8", "4-7"]),
        ("targets=q_proj,re:.*k$", [("q_proj",), ("re:.*k$",)], ["q_proj", "re-.-k-"]),
        ("model=/a/one/,b/two", ["/a/one/", "b/two"], ["one", "two"]),
        ("init-adapter=a/run,b/run", ["a/run", "b/run"], ["a-run", "b-run"]),
        ("num-blocks=auto:1%", ["auto:1%"], ["auto-1%"]),
        ("learning-rate=0.00123456789", [0.00123456789], ["0.00123456789"]),
        ("learning-rate=auto,1e-3", [0.0, 0.001], ["auto", "0.001"]),
    ],
)
def test_values_have_the_type_of_their_setting_and_a_name_for_a_folder(text, values, names):
    (axis,) = parse_axes([text], SETTINGS, ())
    assert (list(axis.values), list(axis.names)) == (values, names)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["learning-rat=1"], r"did you mean learning-rate\?"),
        (["output=a,b"], "must go over settings of the run"),
        (["learning-rate"], "sweep must read"),
        (["=1"], "sweep must read"),
        (["learning-rate=1e-3,,2"], "learning_rate must be a number; got ''"),
        (["learning-rate=fast"], "learning_rate must be a number; got 'fast'"),
        (["max-steps=1.5"], "max_steps must be an integer"),
        (["packing=maybe"], "packing must be on or off"),
        (["model="], "model must be not empty"),
        (["learning-rate=1e-3,0.001"], "got 1e-3 and 0.001"),
        (["learning-rate=auto,0"], "got auto and 0"),
        (["num-blocks=1,2", "num_blocks=4"], "must be swept once; got num-blocks twice"),
        (["model=a:b,a*b"], "must have names that differ"),
        (["seed=1,2"], "must be given by --sweep or by --seed, not by both"),
        ([f"model={'x' * 250}"], "folder name of 200 bytes"),
        ([f"seed={MANY}", f"max-steps={MANY}"], "at most 10,000 runs; got 10,201"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(texts, message):
    given = ["seed"] if texts == ["seed=1,2"] else []
    with pytest.raises(UserError, match=message):
        combinations(parse_axes(texts, SETTINGS, given))

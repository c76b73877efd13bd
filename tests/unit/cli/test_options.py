"""Every command's options: in groups, once each, and from the command line to the dataclass."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from diablo_ds.cli.main import main
from diablo_ds.cli.options import from_options, given_values
from diablo_ds.cli.options_page import COMMANDS
from diablo_ds.cli.run_options import RunFiles
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import REQUIRED, settings_of
from tests.overriding import with_last_options

WITH_A_RUN = ("diablo-ds train", "diablo-ds launch", "diablo-ds slurm")
CLASSES = [
    (command, cls)
    for command, classes in COMMANDS.items()
    for cls in dict.fromkeys((*classes, *((RunFiles, RunConfig) if command in WITH_A_RUN else ())))
]


def _words(command: str) -> list[str]:
    return [word.replace("CORPUS", "math") for word in command.split()[1:]]


def _command(name: str) -> click.Command:
    command: click.Command = main
    for word in _words(name):
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def _parse(command: str, *args: str) -> dict[str, object]:
    required = _arguments(command)
    for parameter in _command(command).params:
        if parameter.required and isinstance(parameter, click.Option):
            required += [parameter.opts[0], "given"]
    context = _command(command).make_context(
        "x", with_last_options([*_words(command), *required, *args])[len(_words(command)) :]
    )
    return context.params


def _arguments(command: str) -> list[str]:
    """Return a value for each argument that a command cannot do without."""
    parameters = _command(command).params
    return ["given" for p in parameters if p.required and isinstance(p, click.Argument)]


def _records(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return the group and the text of each option of a help text, by its first name."""
    group, found = "", {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            group = heading[1]
        elif start := re.match(r"  (?:-\w, )?(--[\w-]+)(.*)", line):
            name = start[1]
            found.setdefault(name, []).append((group, start[2]))
        elif line.startswith("   ") and found and group not in ("", "Commands"):
            found[name][-1] = (group, f"{found[name][-1][1]} {line.strip()}")
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_each_setting_once_in_its_group_with_its_default(command):
    result = CliRunner().invoke(main, [*_words(command), "--help"])
    assert result.exit_code == 0
    records = _records(result.output)
    assert all(len(found) == 1 for found in records.values())
    settings = [s for name, cls in CLASSES if name == command for s in settings_of(cls)]
    assert records.keys() - {"--help"} == {setting.option for setting in settings}
    for setting in settings:
        ((group, text),) = records[setting.option]
        assert group == setting.group.capitalize(), setting.name
        assert text.count("[required]") == setting.is_required, setting.name
        if setting.kind is not bool and setting.default_text():
            assert f"[default: {setting.default_text()}" in " ".join(text.split()), setting.name


def test_help_shows_the_groups_of_a_run():
    text = CliRunner().invoke(main, ["train", "--help"]).output
    headings = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert headings == [
        "Config files",
        "Start",
        "Model",
        "Data",
        "Adapter",
        "Batch",
        "Optimizer",
        "Memory and speed",
        "Run",
        "Task scores",
        "Other options",
    ]


def _example(setting) -> tuple[str, object]:
    """Return a word for an option, and the value that it gives."""
    if setting.choices:
        word = setting.choices[-1]
        return word, (word,) if setting.is_repeatable else word
    if setting.is_repeatable:
        return "a=b", ("a=b",)
    if setting.kind in (int, float):
        return "0", setting.kind(0)  # legal or not, it must not count as absent
    return "x y", setting.kind("x y")


@pytest.mark.parametrize(
    ("command", "cls"), CLASSES, ids=[f"{command}-{cls.__name__}" for command, cls in CLASSES]
)
def test_each_option_gives_its_field_and_nothing_else(command, cls):
    required = {s.name for s in settings_of(cls) if s.default is REQUIRED}
    assert given_values(cls, _parse(command)).keys() == required
    for setting in settings_of(cls):
        if setting.kind is bool:
            args, value = [setting.option], True
        else:
            word, value = _example(setting)
            args = [setting.option.replace("-", "_").replace("__", "--", 1), word]
        given = given_values(cls, _parse(command, *args))
        if setting.name in required and setting.is_repeatable:
            assert given[setting.name] == ("given", *value)
        else:
            assert given[setting.name] == value
        assert given.keys() == {setting.name, *required}


@pytest.mark.parametrize("name", ["packing", "stream", "recompute", "base_dropout"])
def test_a_flag_of_a_run_has_an_opposite_that_overrides_a_file(name):
    params = _parse("diablo-ds launch", f"--no-{name.replace('_', '-')}")
    assert given_values(RunConfig, params) == {name: False}


def test_auto_stands_for_a_number_that_is_left_open():
    auto = _parse("diablo-ds train", "--learning-rate", "auto", "--global-batch", "auto")
    assert from_options(RunConfig, auto) == RunConfig()
    given = from_options(RunConfig, _parse("diablo-ds train", "--learning-rate", "5e-4"))
    assert given.learning_rate == 5e-4
    with pytest.raises(click.BadParameter, match="not a valid float"):
        _parse("diablo-ds train", "--learning-rate", "automatic")


def test_without_options_a_dataclass_has_its_defaults():
    assert from_options(RunFiles, _parse("diablo-ds train")) == RunFiles()
    assert from_options(RunFiles, _parse("diablo-ds train", "--config", "a")).config == Path("a")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("train --micro-batch -1", "Error: micro_batch must be >= 0; got micro_batch=-1"),
        ("train --seed one", "Invalid value for '--seed'"),
        ("launch --nodes 0", "Error: nodes must be >= 1; got nodes=0"),
        ("launch --runner rsh", "Invalid value for '--runner'"),
        ("slurm --nodes 2", "Error: give gpus_per_node, or ranks_per_node"),
        ("slurm --gpus-per-node 1 --chain 0", "Error: chain must be >= 1; got chain=0"),
        ("plan --gpus-per-node 0", "Error: gpus_per_node must be >= 1; got gpus_per_node=0"),
        ("plan --gpu abacus", "Invalid value for '--gpu'"),
        ("prepare math --output x", "Missing option '--source'"),
        ("prepare math --output x --source y --limit -1", "Error: limit must be >= 0"),
        ("prepare --inspect x math --output x --source y", "not both"),
        ("prepare --num -1 --inspect x", "Error: num must be >= 0; got num=-1"),
        ("train --learning_rat 1", "No such option"),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, args.split())
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [name for name, cls in CLASSES if any(s.is_required for s in settings_of(cls))]
)
def test_a_required_option_that_is_missing_is_named(command):
    result = CliRunner().invoke(main, [*_words(command), *_arguments(command)])
    assert result.exit_code == 2
    assert "Missing option '--" in result.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("train --model a --model b", "--model"),
        ("train --model=a --data b --model c", "--model"),
        ("train --packing --no-packing", "--packing"),
        ("train --ds_config a --ds-config a", "--ds-config"),
        ("prepare --source a --output x --output y", "--output"),
        ("prepare math --source a --seed 1 --seed 2 --limit 1 --limit 2", "--limit, --seed"),
        ("prepare --inspect a --inspect b", "--inspect"),
        ("slurm --nodes 1 --nodes 2", "--nodes"),
        ("merge --output a --output b", "--output"),
    ],
)
def test_an_option_that_is_given_twice_is_refused_unless_it_is_repeatable(words, named):
    result = CliRunner().invoke(main, words.split())
    assert result.exit_code == 2
    assert f"must be given once, unless it is repeatable; got several of {named}" in result.output


def test_a_repeatable_option_is_given_several_times():
    params = _parse("diablo-ds train", "--targets", "a", "--targets", "b", "--data", "c")
    assert params["targets"] == ("a", "b")


def test_the_options_of_a_fixture_are_replaced_by_those_of_a_test():
    words = "train --data a --no-packing --targets x --ds_config z --data b --packing --targets y"
    expected = "train --targets x --data b --packing --targets y --ds-config 3 --seed -1"
    assert with_last_options([*words.split(), "--ds-config", 3, "--seed", -1]) == expected.split()
    words = "train --data a --seed 1 --data b --data c --mix b=1 --mix c=2"
    assert with_last_options(words.split()) == words.replace("--data a ", "").split()

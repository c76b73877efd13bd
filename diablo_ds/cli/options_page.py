"""The page docs/options.md, from the settings of all commands.

python -m diablo_ds.cli.options_page > docs/options.md
"""

from __future__ import annotations

from collections.abc import Iterable

import click

from diablo_ds.cli.adapters import CombineOptions, DiffOptions, ImportOptions
from diablo_ds.cli.cluster import ClusterOptions
from diablo_ds.cli.launch import StartOptions
from diablo_ds.cli.main import TrainOptions
from diablo_ds.cli.prepare import PreviewOptions
from diablo_ds.cli.push import PushOptions
from diablo_ds.cli.run_options import RunFiles
from diablo_ds.cli.slurm import ScriptOptions
from diablo_ds.config.choices import CORPORA
from diablo_ds.config.continuation import FREE_CHOICES
from diablo_ds.config.remote_code import RemoteCode
from diablo_ds.config.run import RunConfig
from diablo_ds.config.setting import GROUPS, OnResume, Setting, settings_of
from diablo_ds.config.sharing import Sharing
from diablo_ds.conversion.merging.options import MergeOptions
from diablo_ds.conversion.verification.options import VerifyOptions
from diablo_ds.data.prepare.options import PrepareOptions
from diablo_ds.evaluation.options import EvaluateOptions
from diablo_ds.files.layout import RUN_CONFIG_FILE
from diablo_ds.generation.options import GenerateOptions
from diablo_ds.launcher.job import Job
from diablo_ds.model.shape import Shape
from diablo_ds.planning.hardware import Assumptions
from diablo_ds.planning.options import PlanOptions

_TRAIN = "diablo-ds train"
COMMANDS: dict[str, tuple[type, ...]] = {
    _TRAIN: (RunFiles, RunConfig, TrainOptions),
    "diablo-ds launch": (ClusterOptions, StartOptions),
    "diablo-ds slurm": (Job, ScriptOptions),
    "diablo-ds plan": (PlanOptions, RemoteCode, Shape, Assumptions),
    "diablo-ds prepare CORPUS": (PrepareOptions, RemoteCode, Sharing),
    "diablo-ds prepare": (PreviewOptions,),
    "diablo-ds evaluate": (EvaluateOptions, RemoteCode, Sharing),
    "diablo-ds generate": (GenerateOptions, RemoteCode),
    "diablo-ds merge": (MergeOptions, Sharing),
    "diablo-ds verify": (VerifyOptions, RemoteCode),
    "diablo-ds combine": (CombineOptions, Sharing),
    "diablo-ds diff": (DiffOptions, RemoteCode, Sharing),
    "diablo-ds import": (ImportOptions, RemoteCode, Sharing),
    "diablo-ds push": (PushOptions,),
}
"""The commands of the page, and the dataclasses of their options."""
_NOTES = {
    _TRAIN: "`deepspeed launch/train.py` takes the same options. All but those of the groups "
    "config files and start, and `--gradient-accumulation-steps`, are settings of the run config, "
    f"which a run saves as `{RUN_CONFIG_FILE}`; `--config` reads such a file, or one of your own "
    "([formats](formats.md#run-config-files)), and options override it. "
    "A setting that is open is chosen when the run starts, for its ranks and their machines. "
    "Where the output folder holds a run, what is left out of the settings that may not change, or "
    "for the steps to come only, is as that run has it ([formats](formats.md#extending-a-run)).",
    "diablo-ds launch": "All options of `diablo-ds train` too.",
    "diablo-ds slurm": "All options of `diablo-ds train` too.",
    "diablo-ds evaluate": "`deepspeed launch/evaluate.py` takes the same options.",
    "diablo-ds combine": "Takes each adapter as ADAPTER=WEIGHT.",
    "diablo-ds import": "Takes the file, `adapter.chkpt`.",
    "diablo-ds push": "Takes an adapter, a checkpoint, or the folder of a run that is done.",
    "diablo-ds prepare CORPUS": f"CORPUS is one of {', '.join(CORPORA)}.",
}
_ON_RESUME: dict[OnResume, str] = {"fixed": "no", "ahead": "for the steps to come", "free": "yes"}
_INTRODUCTION = """# Options

Made from the settings themselves by `python -m diablo_ds.cli.options_page > docs/options.md`.
`diablo-ds COMMAND --help` shows the same. Underscores and dashes are equal in the names of
options."""


def options_page() -> str:
    """Return the page as Markdown."""
    parts = [_INTRODUCTION]
    for command, classes in COMMANDS.items():
        parts.append(f"## `{command}`")
        if command in _NOTES:
            parts.append(_NOTES[command])
        settings = [setting for cls in classes for setting in settings_of(cls)]
        for group in GROUPS:
            of_group = [setting for setting in settings if setting.group == group]
            if of_group:
                heading = f"### {command.removeprefix('diablo-ds ')}: {group}"
                parts.append(f"{heading}\n\n{_table(of_group, resumes=command == _TRAIN)}")
    return "\n\n".join(parts) + "\n"


def _table(settings: Iterable[Setting], *, resumes: bool) -> str:
    header = [
        "option",
        "default",
        "allowed",
        *(["may change on resume"] if resumes else []),
        "meaning",
    ]
    lines = [header, ["---"] * len(header)]
    for setting in settings:
        lines.append(
            [
                _options(setting),
                "required" if setting.is_required else setting.default_text(),
                _allowed(setting),
                *([_on_resume(setting)] if resumes else []),
                setting.help.replace("<", "\\<"),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _options(setting: Setting) -> str:
    has_opposite = setting.is_optional or setting in settings_of(RunConfig)
    names = [setting.option]
    if setting.kind is bool and has_opposite:
        names.append(f"--no-{setting.option[2:]}")
    return ", ".join(f"`{name}`" for name in names)


def _allowed(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in setting.choices)
    if setting.kind is bool:
        return "flag"
    return setting.range_text()


def _on_resume(setting: Setting) -> str:
    if setting.name in FREE_CHOICES:
        groups = (", ".join(sorted(group)) for group in FREE_CHOICES[setting.name])
        return f"only among {', or among '.join(groups)}"
    return _ON_RESUME[setting.on_resume]


if __name__ == "__main__":
    click.echo(options_page(), nl=False)

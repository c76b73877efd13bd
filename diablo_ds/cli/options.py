"""Dataclasses of settings as options of a command, and the given options as dataclasses.

A dataclass declares each setting once, with `diablo_ds.config.setting.setting`: default, help,
range, group. `options_of` turns it into options whose values are None or empty unless they are
given, so that a file's values or the dataclass's own defaults stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from diablo_ds.cli.same_command import keep_words
from diablo_ds.config.remote_code import RemoteCode, trust_code
from diablo_ds.config.setting import AUTO, GROUPS, Setting, settings_of
from diablo_ds.config.sharing import Sharing, share_files
from diablo_ds.config.suggestion import closest
from diablo_ds.files.strict_json import is_one_line

Settings = TypeVar("Settings")
_OTHERS = "other options"


def check_words(context: click.Context, words: Sequence[str]) -> None:
    """Refuse control characters in a command line, which reach scripts, records and screens.

    Raises:
        click.UsageError: if a word holds one.
    """
    for place, word in enumerate(words):
        if not is_one_line(word):
            option = word.partition("=")[0] if word.startswith("-") else words[max(0, place - 1)]
            shown = f", of {option!a:.60}" if option.startswith("-") else ""  # no secret's value
            raise click.UsageError(
                "a command line must be text without control characters; got one in word "
                f"{place + 1}{shown}",
                context,
            )


class SettingOption(click.Option):
    """An option that belongs to a group of the help text."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class OpenNumber(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A number, or the word auto for the default that leaves it open."""

    def __init__(self, setting: Setting) -> None:
        self._number = click.types.convert_type(setting.kind)
        self._open = setting.default
        self.name = self._number.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; see `click.ParamType.convert`."""
        return self._open if value == AUTO else self._number.convert(value, param, ctx)


class GroupedCommand(click.Command):
    """A command whose help text shows its options in groups, and whose options count once.

    An option that is given twice is refused, unless it is repeatable: click takes the last value.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of a command line; see `click.Command.parse_args`."""
        keep_words(ctx, args)
        try:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
        except click.NoSuchOption as error:
            known = [name for parameter in self.get_params(ctx) for name in parameter.opts]
            near = closest(error.option_name, known) or error.possibilities
            raise click.NoSuchOption(error.option_name, possibilities=near, ctx=ctx) from None
        options = [p for p in order if isinstance(p, click.Option) and not p.multiple]
        if twice := [p for p in dict.fromkeys(options) if options.count(p) > 1]:
            names = ", ".join(sorted({max(p.opts, key=len) for p in twice}))
            raise click.UsageError(
                f"each option must be given once, unless it is repeatable; got several of {names}",
                ctx,
            )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their groups, and the subcommands."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = getattr(parameter, "group", _OTHERS)
                sections.setdefault(group, []).append(record)
        for group in sorted(sections, key=[*GROUPS, _OTHERS].index):
            with formatter.section(group.capitalize()):
                formatter.write_dl(sections[group])
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)


class GroupedGroup(GroupedCommand, click.Group):
    """A command with subcommands whose help text shows its options in groups."""


def options_of(
    cls: type, *, override_a_file: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each setting of a dataclass.

    Args:
        cls: the dataclass.
        override_a_file: whether the options override values of a file, so that each flag needs its
            opposite.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(settings_of(cls)):
            command = _option(setting, override_a_file)(command)
        return command

    return decorate


def given_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's options that were given on the command line."""
    names = {setting.name for setting in settings_of(cls)}
    return {k: v for k, v in values.items() if k in names and v not in (None, ())}


def from_options(cls: type[Settings], values: Mapping[str, Any], **others: Any) -> Settings:
    """Build a dataclass from the options that were given; the others take its defaults.

    Args:
        cls: the dataclass.
        values: the command's parameters, perhaps those of other dataclasses too.
        others: fields that are no options.

    Raises:
        UserError: if a value is illegal.
    """
    return cls(**given_values(cls, values), **others)


def sharing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that writes files the options for whom they are made, and obey them."""

    @functools.wraps(command)
    def sharing(*args: Any, **values: Any) -> Any:
        share_files(from_options(Sharing, values))
        for setting in settings_of(Sharing):
            del values[setting.name]
        return command(*args, **values)

    return options_of(Sharing)(sharing)


def remote_code_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that loads a model or tokenizer the option to run its code, and obey it."""

    @functools.wraps(command)
    def trusting(*args: Any, **values: Any) -> Any:
        trust_code(from_options(RemoteCode, values))
        for setting in settings_of(RemoteCode):
            del values[setting.name]
        return command(*args, **values)

    return options_of(RemoteCode)(trusting)


def _option(
    setting: Setting, override_a_file: bool
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    is_flag = setting.kind is bool
    has_opposite = is_flag and (override_a_file or setting.is_optional)
    return click.option(
        f"{setting.option}/--no-{setting.option[2:]}" if has_opposite else setting.option,
        setting.name,
        cls=SettingOption,
        group=setting.group,
        type=_type(setting),
        is_flag=is_flag or None,
        multiple=setting.is_repeatable,
        required=setting.is_required,
        help=_help(setting, is_plain_flag=is_flag and not has_opposite),
        # To click a default, be it None, is a value, and a required option is then never missing.
        **({} if setting.is_required else {"default": None}),
    )


def _type(setting: Setting) -> Any:
    if setting.choices:
        return click.Choice(setting.choices)
    if setting.kind is Path:
        return click.Path(path_type=Path)
    if setting.takes_auto:
        return OpenNumber(setting)
    return None if setting.kind is bool else setting.kind


def _help(setting: Setting, *, is_plain_flag: bool) -> str:
    default = "" if is_plain_flag else setting.default_text()
    allowed = setting.range_text()
    facts = [
        f"default: {default}" if default else "",
        "" if allowed == "at least 0" else allowed,
    ]
    shown = "; ".join(filter(None, facts))
    return f"{setting.help}  [{shown}]" if shown else setting.help

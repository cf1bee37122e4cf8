"""The frame of every command: grouped help, examples, exit codes, `-v`, and commands that load when called.

Command modules import here; nothing here imports a command. At the top of a command module stand
only imports that are cheap: what a command runs, it imports when it runs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import click

from citadel_py.cli.exits import MEANINGS, PROGRAM, Exit
from citadel_py.cli.session import Session

Function = TypeVar("Function", bound=Callable[..., object])

COMPLETION_VARIABLE = "_CITADEL_PY_COMPLETE"  # set by the completion script when it asks

_ALWAYS = (Exit.DONE, Exit.USAGE, Exit.BAD_INPUT, Exit.BUG, Exit.INTERRUPTED)


class Entry(NamedTuple):
    """A command in the table of all commands: the heading it stands under, and its one line of help."""

    heading: str
    help: str


class Command(click.Command):
    """A command whose help ends with examples and exit codes."""

    examples: Sequence[str] = ()
    exits: Mapping[Exit, str] = MEANINGS

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        write_examples(formatter, self.examples)
        write_exits(formatter, self.exits)


class Family(click.Group):
    """A command with commands of its own (`bundle show`)."""

    examples: Sequence[str] = ()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        write_examples(formatter, self.examples)
        write_exits(formatter, MEANINGS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a name that is not there raises UsageError with the nearest one."""
        if not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise _no_such_command(args[0], self.list_commands(ctx), ctx)
        return super().resolve_command(ctx, args)


class Program(Family):
    """The program: a table of commands by heading, each imported only when it is called."""

    entries: Mapping[str, Entry] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command `a-b`, which stands as `command` in `commands/a_b.py`."""
        if cmd_name not in self.entries:
            return None
        module = importlib.import_module(f"citadel_py.cli.commands.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        command.short_help = self.entries[cmd_name].help
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        width = max(map(len, self.entries))
        for heading in dict.fromkeys(entry.heading for entry in self.entries.values()):
            with formatter.section(heading):
                rows = [
                    (name.ljust(width), entry.help) for name, entry in self.entries.items() if entry.heading == heading
                ]
                formatter.write_dl(rows)


def family(name: str, *, examples: Sequence[str]) -> Callable[[Function], Family]:
    """Make a family of a function that does nothing; its commands are added to it."""

    def decorate(function: Function) -> Family:
        made = click.group(name, cls=Family)(function)
        made.examples = tuple(examples)
        return made

    return decorate


def command(
    name: str, *, examples: Sequence[str], codes: Sequence[Exit] = (), meanings: Mapping[Exit, str] | None = None
) -> Callable[[Function], Command]:
    """Make a command of a function.

    `codes` are its exit codes beyond those that every command has; `meanings` says in the
    command's own words what a code stands for.
    """

    def decorate(function: Function) -> Command:
        made = click.command(name, cls=Command)(function)
        made.params.append(verbose_option())
        made.examples = tuple(examples)
        codes_of_it = sorted({*_ALWAYS, *codes, *(meanings or {})})
        made.exits = {code: (meanings or {}).get(code, MEANINGS[code]) for code in codes_of_it}
        return made

    return decorate


def verbose_option() -> click.Option:
    """`-v`, at the program and at every command alike."""
    return click.Option(
        ["-v", "--verbose"], count=True, expose_value=False, is_eager=True, callback=_add_verbosity,
        help="Say more about an error; twice: with a traceback.",
    )  # fmt: skip


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """A section with command lines that are never wrapped, so that they can be pasted."""
    with formatter.section("Examples"):
        for line in "\n".join(examples).splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def write_exits(formatter: click.HelpFormatter, exits: Mapping[Exit, str]) -> None:
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(int(code)), meaning) for code, meaning in exits.items()])


def _add_verbosity(ctx: click.Context, _param: click.Parameter, value: int) -> None:
    session = ctx.find_object(Session)
    if session is not None:
        session.verbosity += value


def _no_such_command(name: str, known: Sequence[str], ctx: click.Context) -> click.UsageError:
    near = difflib.get_close_matches(name, known, n=1)
    question = f"; did you mean {near[0]!r}?" if near else ""
    return click.UsageError(f"no such command {name!r}{question}", ctx)


__all__ = [
    "COMPLETION_VARIABLE",
    "PROGRAM",
    "Command",
    "Entry",
    "Family",
    "Program",
    "command",
    "family",
    "verbose_option",
]

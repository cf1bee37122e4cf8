"""The frame of all commands: help, names, versions, completion."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from citadel_py import __version__
from citadel_py.cli import COMMANDS, program
from citadel_py.cli.exits import Exit
from citadel_py.cli.frame import Command, Family
from tests.cli.support import cli


def every_command() -> list[tuple[str, Command]]:
    """(`bundle show`, its command) for each command that runs something."""
    found = []
    with click.Context(program) as ctx:
        for name in COMMANDS:
            command = program.get_command(ctx, name)
            if isinstance(command, Family):
                found += [(f"{name} {each}", sub) for each, sub in command.commands.items() if isinstance(sub, Command)]
            elif isinstance(command, Command):
                found.append((name, command))
    return found


EVERY_COMMAND = every_command()


def test_every_command_of_the_table_is_there() -> None:
    assert {name.split()[0] for name, _ in EVERY_COMMAND} == set(COMMANDS)


@pytest.mark.parametrize(("name", "command"), EVERY_COMMAND, ids=[name for name, _ in EVERY_COMMAND])
def test_every_command_has_examples_of_itself_and_exit_codes(name: str, command: Command) -> None:
    assert all(f"citadel-py {name}" in example for example in command.examples)
    assert command.examples
    assert {Exit.DONE, Exit.USAGE, Exit.BAD_INPUT, Exit.BUG, Exit.INTERRUPTED} <= set(command.exits)


@pytest.mark.parametrize(("name", "command"), EVERY_COMMAND, ids=[name for name, _ in EVERY_COMMAND])
def test_no_option_takes_a_secret_as_its_value(name: str, command: Command) -> None:
    flags = [flag for param in command.params for flag in param.opts if flag.startswith("--")]
    secrets = [flag for flag in flags if "pass" in flag or "token" in flag or "secret" in flag or "password" in flag]
    assert all(flag.endswith("-file") for flag in secrets), name


def test_version_is_one_line() -> None:
    assert cli("--version").out == f"citadel-py {__version__}\n"


def test_without_a_command_the_help_goes_to_stderr() -> None:
    outcome = cli()
    assert (outcome.code, outcome.out) == (2, "")
    assert "Certificates:" in outcome.err


def test_a_mistyped_command_names_the_nearest_one() -> None:
    outcome = cli("isue")
    assert outcome.code == 2
    assert "no such command 'isue'; did you mean 'issue'?" in outcome.err


def test_a_mistyped_command_of_a_family_names_the_nearest_one() -> None:
    assert "did you mean 'show'?" in cli("bundle", "shwo").err


def test_an_option_before_the_command_gets_a_hint() -> None:
    outcome = cli("--dir", "ca", "issue")
    assert outcome.code == 2
    assert "hint: options of a command stand after its name: citadel-py COMMAND --dir ..." in outcome.err


def test_options_may_stand_before_and_after_the_arguments(ca: Path, tmp_path: Path) -> None:
    first = cli("issue", "--dir", ca, "spiffe://example.org/a", "--out", tmp_path / "a")
    second = cli("issue", "--out", tmp_path / "b", "--dir", ca, "spiffe://example.org/b")
    assert (first.code, second.code) == (0, 0)


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef citadel-py"), ("fish", "complete --")]
)
def test_completion_script(shell: str, mark: str) -> None:
    outcome = cli("completion", shell)
    assert outcome.code == 0
    assert mark in outcome.out

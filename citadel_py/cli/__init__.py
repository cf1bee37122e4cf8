"""The command line. Importing it loads click and nothing of what commands run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType

import click

from citadel_py import __version__
from citadel_py.cli.exits import PROGRAM, Exit, report
from citadel_py.cli.frame import COMPLETION_VARIABLE, Entry, Program, verbose_option
from citadel_py.cli.session import Session, utcnow
from citadel_py.core.errors import CitadelError

__all__ = ["main", "program", "run"]

_AUTHORITY = "Authority"
_CERTIFICATES = "Certificates"
_SERVICES = "Services"
_SHELL = "Shell"

COMMANDS = {
    "init": Entry(_AUTHORITY, "create a root and an intermediate authority"),
    "bundle": Entry(_AUTHORITY, "show or export the trust bundle"),
    "ledger": Entry(_AUTHORITY, "verify, search, export and prune the record of certificates"),
    "issue": Entry(_CERTIFICATES, "mint an X.509-SVID offline: key, chain, bundle"),
    "sign": Entry(_CERTIFICATES, "sign a CSR, print the chain"),
    "inspect": Entry(_CERTIFICATES, "show what is in certificates, CSRs, keys and bundles"),
    "verify": Entry(_CERTIFICATES, "verify a chain against a bundle, with the rule that failed"),
    "needs-renewal": Entry(_CERTIFICATES, "0 yes, 1 no, for cron"),
    "serve": Entry(_SERVICES, "run the CA service"),
    "agent": Entry(_SERVICES, "keys, renewal, SDS for proxies"),
    "envoy": Entry(_SERVICES, "a hardened Envoy configuration for an agent"),
    "check": Entry(_SERVICES, "what an Envoy really presents, and what is wrong"),
    "token": Entry(_SERVICES, "one-time join tokens for agents"),
    "policy": Entry(_SERVICES, "check a policy file, explain a decision"),
    "bench": Entry(_SERVICES, "certificates per second and CPU per certificate, on your machine"),
    "completion": Entry(_SHELL, "completion for bash, zsh and fish"),
}


def main() -> int:
    """Run the program with the arguments of this process; what is returned is the exit code."""
    session = Session()
    sys.excepthook = _bug_reporter(session)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a letter is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        return _complete(instruction)
    return run(sys.argv[1:], session=session)


def run(arguments: Sequence[str], *, session: Session | None = None, clock: Callable[[], datetime] = utcnow) -> int:
    """Run one command and give its exit code. Raises only what is a bug."""
    session = session or Session(clock)
    try:
        return _invoke(arguments, session)
    except (CitadelError, click.ClickException, click.Abort, KeyboardInterrupt, OSError) as error:
        code = report(error, session)
    _settle_stdout()
    return code


def _invoke(arguments: Sequence[str], session: Session) -> int:
    try:
        with program.make_context(PROGRAM, list(arguments), obj=session, color=session.color) as ctx:
            code = program.invoke(ctx)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return code if isinstance(code, int) else Exit.DONE


def _settle_stdout() -> None:
    """Keep the interpreter from failing once more, with a code of its own, over what could not be written."""
    if sys.stdout is None:  # it was closed before the program began
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bug_reporter(session: Session) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """An excepthook: whatever nobody expected ends with the exit code of a bug."""

    def hook(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        raise SystemExit(int(report(error, session)))

    return hook


def _complete(instruction: str) -> int:
    from click.shell_completion import shell_complete

    return shell_complete(program, {}, PROGRAM, COMPLETION_VARIABLE, instruction)


def _show_version(ctx: click.Context, _param: click.Parameter, value: object) -> None:
    if value:
        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


def _show_help_to_the_lost(ctx: click.Context) -> None:
    click.echo(ctx.get_help(), err=True)
    ctx.exit(Exit.USAGE)


@click.group(
    PROGRAM,
    cls=Program,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@click.pass_context
def program(ctx: click.Context) -> None:
    """A workload-identity authority.

    It issues SPIFFE X.509 certificates, renews them and streams them to Envoy.
    """
    if ctx.invoked_subcommand is None:
        _show_help_to_the_lost(ctx)


program.entries = COMMANDS
program.examples = (
    "citadel-py init --dir ca --trust-domain example.org",
    "citadel-py issue spiffe://example.org/web --dir ca --out web",
    "citadel-py verify web/tls.crt --bundle web/ca.crt",
)
program.params.append(verbose_option())

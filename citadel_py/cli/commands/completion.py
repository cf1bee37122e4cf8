"""`completion`: the script that a shell reads to complete commands, options and files."""

from __future__ import annotations

import click

from citadel_py.cli import frame
from citadel_py.cli.session import Session


@frame.command(
    "completion",
    examples=[
        "citadel-py completion bash > ~/.local/share/bash-completion/completions/citadel-py",
        "citadel-py completion zsh > ~/.zfunc/_citadel-py",
        "citadel-py completion fish > ~/.config/fish/completions/citadel-py.fish",
    ],
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell on stdout."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:  # the argument's type lists only those that click has
        raise click.UsageError(f"no completion for {shell}")
    script = kind(ctx.find_root().command, {}, frame.PROGRAM, frame.COMPLETION_VARIABLE).source()
    session = ctx.find_object(Session)
    if session is not None:
        session.answer(script + "\n")

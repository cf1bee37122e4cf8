"""`check`: what is really so, and what is wrong with it. What Envoy's documents mean is envoy_findings.py's."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from citadel_py.cli import frame, options, params
from citadel_py.cli.exits import Exit
from citadel_py.cli.session import Session

if TYPE_CHECKING:
    from citadel_py.agent.envoy_findings import Findings, Presented
    from citadel_py.cli.describe import Facts
    from citadel_py.cli.render import Row
    from citadel_py.config import Address


def _parse_address(text: str) -> Address:
    from citadel_py.config import parse_address

    return parse_address(text)


@frame.command(
    "check",
    examples=["citadel-py check --envoy 127.0.0.1:9901", "citadel-py check --envoy 127.0.0.1:9901 --json"],
    codes=[Exit.UNAVAILABLE],
    meanings={
        Exit.DONE: "nothing is wrong",
        Exit.NO: "something is wrong; stdout names it",
        Exit.BAD_INPUT: "what answers is not Envoy's admin interface",
        Exit.UNAVAILABLE: "nothing answers",
    },
)
@click.option(
    "--envoy", "address", type=params.Parsed("HOST:PORT", _parse_address), required=True,
    help="The admin address of an Envoy.",
)  # fmt: skip
@options.as_json
@click.pass_obj
def command(session: Session, address: Address, *, as_json: bool) -> int:
    """Say what an Envoy really presents, what it holds, and what is wrong.

    It asks Envoy's admin address and changes nothing there.
    """
    from citadel_py.agent.envoy_admin import read_admin
    from citadel_py.agent.envoy_findings import examine

    now = session.now()
    findings = examine(read_admin(address), now)
    if as_json:
        session.answer_json(_document(address, findings))
    else:
        session.answer(_text(address, findings, now))
        for hint in dict.fromkeys(each.hint for each in findings.problems):
            session.hint(hint)
    return Exit.NO if findings.problems else Exit.DONE


def _document(address: Address, findings: Findings) -> Facts:
    from citadel_py.cli.render import rfc3339

    return {
        "envoy": str(address),
        "is_well": not findings.problems,
        "presented": [
            {
                "ids": list(each.ids),
                "serial": each.serial,
                "not_before": rfc3339(each.not_before),
                "not_after": rfc3339(each.not_after),
            }
            for each in findings.presented
        ],
        "secrets": [
            {"name": each.name, "kind": each.kind, "secret_version": each.version, "has_arrived": each.has_arrived}
            for each in findings.secrets
        ],
        "problems": [{"rule": each.rule, "message": each.message, "hint": each.hint} for each in findings.problems],
    }


def _text(address: Address, findings: Findings, now: datetime) -> str:
    from citadel_py.cli.render import fields, heading

    arrived = [each for each in findings.secrets if each.has_arrived]
    rows: list[Row] = [
        ("presents", [_leaf_line(each, now) for each in findings.presented] or "no certificate"),
        ("holds", [f"{each.kind} {each.name}, version {each.version}" for each in arrived] or "no secret"),
        ("problem", [f"{each.message} [rule {each.rule}]" for each in findings.problems]),
    ]
    return heading("problems in" if findings.problems else "well", f"Envoy at {address}") + fields(rows)


def _leaf_line(leaf: Presented, now: datetime) -> str:
    from citadel_py.cli.render import moment_with_words

    who = ", ".join(leaf.ids) or "nobody"
    return f"{who}, serial {leaf.serial}, ends {moment_with_words(leaf.not_after, now)}"

"""Floods of refusals: which lines are written, and how those are told that are not."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any, TypeAlias

from citadel_py.obs.floods import OF_A_NETWORK, OF_A_RULE, Floods

Lines: TypeAlias = list[MutableMapping[str, Any]]


async def the_end_of_the_window(lines: Lines) -> None:
    async with asyncio.timeout(5):
        while not lines:
            await asyncio.sleep(0)


def written(floods: Floods, count: int, *, rule: str = "jwt_expired", network: str = "192.0.2.1") -> int:
    return sum(floods.may_write(rule, network) for _ in range(count))


async def test_of_one_network_a_few_lines_are_written_and_the_others_told_as_a_number(lines: Lines) -> None:
    assert written(Floods(window=timedelta(0)), OF_A_NETWORK + 7) == OF_A_NETWORK
    await the_end_of_the_window(lines)
    assert lines == [{"event": "refusals.left_out", "log_level": "warning", "rule": "jwt_expired", "count": 7}]


async def test_another_network_and_another_rule_are_written_all_the_same() -> None:
    floods = Floods()
    written(floods, OF_A_NETWORK + 1)
    assert floods.may_write("jwt_expired", "192.0.2.2")
    assert floods.may_write("jwt_signature", "192.0.2.1")


async def test_many_networks_together_do_not_flood_the_log_either() -> None:
    floods = Floods()
    assert sum(written(floods, 1, network=str(number)) for number in range(OF_A_RULE + 9)) == OF_A_RULE


async def test_after_the_window_lines_are_written_again(lines: Lines) -> None:
    floods = Floods(window=timedelta(0))
    written(floods, OF_A_NETWORK + 1)
    await the_end_of_the_window(lines)
    assert written(floods, OF_A_NETWORK + 1) == OF_A_NETWORK

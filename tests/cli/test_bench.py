"""`bench`: its table, its document and its exit codes. What makes a run valid is tested in tests/app."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from citadel_py.app import bench
from citadel_py.app.bench import Amount, Cell, Result
from tests.cli.support import cli

SMALL = ("--count", "5", "--in-flight", "2", "--connections", "warm")


def result_of(cell: Cell, problems: tuple[str, ...] = ()) -> Result:
    return Result(cell, 1000, 2.0, 0.5, 0.0204, 0.1, 100 << 20, problems)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Results instead of measurements: every cell has these problems."""

    def replace(*problems: str) -> None:
        def measure(cell: Cell, _amount: Amount, *, place: Path | None, workers: int) -> Result:
            assert workers == 1
            assert place is None
            return result_of(cell, problems)

        monkeypatch.setattr(bench, "measure", measure)

    return replace


def test_a_real_run_as_json(tmp_path: Path) -> None:
    outcome = cli("bench", *SMALL, "--dir", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    assert (document["version"], document["is_valid"]) == (1, True)
    (result,) = document["results"]
    assert (result["certificates"], result["auth"], result["problems"]) == (5, "jwt", [])


def test_the_table_is_plain_where_there_is_no_terminal(measured: Callable[..., None]) -> None:
    measured()
    outcome = cli("bench", "--in-flight", "1,16", "--keys", "p256,rsa2048/rsa3072")
    assert outcome.code == 0
    assert outcome.out.splitlines()[:2] == [
        "keys             connections  auth  in flight  cert/s  CPU us/cert  p50 ms  p99 ms  RSS MiB",
        "p256/p256        warm         jwt           1     500          500    20.4   100.0      100",
    ]
    assert len(outcome.out.splitlines()) == 1 + 2 * 2 * 2


def test_a_run_that_is_not_valid_shows_no_numbers_and_exits_1(measured: Callable[..., None]) -> None:
    measured("3 calls failed, the first with UNAVAILABLE: full", "no certificate was issued")
    outcome = cli("bench", *SMALL)
    assert outcome.code == 1
    assert outcome.out.splitlines()[1].split() == ["p256/p256", "warm", "jwt", "2", "not", "valid"]
    assert "warning: not valid: p256/p256 warm jwt 2 in flight: 3 calls failed" in outcome.err
    assert outcome.err.count("warning:") == 2


def test_the_document_says_why_a_run_is_not_valid(measured: Callable[..., None]) -> None:
    measured("no certificate was issued")
    outcome = cli("bench", *SMALL, "--json")
    assert outcome.code == 1
    assert outcome.json["is_valid"] is False
    assert outcome.json["results"][0]["problems"] == ["no certificate was issued"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--count", "100001"), 2),
        (("--seconds", "601"), 2),
        (("--seconds", "1", "--count", "1"), 2),
        (("--in-flight", "0"), 3),
        (("--in-flight", "257"), 3),
        (("--in-flight", "1,,2"), 3),
        (("--keys", "rsa1024"), 3),
        (("--keys", "p256/rsa2048"), 3),  # no key for an authority
        (("--auth", "password"), 3),
        (("--connections", "cold"), 3),
    ],
)
def test_what_there_is_not_is_refused(arguments: tuple[str, ...], code: int) -> None:
    outcome = cli("bench", *arguments)
    assert outcome.code == code
    assert outcome.out == ""
    if code == 3:
        assert outcome.rule == "invalid_bench"

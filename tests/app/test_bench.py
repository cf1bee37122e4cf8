"""`bench`: what makes a run valid, and that a real one is. No test here asks how fast anything was."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from citadel_py.app import bench_proc, bench_server
from citadel_py.app.bench import Amount, Auth, Cell, Connections, Keys, callers, matrix, measure
from citadel_py.app.bench_callers import LIFETIME, TRUST_DOMAIN, TokenIssuer, csrs
from citadel_py.app.bench_calls import NEW, Credential, Load, Outcome, Sample
from citadel_py.app.bench_checks import problems_of_answers, problems_of_ledger
from citadel_py.app.bench_client import drive
from citadel_py.app.bench_server import PORTS, Target, free_addresses
from citadel_py.core.bundle import Bundle
from citadel_py.core.csr import parse_csr_pem
from citadel_py.core.errors import Unavailable
from citadel_py.core.issuer import Issuer
from citadel_py.core.keys import KeyType, public_key_der
from citadel_py.core.policy import Grant
from citadel_py.core.spiffe import SpiffeID
from tests.ca.support import make_authority, new_serial

NOW = datetime.now(UTC).replace(microsecond=0)
FEW = Amount(count=20)


def new_issuer() -> Issuer:
    root, signer = make_authority(NOW, TRUST_DOMAIN)
    bundle = Bundle(TRUST_DOMAIN, (root.certificate,))
    return Issuer.activated(signer, (signer.certificate,), bundle, now=NOW, serial=new_serial())


def sample(issuer: Issuer, csr: int = 0) -> Sample:
    """An answer to CSR number `csr`."""
    key = csrs(KeyType.P256).keys[csr]
    svid = issuer.issue(key, Grant(SpiffeID(TRUST_DOMAIN, "/x"), LIFETIME), now=NOW, serial=new_serial())
    return Sample(csr, [pem.decode() for pem in svid.pem_elements()])


def outcome(*serials: str, samples: tuple[Sample, ...] = (), failures: int = 0) -> Outcome:
    return Outcome(1.0, [0.1] * len(serials), serials, 0, failures, "UNAVAILABLE: why" if failures else "", samples)


def problems(found: Outcome, issuer: Issuer) -> list[str]:
    return list(problems_of_answers(found, csrs(KeyType.P256), issuer.bundle, now=NOW))


# A real run


@pytest.mark.parametrize(
    ("auth", "connections"),
    [*((each, Connections.WARM) for each in Auth), (Auth.MTLS, Connections.NEW), (Auth.JWT, Connections.STREAM)],
)
def test_a_small_run_is_valid_and_leaves_nothing_behind(tmp_path: Path, auth: Auth, connections: Connections) -> None:
    result = measure(Cell(auth=auth, connections=connections, in_flight=4), FEW, place=tmp_path)
    assert result.problems == ()
    assert result.certificates == 20
    assert result.cpu_s > 0
    assert 0 < result.p50_s <= result.p99_s
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_several_workers_is_valid_and_counts_all_of_them(tmp_path: Path) -> None:
    one, two = (measure(Cell(in_flight=4), FEW, place=tmp_path, workers=workers) for workers in (1, 2))
    assert (one.problems, two.problems) == ((), ())
    assert two.rss_bytes > 1.5 * one.rss_bytes


def test_a_run_with_callers_that_are_refused_is_not_valid(tmp_path: Path) -> None:
    result = measure(Cell(in_flight=2), Amount(count=3), place=tmp_path, tokens=TokenIssuer(audience="somebody else"))
    assert not result.is_valid
    assert result.certificates == 0
    assert "5 calls failed, the first with UNAUTHENTICATED" in result.problems[0]  # two of them to warm up
    assert "no certificate was issued" in result.problems


def test_a_server_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = free_addresses(3)
    monkeypatch.setattr(bench_server, "free_addresses", lambda _count: addresses)
    with (
        socket.create_server(("127.0.0.1", int(addresses[0].rpartition(":")[2]))),
        pytest.raises(Unavailable, match="cannot listen on") as raised,
    ):
        measure(Cell(), FEW, place=tmp_path)
    assert raised.value.rule == "bench_server_failed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last_words", ["print('ready', flush=True); input()", "pass"])
def test_a_client_that_dies_is_told_with_its_last_words(tmp_path: Path, last_words: str) -> None:
    target = Target(os.getpid(), "", "", new_issuer().bundle)
    load = Load("", "", ["x" * 1_000_000], [], 1, NEW, 1, 1.0)  # more than a pipe holds
    with pytest.raises(Unavailable, match="no more of this") as raised:
        drive(load, target, tmp_path, program=("-c", f"{last_words}\nraise SystemExit('no more of this')"))
    assert raised.value.rule == "bench_client_failed"


# The rules


def test_good_answers_have_no_problem() -> None:
    issuer = new_issuer()
    assert problems(outcome("a", "b", samples=(sample(issuer), sample(issuer, 1))), issuer) == []


def test_a_failed_call_is_a_problem_and_so_are_no_answers() -> None:
    assert problems(outcome(failures=2), new_issuer()) == [
        "2 calls failed, the first with UNAVAILABLE: why",
        "no certificate was issued",
    ]


def test_a_serial_number_that_comes_twice_is_a_problem() -> None:
    assert problems(outcome("a", "b", "a"), new_issuer()) == ["1 serial numbers came more than once, a among them"]


def test_a_chain_of_another_authority_is_a_problem() -> None:
    (problem,) = problems(outcome("a", samples=(sample(new_issuer()),)), new_issuer())
    assert problem.startswith("a sampled chain does not verify: ")


def test_a_certificate_for_another_key_is_a_problem() -> None:
    issuer = new_issuer()
    swapped = replace(sample(issuer, 0), csr=1)
    (problem,) = problems(outcome("a", samples=(swapped,)), issuer)
    assert problem == "a sampled chain does not verify: it is for another key than the CSR's"


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        (["a", "b"], []),
        (["b", "a"], []),
        (["a"], ["1 certificates are not in the ledger"]),
        (["a", "b", "c"], ["1 rows of the ledger have no answer"]),
        (["a", "c"], ["1 certificates are not in the ledger", "1 rows of the ledger have no answer"]),
    ],
)
def test_the_ledger_has_to_hold_exactly_what_was_answered(recorded: list[str], told: list[str]) -> None:
    assert list(problems_of_ledger(outcome("a", "b"), recorded)) == told


# What is sent


def test_a_load_is_the_same_after_its_way_to_the_client() -> None:
    load = Load("127.0.0.1:1", "roots", ["csr"], [Credential("token"), Credential("", "chain", "key")], 2, NEW, 3, 4.0)
    assert Load.from_json(load.to_json()) == load


def test_an_outcome_is_the_same_after_its_way_back() -> None:
    found = replace(outcome(), latencies_s=[0.5], serials=["a"], samples=[Sample(1, ["leaf"])])
    assert Outcome.from_json(found.to_json()) == found


def test_tokens_and_certificates_are_not_shown() -> None:
    secret = Credential("the token", "chain", "the key")
    assert "the " not in repr(secret)
    assert "chain" not in repr(Load("", "", [], [secret], 1, NEW, 1, 1.0))


@pytest.mark.parametrize("key_type", [KeyType.P256, KeyType.RSA2048])
def test_every_csr_is_for_the_key_beside_it(key_type: KeyType) -> None:
    sent = csrs(key_type)
    for pem, key in list(zip(sent.pems, sent.keys, strict=True))[:50]:
        assert public_key_der(parse_csr_pem(pem.encode()).public_key) == public_key_der(key)


def test_there_are_more_rsa_keys_than_the_service_remembers() -> None:
    different = {key.public_numbers().n for key in csrs(KeyType.RSA2048).keys if isinstance(key, rsa.RSAPublicKey)}
    assert len(different) > 1024
    assert {modulus.bit_length() for modulus in different} == {2048}


def test_each_call_has_a_token_of_its_own_unless_they_are_to_be_cached() -> None:
    amount = Amount(count=1000)
    assert callers(Cell(in_flight=4), amount) == 1004
    assert callers(Cell(in_flight=4, auth=Auth.JWT_CACHED), amount) == 21  # each about fifty times
    assert callers(Cell(in_flight=64, auth=Auth.MTLS), amount) == 128  # two calls never wait for one identity


def test_a_stream_is_one_callers_and_there_are_as_many_as_limits_of_callers_need() -> None:
    streams = [callers(Cell(Keys(), Connections.STREAM), Amount(count=count)) for count in (1, 700, 2000)]
    assert streams == [1, 1, 3]


def test_a_run_is_bounded_in_count_also_when_only_its_time_is_given() -> None:
    assert Amount(time=timedelta(seconds=2)).most == 3000
    assert Amount(time=timedelta(minutes=10)).most == 100_000


def test_the_matrix_has_every_combination_once() -> None:
    cells = matrix([Keys(), Keys(KeyType.RSA2048)], list(Auth), list(Connections), [1, 16])
    assert len(cells) == len(set(cells)) == 2 * 3 * 3 * 2


# What is read


def test_addresses_are_on_loopback_and_below_the_ports_of_clients() -> None:
    addresses = free_addresses(3)
    assert len(set(addresses)) == 3
    assert all(int(each.removeprefix("127.0.0.1:")) in PORTS for each in addresses)
    assert PORTS.stop <= 32768


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process; it ends when its input does."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


BURN = "import time\nwhile time.process_time() < 0.2: pass\n"


def test_the_cpu_time_of_children_counts_while_they_live_and_afterwards() -> None:
    parent = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''{BURN}print("burnt", flush=True); input()'''], stdin=-1)
input()
child.communicate(b"x")
print("ended", flush=True)
input()
"""
    with python(parent) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "burnt\n"
        alive = bench_proc.usage(process.pid)
        process.stdin.write("x\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"
        ended = bench_proc.usage(process.pid)
        process.stdin.write("x\n")
    assert 0.19 <= alive.cpu_s <= ended.cpu_s
    assert 0 < ended.rss_bytes < alive.rss_bytes


def test_a_process_that_is_not_there_is_told() -> None:
    with python("") as process:
        process.wait()
        with pytest.raises(Unavailable) as raised:
            bench_proc.usage(process.pid)
    assert raised.value.rule == "bench_needs_proc"


def test_settings_of_whoever_runs_it_do_not_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITADEL_SERVE__LISTEN", "0.0.0.0:1")
    assert not [name for name in bench_server.environment() if name.startswith("CITADEL_")]
    assert os.environ["PATH"] == bench_server.environment()["PATH"]

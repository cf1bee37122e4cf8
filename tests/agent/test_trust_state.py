"""What an agent makes of the CA's news: forward only, lists only while they are good, hints once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.timestamp_pb2 import Timestamp

from citadel_py._proto.citadel.v1 import issuance_pb2, trust_pb2
from citadel_py.agent.trust_messages import (
    MAX_MESSAGE_BYTES,
    read_hint,
    read_trust,
    read_version,
    report_messages,
)
from citadel_py.agent.trust_state import LAST_MOMENTS, TrustState
from citadel_py.ca.trust_messages import news, read_report
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.errors import BadInput, CitadelError, VerificationFailed
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import MAX_INTERMEDIATES, ProxyReport, RenewalHint, Trust, TrustVersion
from tests.ca.support import HOUR, TD, Clock, make_authority

NOW = Clock().now()
ROOT, SIGNER = make_authority(NOW)
OTHER, _ = make_authority(NOW)
BUNDLE = Bundle(TD, (ROOT.certificate,), 5)
HASH = "01" * 32


def with_lists(*, number: int = 1, lasts: timedelta = HOUR, sequence: int = 5) -> Trust:
    crls = tuple(build_crl(each, [], number=number, now=NOW, next_update=NOW + lasts) for each in (ROOT, SIGNER))
    return Trust(replace(BUNDLE, sequence=sequence), crls, (SIGNER.certificate,))


def test_the_first_trust_is_held_and_the_same_again_is_no_news() -> None:
    state = TrustState()

    trust = with_lists()
    assert state.take(trust, NOW).trust == trust
    assert state.take(trust, NOW).trust is None
    assert state.held == trust
    assert state.report().acknowledged == trust.version


def test_a_later_bundle_is_taken_and_an_earlier_one_refused() -> None:
    state = TrustState(Trust(BUNDLE))
    wider = Trust(BUNDLE.with_authorities((*BUNDLE.authorities, OTHER.certificate)))

    assert state.take(wider, NOW).trust == wider
    with pytest.raises(VerificationFailed) as caught:
        state.take(Trust(BUNDLE), NOW)
    assert caught.value.rule == "trust_sequence_back"
    assert state.held == wider


def test_the_same_bundle_under_a_lower_sequence_changes_nothing() -> None:
    state = TrustState(Trust(BUNDLE))

    assert state.take(Trust(replace(BUNDLE, sequence=1)), NOW).trust is None
    assert state.held == Trust(BUNDLE)


def test_bad_lists_leave_the_last_good_ones_and_the_bundle_goes_on() -> None:
    held = with_lists(number=2)
    state = TrustState(held)

    taken = state.take(with_lists(number=1, sequence=6), NOW)

    assert taken.trust is not None
    assert (taken.trust.bundle.sequence, taken.trust.crls) == (6, held.crls)
    assert "lower than 2" in taken.problems[0]


def test_lists_that_the_ca_takes_back_are_gone() -> None:
    state = TrustState(with_lists())

    taken = state.take(Trust(BUNDLE), NOW)

    assert taken.trust == Trust(BUNDLE)
    assert taken.problems == ()


def test_lists_are_let_go_a_moment_before_they_end() -> None:
    state = TrustState(with_lists())

    assert state.judge(NOW + HOUR - LAST_MOMENTS - timedelta(seconds=1)).trust is None
    taken = state.judge(NOW + HOUR - LAST_MOMENTS)
    assert taken.trust is not None
    assert (taken.trust.bundle, taken.trust.crls) == (BUNDLE, ())
    assert taken.problems
    assert state.judge(NOW + HOUR).trust is None


def test_nothing_is_judged_where_nothing_is_held() -> None:
    assert TrustState().judge(NOW).trust is None


def test_a_refusal_is_told_once_and_reported_until_something_is_taken() -> None:
    state, version = TrustState(Trust(BUNDLE)), TrustVersion(4, HASH)
    error = CitadelError("it goes back", rule="trust_sequence_back")

    assert state.refuse(version, error)
    assert not state.refuse(version, error)
    assert state.refuse(TrustVersion(3, HASH), error)
    report = state.report()
    assert (report.key, report.rejected, report.reason) == (("", ""), TrustVersion(3, HASH), "trust_sequence_back")
    assert report.rejections == 2

    state.take(Trust(BUNDLE), NOW)
    assert (state.refused, state.report().rejected, state.report().reason) == (None, None, "")


def test_a_hint_is_followed_once() -> None:
    state, first, second = TrustState(), RenewalHint(1), RenewalHint(2)

    assert state.follow([first]) == [first]
    assert state.follow([first, second]) == [second]
    assert state.follow([second]) == []


# --- messages


def sent(trust: Trust, *hints: RenewalHint) -> trust_pb2.TrustNews:
    return trust_pb2.TrustNews.FromString(news(trust, hints, authority_id="ab", epoch=1))


def test_what_the_service_writes_the_agent_reads() -> None:
    trust = with_lists()
    hint = RenewalHint(3, frozenset({"ab"}), "cd", NOW)
    message = sent(trust, hint)

    assert read_trust(message.trust, TD) == trust
    assert read_version(message.trust) == trust.version
    assert read_hint(message.hints[0]) == hint
    assert read_hint(sent(trust, RenewalHint(4)).hints[0]).renew_before is None


def test_what_the_agent_writes_the_service_reads() -> None:
    version = TrustVersion(3, HASH, "02" * 32)
    reports = [ProxyReport("one", "ROOTCA", version, version, "bad_bundle", 4, 0), ProxyReport("two", "ALL")]
    (message,) = report_messages(reports, agent="node", version="1", is_complete=True)

    assert [read_report(each) for each in message.reports] == reports
    assert (message.agent, message.version, message.is_complete) == ("node", "1", True)


def test_reports_are_split_within_the_bound_and_only_the_last_is_complete() -> None:
    reports = [ProxyReport("é" * 200 + str(number), "ROOTCA") for number in range(1000)]
    messages = list(report_messages(reports, agent="node", version="1", is_complete=True))

    assert all(each.ByteSize() <= MAX_MESSAGE_BYTES + 1024 for each in messages)
    assert sum(len(each.reports) for each in messages) == 1000
    assert [each.is_complete for each in messages] == [False] * (len(messages) - 1) + [True]
    assert [each.agent for each in messages] == ["node"] + [""] * (len(messages) - 1)
    assert all(len(each.proxy.encode()) <= 256 for message in messages for each in message.reports)


def test_without_reports_there_is_one_message() -> None:
    (message,) = report_messages([], is_complete=True)

    assert message.is_complete


DER = ROOT.certificate.public_bytes(Encoding.DER)
UNREADABLE = {
    "another trust domain": (issuance_pb2.Bundle(trust_domain="other.org", x509_authorities=[DER]), [], []),
    "nothing": (issuance_pb2.Bundle(), [], []),
    "no authority": (issuance_pb2.Bundle(trust_domain=TD.name), [], []),
    "no certificate": (issuance_pb2.Bundle(trust_domain=TD.name, x509_authorities=[b"x"]), [], []),
    "no list": (issuance_pb2.Bundle(trust_domain=TD.name, x509_authorities=[DER]), [b"x"], []),
    "many": (issuance_pb2.Bundle(trust_domain=TD.name, x509_authorities=[DER] * 257), [], []),
    "deep": (
        issuance_pb2.Bundle(trust_domain=TD.name, x509_authorities=[DER]), [], [DER] * (MAX_INTERMEDIATES + 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_an_error_of_ours(case: str) -> None:
    bundle, crls, intermediates = UNREADABLE[case]

    with pytest.raises(CitadelError):
        read_trust(trust_pb2.Trust(bundle=bundle, crls=crls, intermediates=intermediates), TD)


def test_a_version_that_is_none_is_not_told_back() -> None:
    assert read_version(trust_pb2.Trust()) is None


def test_a_hint_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        read_hint(trust_pb2.RenewalHint(renew_before=Timestamp(seconds=1 << 60)))
    assert caught.value.rule == "renewal_hint"


def test_another_trust_domain_may_have_the_same_authority() -> None:
    other = Trust(Bundle(TrustDomain("other.org"), (ROOT.certificate,)))

    with pytest.raises(VerificationFailed):
        TrustState(other).take(Trust(BUNDLE), NOW)

"""Is a run worth its numbers? Each rule gives its reasons in words; a run with any is not valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from citadel_py.app.bench_callers import SentCSRs
from citadel_py.app.bench_calls import Outcome, Sample
from citadel_py.core.bundle import Bundle
from citadel_py.core.errors import CitadelError
from citadel_py.core.keys import same_public_key
from citadel_py.core.pem import load_certificates
from citadel_py.core.verify import verify_svid


def problems_of_answers(outcome: Outcome, sent: SentCSRs, bundle: Bundle, *, now: datetime) -> Iterator[str]:
    """Failed calls, no answers, serial numbers that come twice, sampled chains that do not verify."""
    if outcome.failures:
        yield f"{outcome.failures} calls failed, the first with {outcome.first_failure}"
    if not outcome.latencies_s:
        yield "no certificate was issued"
    if repeated := [serial for serial, times in Counter(outcome.serials).items() if times > 1]:
        yield f"{len(repeated)} serial numbers came more than once, {repeated[0]} among them"
    for sample in outcome.samples:
        if wrong := _problem(sample, sent, bundle, now):
            yield f"a sampled chain does not verify: {wrong}"
            return


def problems_of_ledger(outcome: Outcome, recorded: Sequence[str]) -> Iterator[str]:
    """Answers that are not in the ledger, and rows that nobody got an answer for."""
    answered, rows = Counter(outcome.serials), Counter(recorded)
    if missing := answered - rows:
        yield f"{missing.total()} certificates are not in the ledger"
    if surplus := rows - answered:
        yield f"{surplus.total()} rows of the ledger have no answer"


def _problem(sample: Sample, sent: SentCSRs, bundle: Bundle, now: datetime) -> str | None:
    chain = [each for element in sample.chain for each in load_certificates(element.encode())]
    try:
        svid = verify_svid(chain, bundle, now=now)
    except CitadelError as error:
        return error.message
    is_its_own = same_public_key(svid.leaf.public_key(), sent.keys[sample.csr])  # type: ignore[arg-type]  # compared as bytes
    return None if is_its_own else "it is for another key than the CSR's"

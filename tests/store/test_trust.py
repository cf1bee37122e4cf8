"""What an agent trusted last is there after a restart, or is told to be damaged; it is never something else."""

from __future__ import annotations

import json
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import build_crl
from citadel_py.core.errors import BadInput, CitadelError, Unavailable
from citadel_py.core.spiffe import TrustDomain
from citadel_py.core.trust import Trust
from citadel_py.store.trust import TrustFile
from tests.ca.support import HOUR, TD, Clock, make_authority

NOW = Clock().now()
ROOT, SIGNER = make_authority(NOW)
CRLS = tuple(build_crl(each, [], number=3, now=NOW, next_update=NOW + HOUR) for each in (ROOT, SIGNER))
WITH_LISTS = Trust(Bundle(TD, (ROOT.certificate,), 7), CRLS, (SIGNER.certificate,))
PLAIN = Trust(Bundle(TD, (ROOT.certificate,), 7, timedelta(hours=1)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trust.json"


@pytest.mark.parametrize("trust", [PLAIN, WITH_LISTS], ids=["plain", "lists"])
def test_what_was_saved_is_there_after_a_restart(path: Path, trust: Trust) -> None:
    TrustFile(path).save(trust, NOW)

    assert TrustFile(path).load(TD) == (trust, NOW)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_before_anything_was_saved_there_is_nothing(path: Path) -> None:
    assert TrustFile(path).load(TD) is None


def test_what_is_of_another_trust_domain_is_refused(path: Path) -> None:
    TrustFile(path).save(PLAIN, NOW)

    with pytest.raises(BadInput) as caught:
        TrustFile(path).load(TrustDomain("other.org"))
    assert caught.value.rule == "trust_file_foreign"


def test_a_change_by_hand_is_noticed(path: Path) -> None:
    TrustFile(path).save(PLAIN, NOW)
    document = json.loads(path.read_text())
    document["trust"]["bundle"]["spiffe_sequence"] = 9
    path.write_text(json.dumps(document))

    with pytest.raises(BadInput) as caught:
        TrustFile(path).load(TD)
    assert caught.value.rule == "trust_file_corrupt"


def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        TrustFile(tmp_path / "gone" / "trust.json").save(PLAIN, NOW)


@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_a_damaged_file_is_an_error_of_ours_or_still_whole(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    TrustFile(path).save(WITH_LISTS, NOW)
    data = path.read_bytes()
    path.write_bytes(data[: at % len(data)] + noise + data[at % len(data) + len(noise) :])
    try:
        assert TrustFile(path).load(TD) == (WITH_LISTS, NOW)
    except CitadelError as error:
        assert error.rule.startswith("trust_file")  # noqa: PT017 - either is right

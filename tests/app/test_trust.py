"""What a service has agents trust: the bundle and crl.pem beside it, of which a bad one harms nobody."""

from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from citadel_py.app import trust as trust_module
from citadel_py.app.trust import LAST_MOMENTS, LiveTrust
from citadel_py.core.bundle import Bundle
from citadel_py.core.crl import CRL, Revoked, build_crl, crls_pem
from citadel_py.core.engine import Engine
from citadel_py.core.issuer import Issuer
from citadel_py.core.profile import Authority
from citadel_py.core.trust import Trust
from citadel_py.obs.metrics import CAMetrics
from tests.ca.support import HOUR, TD, Clock, make_authority, make_engine, new_serial, until


@dataclass
class Ca:
    """A directory, an engine, and what was published."""

    directory: Path
    clock: Clock = field(default_factory=Clock)
    published: list[Trust] = field(default_factory=list)
    metrics: CAMetrics = field(default_factory=CAMetrics)

    def __post_init__(self) -> None:
        self.root, self.signer = make_authority(self.clock.now())
        self.bundle = Bundle(TD, (self.root.certificate,))
        self.engine = self.new_engine(self.signer, self.bundle)
        self.live = LiveTrust(
            self.directory,
            lambda: self.engine,
            publish=lambda trust, _authority: self.published.append(trust),
            now=self.clock.now,
            metrics=self.metrics,
        )

    def new_engine(self, signer: Authority, bundle: Bundle) -> Engine:
        issuer = Issuer.activated(signer, (signer.certificate,), bundle, now=self.clock.now(), serial=new_serial())
        return replace(make_engine(self.clock.now()), issuer=issuer)

    def lists(self, *authorities: Authority, number: int = 1, lasts: timedelta = 100 * HOUR) -> tuple[CRL, ...]:
        now = self.clock.now()
        revoked = [Revoked(7, now)]
        by = authorities or (self.root, self.signer)
        return tuple(build_crl(each, revoked, number=number, now=now, next_update=now + lasts) for each in by)

    def write(self, content: bytes | tuple[CRL, ...]) -> None:
        data = content if isinstance(content, bytes) else crls_pem(content)
        (self.directory / "crl.pem").write_bytes(data)

    @property
    def served(self) -> Trust:
        return self.published[-1]

    @property
    def problem(self) -> str:
        return self.live.problem() or ""


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path)


async def test_without_a_file_there_is_the_bundle_and_nothing_is_wrong(ca: Ca) -> None:
    await ca.live.load()

    assert (ca.served.bundle, ca.served.crls) == (ca.bundle, ())
    assert ca.live.problem() is None


async def test_lists_of_the_whole_path_are_served_with_the_intermediate(ca: Ca) -> None:
    ca.write(lists := ca.lists())
    await ca.live.load()

    assert (ca.served.crls, ca.served.intermediates) == (lists, (ca.signer.certificate,))
    assert ca.live.crls == lists
    assert ca.live.problem() is None
    end = ca.metrics.crl_next_update.collect()
    assert [sample.value for each in end for sample in each.samples] == [(ca.clock.now() + 100 * HOUR).timestamp()]


BAD = {
    "no list": b"no list",
    "cut off": b"-----BEGIN X509 CRL-----\nMII",
    "too long": b"-----BEGIN X509 CRL-----\n" + b"x" * (1 << 20),
    "unreadable": b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n",
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_file_is_told_and_the_last_good_lists_go_on(ca: Ca, bad: str) -> None:
    ca.write(lists := ca.lists())
    await ca.live.load()
    with capture_logs() as log:
        ca.write(BAD[bad])
        await ca.live.load()
        await ca.live.load()

    assert ca.served.crls == lists
    assert "crl.pem cannot be used" in ca.problem
    assert len([each for each in log if each["event"] == "trust.refused"]) == 1
    ca.write(newer := ca.lists(number=2))
    await ca.live.load()
    assert ca.served.crls == newer
    assert ca.live.problem() is None


async def test_lists_of_a_part_of_the_path_are_not_served(ca: Ca) -> None:
    ca.write(ca.lists(ca.signer))
    await ca.live.load()

    assert ca.served.crls == ()
    assert "has no usable CRL" in ca.problem


async def test_older_lists_do_not_take_the_place_of_newer_ones(ca: Ca) -> None:
    ca.write(newer := ca.lists(number=5))
    await ca.live.load()
    ca.write(ca.lists(number=4))
    await ca.live.load()

    assert ca.served.crls == newer
    assert "lower than 5" in ca.problem


async def test_a_file_that_goes_away_takes_nothing_with_it(ca: Ca) -> None:
    ca.write(lists := ca.lists())
    await ca.live.load()
    (ca.directory / "crl.pem").unlink()
    await ca.live.load()

    assert ca.served.crls == lists
    assert "is gone" in ca.problem


async def test_a_directory_that_cannot_be_read_is_told(ca: Ca) -> None:
    (ca.directory / "crl.pem").mkdir()
    await ca.live.load()

    assert "cannot be used" in ca.problem
    assert ca.served.bundle == ca.bundle


async def test_lists_that_end_soon_are_told_and_taken_back_before_they_do(ca: Ca) -> None:
    ca.write(ca.lists(lasts=4 * HOUR))
    await ca.live.load()
    ca.clock.advance(3 * HOUR + timedelta(minutes=1))
    await ca.live.load()
    assert ca.served.crls
    assert "there is no newer one" in ca.problem

    ca.clock.advance(timedelta(minutes=59) - LAST_MOMENTS)
    await ca.live.load()
    assert ca.served.crls == ()
    assert "ended at" in ca.problem
    end = ca.metrics.crl_next_update.collect()
    assert all(math.isnan(sample.value) for each in end for sample in each.samples)


async def test_a_new_root_without_a_list_takes_lists_back_until_it_has_one(ca: Ca) -> None:
    ca.write(ca.lists())
    await ca.live.load()
    root, _ = make_authority(ca.clock.now())
    wider = ca.bundle.with_authorities((*ca.bundle.authorities, root.certificate))
    ca.engine = ca.new_engine(ca.signer, wider)
    ca.live.look()

    assert (ca.served.bundle, ca.served.crls) == (wider, ())
    ca.write(all_of_them := ca.lists(ca.root, ca.signer, root, number=2))
    await ca.live.load()
    assert ca.served.crls == all_of_them


async def test_leaves_of_an_intermediate_that_signs_no_more_still_need_its_list(ca: Ca) -> None:
    ca.write(ca.lists())
    await ca.live.load()
    earlier = ca.signer
    root, signer = make_authority(ca.clock.now())
    wider = ca.bundle.with_authorities((*ca.bundle.authorities, root.certificate))
    ca.engine = ca.new_engine(signer, wider)
    ca.write(ca.lists(ca.root, root, signer, number=2))
    await ca.live.load()
    assert ca.served.crls == ()

    ca.write(all_of_them := ca.lists(ca.root, root, signer, earlier, number=3))
    await ca.live.load()
    assert ca.served.crls == all_of_them
    assert ca.served.intermediates == (signer.certificate, earlier.certificate)


async def test_another_bundle_without_a_higher_sequence_is_told_until_it_grows(ca: Ca) -> None:
    await ca.live.load()
    root, _ = make_authority(ca.clock.now())
    changed = replace(ca.bundle, authorities=(*ca.bundle.authorities, root.certificate))
    ca.engine = ca.new_engine(ca.signer, changed)
    ca.live.look()
    assert "agents refuse the bundle" in ca.problem

    ca.engine = ca.new_engine(ca.signer, replace(changed, sequence=2))
    ca.live.look()
    assert ca.live.problem() is None


async def test_what_has_not_changed_is_not_published_again(ca: Ca) -> None:
    ca.write(ca.lists())
    for _ in range(3):
        await ca.live.load()

    assert len(ca.published) == 1


async def test_the_file_is_followed_by_content(ca: Ca, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_module, "LOOK_EVERY", timedelta(milliseconds=5))
    following = asyncio.create_task(ca.live.run())
    ca.write(lists := ca.lists())
    await until(lambda: bool(ca.published) and ca.served.crls == lists)
    other = ca.directory / "other"
    other.write_bytes(crls_pem(newer := ca.lists(number=2)))
    shutil.copystat(ca.directory / "crl.pem", other)
    other.rename(ca.directory / "crl.pem")
    await until(lambda: ca.served.crls == newer)
    following.cancel()

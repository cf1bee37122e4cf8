"""A process that dies, or a disk that fails, at any step: the old set, the new one, or 'run it again'."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from citadel_py.core.errors import InvalidConfiguration, Unavailable
from citadel_py.core.pem import load_certificates
from citadel_py.core.spiffe import SpiffeID
from citadel_py.store.authority_dir import AuthoritySet, load
from citadel_py.store.keys import read_key
from citadel_py.store.svids import SVIDFiles
from tests.store.crashing import IDENTITIES, PASSPHRASE, Act, before_step, create, one_of_many, quick_derivation, save
from tests.store.things import WEB, new_pki

REPOSITORY = Path(__file__).parents[2]
SCENARIOS = ["new", "offline", "forced", "forced-offline", "second-attempt"]


def crashed(scenario: str, base: Path) -> list[Path]:
    """One directory for each step before which a process was killed, and the last one, which came to its end."""
    command = [sys.executable, "-m", "tests.store.crashing", scenario, str(base)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return sorted(base.iterdir(), key=lambda place: int(place.name))


def loaded(place: Path) -> AuthoritySet | None:
    """The whole set, or None where it says that it is not finished; anything else fails the test."""
    try:
        return load(place / "ca", passphrase=None)
    except InvalidConfiguration as error:
        if error.rule in ("authority_missing", "authority_unfinished") and "citadel-py init" in error.hints[0]:
            return None
        raise


def check_can_be_finished(place: Path, *, offline: bool) -> None:
    """Init again, without force, makes a whole set where there is none, and leaves no litter."""
    pki = new_pki()
    if loaded(place) is None:
        create(pki, offline=offline)(place)
        whole = loaded(place)
        assert whole is not None
        assert whole.authority.certificate == pki.intermediate.certificate
        assert _litter(place) == []
    root_key = read_key((place / "offline" if offline else place / "ca" / "root") / "tls.key", passphrase=None)
    (certificate,) = load_certificates((place / "ca" / "root" / "tls.crt").read_bytes())
    assert certificate.public_key() == root_key.public_key()
    with pytest.raises(InvalidConfiguration):
        create(pki, offline=offline)(place)


def _litter(place: Path) -> list[Path]:
    inside = (path for name in ("ca", "offline") for path in (place / name).rglob("*"))
    return [path for path in inside if path.name.endswith((".tmp", ".unfinished"))]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_authority_whose_making_was_killed_is_whole_or_can_be_finished(tmp_path: Path, scenario: str) -> None:
    places = crashed(scenario, tmp_path)
    results = [loaded(place) for place in places]
    assert len(places) > 30, "the steps were not seen"
    assert results[-1] is not None
    assert None in results
    for place in places:
        check_can_be_finished(place, offline="offline" in scenario or scenario == "second-attempt")


def test_an_unfinished_authority_is_no_excuse_to_overwrite_the_root_of_another(tmp_path: Path) -> None:
    create(new_pki(), offline=True)(tmp_path)
    key = (tmp_path / "offline" / "tls.key").read_bytes()
    (tmp_path / "ca").rename(tmp_path / "finished")
    create(new_pki())(tmp_path)
    (tmp_path / "ca" / "bundle.json").unlink()
    (tmp_path / "ca" / "init.unfinished").touch()
    with pytest.raises(InvalidConfiguration) as caught:
        create(new_pki(), offline=True)(tmp_path)
    assert caught.value.rule == "root_key_exists"
    assert (tmp_path / "offline" / "tls.key").read_bytes() == key


def failing_at_each_step(act: Act, places: Iterator[Path]) -> Iterator[Path]:
    """One directory for each step at which the disk was full and that made the whole fail."""
    struck = True

    def fail() -> None:
        nonlocal struck
        struck = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in itertools.count(1):
        place, struck = next(places), False
        with before_step(step, fail):
            try:
                act(place)
            except Unavailable as error:
                if error.rule != "file_not_written" or error.hints != ("make room on the file system",):
                    raise
                yield place
        if not struck:
            return


@pytest.mark.parametrize("offline", [False, True])
def test_an_authority_for_which_there_was_no_room_can_be_finished(tmp_path: Path, *, offline: bool) -> None:
    places = (tmp_path / str(number) for number in itertools.count())
    failed = list(failing_at_each_step(create(new_pki(), offline=offline), places))
    assert len(failed) > 30, "the steps were not seen"
    for place in failed:
        check_can_be_finished(place, offline=offline)


def test_of_an_svid_whose_saving_was_killed_the_old_or_the_new_is_there(tmp_path: Path) -> None:
    places = crashed("svid", tmp_path)
    reports: list[str] = []
    found = [SVIDFiles(place / "svids", report=reports.append).load(WEB) for place in places]
    assert reports == []
    serials = [held.svid.serial for held in found if held is not None]
    assert len(serials) == len(places) > 4
    assert len(set(serials)) == 2
    assert serials == sorted(serials, key=[serials[0], serials[-1]].index), "the new one came and went again"


def test_of_encrypted_svids_each_is_the_old_or_the_new_one_wherever_saving_them_was_killed(tmp_path: Path) -> None:
    places = crashed("sealed-svids", tmp_path)
    ids = [WEB, *map(one_of_many, range(1, IDENTITIES))]
    found = [_serials(place, ids) for place in places]
    old, new = found[0], found[-1]
    assert len(found) > 4 * IDENTITIES
    assert not set(old) & set(new)
    steps = [sum(now == after for now, after in zip(serials, new, strict=True)) for serials in found]
    assert steps == sorted(steps), "a new one came and went again"
    for serials, done in zip(found, steps, strict=True):
        assert serials == [*new[:done], *old[done:]], "one identity after the other"


def test_of_a_plain_svid_whose_encryption_was_killed_nothing_is_lost(tmp_path: Path) -> None:
    places = crashed("sealing", tmp_path)
    serials = [_serials(place, [WEB])[0] for place in places]
    assert len(places) > 4
    assert len(set(serials)) == 1


def _serials(place: Path, ids: Sequence[SpiffeID]) -> list[str]:
    """Of what is found with the passphrase, and all of it is of use."""
    files = SVIDFiles(place / "svids", PASSPHRASE, report=pytest.fail)
    with quick_derivation():
        held = [files.load(id) for id in ids]
    return [each.svid.serial for each in held if each is not None]


def test_of_an_svid_for_which_there_was_no_room_the_old_one_is_there(tmp_path: Path) -> None:
    old, new = save(new_pki()), save(new_pki())
    old(tmp_path)
    before = list((tmp_path / "svids").iterdir())
    for _ in failing_at_each_step(new, itertools.repeat(tmp_path)):
        assert SVIDFiles(tmp_path / "svids", report=pytest.fail).load(WEB) is not None
        assert len(list((tmp_path / "svids").iterdir())) <= len(before) + 1

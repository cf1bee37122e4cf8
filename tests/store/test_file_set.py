"""Files that change together: for readers at any moment, after a crash at any step, and on a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from citadel_py.core.errors import InvalidConfiguration, Unavailable
from citadel_py.store.file_set import open_file_set
from tests.store.crashing import MODES, before_step, replace_files

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(content: str) -> dict[str, bytes]:
    return dict.fromkeys(MODES, content.encode())


def seen(directory: Path) -> set[str]:
    """What a reader finds under the three names; empty where there is none of them."""
    return {(directory / name).read_text() for name in MODES if (directory / name).exists()}


def sets(directory: Path) -> list[Path]:
    return sorted(directory.glob("..set-*"))


def test_files_are_found_under_their_names_with_their_modes_whatever_the_umask(out: Path) -> None:
    before = os.umask(0o077)
    try:
        replace_files("one")(out.parent)
    finally:
        os.umask(before)
    assert seen(out) == {"one"}
    assert {name: stat.S_IMODE((out / name).stat().st_mode) for name in MODES} == MODES
    assert stat.S_IMODE(out.stat().st_mode) == 0o700


def test_a_directory_that_is_there_keeps_its_mode(out: Path) -> None:
    out.mkdir()
    out.chmod(0o750)
    replace_files("one")(out.parent)
    assert stat.S_IMODE(out.stat().st_mode) == 0o750


def test_whoever_follows_the_link_once_reads_one_set_while_sets_come_and_go(out: Path) -> None:
    """Each reader is paused by chance between two files: the operating system's doing, on two cores."""
    found: Counter[int] = Counter()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            place = os.path.realpath(out / "..data")
            try:
                found[len({Path(place, name).read_bytes() for name in MODES})] += 1
            except FileNotFoundError:
                found[0] += 1  # two changes between two files: such a reader begins again

    with open_file_set(out, MODES) as files:
        files.replace(contents("0"))
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for number in range(1, 200):
            files.replace(contents(str(number)))
        is_over.set()
        for reader in readers:
            reader.join()
    assert found[1] > 0
    assert set(found) <= {0, 1}, f"mixed: {found}"


def test_a_reader_in_the_middle_of_the_old_set_can_finish(out: Path) -> None:
    replace_files("one")(out.parent)
    place = Path(os.path.realpath(out / "..data"))
    replace_files("two")(out.parent)
    assert {(place / name).read_text() for name in MODES} == {"one"}


def test_the_set_before_the_last_is_gone_with_its_key(out: Path) -> None:
    with open_file_set(out, MODES) as files:
        for number in range(5):
            files.replace(contents(str(number)))
    assert {(place / "tls.key").read_text() for place in sets(out)} == {"3", "4"}


def test_equal_content_changes_nothing(out: Path) -> None:
    with open_file_set(out, MODES) as files:
        assert files.replace(contents("one"))
        before = (out / "..data").readlink()
        assert not files.replace(contents("one"))
        assert (out / "..data").readlink() == before


@pytest.mark.parametrize("name", [*MODES, "..data"])
def test_a_file_that_somebody_else_put_there_is_never_overwritten(out: Path, name: str) -> None:
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(InvalidConfiguration) as refused, open_file_set(out, MODES):
        pass
    assert refused.value.rule == "output_taken"
    assert (out / name).read_text() == "precious"


@pytest.mark.parametrize("name", [*MODES, "..data"])
def test_a_link_that_leads_elsewhere_is_not_ours(out: Path, tmp_path: Path, name: str) -> None:
    out.mkdir()
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidConfiguration) as refused, open_file_set(out, MODES):
        pass
    assert refused.value.rule == "output_taken"


def test_a_directory_in_which_others_may_write_is_refused(out: Path) -> None:
    out.mkdir()
    out.chmod(0o777)
    with pytest.raises(InvalidConfiguration) as refused, open_file_set(out, MODES):
        pass
    assert refused.value.rule == "directory_writable_by_others"


def test_a_file_in_the_place_of_the_directory_is_refused(out: Path) -> None:
    out.write_text("precious")
    with pytest.raises(InvalidConfiguration) as refused, open_file_set(out, MODES):
        pass
    assert refused.value.rule == "output_taken"
    assert out.read_text() == "precious"


def test_a_set_that_somebody_removed_is_written_again(out: Path) -> None:
    replace_files("one")(out.parent)
    for place in sets(out):
        shutil.rmtree(place)
    replace_files("one")(out.parent)
    assert seen(out) == {"one"}


def test_a_second_writer_is_refused_while_the_first_is_there(out: Path) -> None:
    with (
        open_file_set(out, MODES),
        pytest.raises(Unavailable) as refused,
        open_file_set(out, MODES),
    ):
        pass
    assert refused.value.rule == "locked_by_another"
    replace_files("one")(out.parent)


def crashed(scenario: str, base: Path) -> list[Path]:
    """One directory for each step before which a writer was killed, and the last one, which came to its end."""
    command = [sys.executable, "-m", "tests.store.crashing", scenario, str(base)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return sorted((place / "out" for place in base.iterdir()), key=lambda out: int(out.parent.name))


@pytest.mark.parametrize(
    ("scenario", "expected"), [("first-file-set", [set(), {"one"}]), ("file-set", [{"two"}, {"three"}])]
)
def test_a_writer_that_is_killed_at_any_step_leaves_one_set_and_the_next_writer_goes_on(
    tmp_path: Path, scenario: str, expected: list[set[str]]
) -> None:
    places = crashed(scenario, tmp_path)
    found = [seen(out) for out in places]
    assert len(places) > 15, "the steps were not seen"
    assert [each for each, _ in itertools.groupby(found)] == expected, "mixed, or the new set came and went again"
    for out in places:
        replace_files("next")(out.parent)
        assert seen(out) == {"next"}
        assert len(sets(out)) <= 2, "what the killed one left is still there"
        assert {path.name for path in out.iterdir()} - {place.name for place in sets(out)} <= {
            *MODES,
            "..data",
            "..new",
        }


def test_a_disk_that_is_full_at_any_step_leaves_one_set_and_the_next_try_goes_on(tmp_path: Path) -> None:
    struck = []

    def fail() -> None:
        struck.append(True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in itertools.count(1):
        out = tmp_path / str(step) / "out"
        with open_file_set(out, MODES) as files:
            files.replace(contents("one"))
            files.replace(contents("two"))
            is_done = False
            with suppress(Unavailable), before_step(step, fail):
                files.replace(contents("three"))
                is_done = True
            assert seen(out) in ({"two"}, {"three"})
            files.replace(contents("three"))
            assert seen(out) == {"three"}
        if is_done and not struck:
            break
        struck.clear()
    assert step > 15, "the steps were not seen"

"""Fixtures for every test, and the one rule of CI: a test that cannot run there has failed."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from _environment import envoy_binary as envoy_that_was_set_up
from _environment import envoy_versions

settings.register_profile("citadel-py", deadline=None)  # machines are shared: how long an example takes proves nothing
settings.load_profile("citadel-py")

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def _envoys() -> dict[str, Path]:
    """Version -> binary: what scripts/test hands over, else what an earlier run of it left in the clone."""
    if handed_over := os.environ.get("CITADEL_TEST_ENVOYS"):
        pairs = (entry.partition("=") for entry in handed_over.split(os.pathsep))
        return {version: Path(binary) for version, _, binary in pairs}
    if given := os.environ.get("ENVOY_BIN"):
        return {"given": Path(given)}
    found = {version: envoy_that_was_set_up(version) for version in envoy_versions()}
    return {version: binary for version, binary in found.items() if binary}


ENVOYS = _envoys()
NO_ENVOY = "no Envoy: scripts/test sets one up, or ENVOY_BIN names one"


@pytest.fixture(scope="session")
def envoy_binary() -> Path:
    """The newest Envoy there is."""
    if not ENVOYS:
        pytest.skip(NO_ENVOY)
    return next(iter(ENVOYS.values()))


@pytest.fixture(scope="session", params=list(ENVOYS) or ["none"], ids=lambda version: f"envoy-{version}")
def each_envoy(request: pytest.FixtureRequest) -> Path:
    """Every Envoy there is, one after the other."""
    if not ENVOYS:
        pytest.skip(NO_ENVOY)
    return ENVOYS[request.param]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        _fail_in_ci(report)
    return report


def _fail_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI:
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be: {report.longrepr}"

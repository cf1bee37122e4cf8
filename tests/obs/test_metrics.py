from __future__ import annotations

import math
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from citadel_py.obs.metrics import AgentMetrics, CAMetrics, Metrics

OURS = [CAMetrics, AgentMetrics]


@pytest.mark.parametrize("kind", OURS)
def test_names_follow_the_convention_of_base_units(kind: type[Metrics]) -> None:
    for metric in kind().registry.collect():
        if metric.name.startswith(("process_", "python_")):
            continue
        assert re.fullmatch(r"citadel_[a-z_]+", metric.name)
        if metric.type == "histogram":
            assert metric.name.endswith("_seconds")
        assert metric.documentation.endswith(".")


@pytest.mark.parametrize("kind", OURS)
def test_a_moment_is_not_a_number_until_it_is_known(kind: type[Metrics]) -> None:
    moments = [
        sample.value
        for family in text_string_to_metric_families(kind().exposition().decode())
        for sample in family.samples
        if sample.name.endswith("_timestamp_seconds")
    ]

    assert moments
    assert all(math.isnan(moment) for moment in moments)


def test_two_processes_in_one_do_not_share_their_metrics() -> None:
    first, second = CAMetrics(), CAMetrics()
    first.certificates_issued.labels(method="jwt").inc()

    assert b'citadel_certificates_issued_total{method="jwt"}' not in second.exposition()


def test_a_scrape_holds_the_documented_samples_and_no_creation_times() -> None:
    metrics = CAMetrics()
    metrics.ledger_entries.inc()

    assert "_created" not in metrics.exposition().decode()

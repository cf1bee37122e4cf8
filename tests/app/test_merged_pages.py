"""Pages of several workers as one."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from citadel_py.app.merged_pages import merged_metrics, merged_trust
from citadel_py.obs.metrics import CAMetrics, WorkersMetrics


def page_of(issued: int) -> str:
    metrics = CAMetrics()
    metrics.certificates_issued.labels("jwt").inc(issued)
    metrics.ledger_commit_duration.observe(0.01)
    return metrics.exposition().decode()


def test_each_family_is_there_once_with_the_samples_of_all() -> None:
    text = merged_metrics(WorkersMetrics().exposition().decode(), {0: page_of(3), 7: page_of(4)}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE citadel_certificates_issued_total counter\n") == 1
    issued = {sample.labels["worker"]: sample.value for sample in families["citadel_certificates_issued"].samples}
    assert issued == {"0": 3, "7": 4}
    commits = families["citadel_ledger_commit_duration_seconds"]
    assert commits.type == "histogram"
    counts = {each.labels["worker"]: each.value for each in commits.samples if each.name.endswith("_count")}
    assert counts == {"0": 1, "7": 1}
    assert [sample.labels for sample in families["citadel_workers"].samples] == [{}]


def test_a_page_that_is_merged_alone_says_what_it_said() -> None:
    own = page_of(1)
    names = [(each.name, each.labels) for each in samples(own)]
    assert [(each.name, each.labels) for each in samples(merged_metrics(own, {}).decode())] == names


def samples(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def trust(*proxies: tuple[str, str, str]) -> dict[str, Any]:
    rows = [
        {"state": state, "caller": "a", "agent": "b", "proxy": proxy, "resource": "ROOTCA", "time": time}
        for proxy, state, time in proxies
    ]
    count = {"rejected": 0, "behind": 0, "gone": 0, "current": 0}
    return {"version": 1, "sequence": 3, "count": count, "lacking": 1, "is_complete": True, "proxies": rows}


def test_who_trusts_what_is_told_by_the_worker_that_knows_it_best() -> None:
    one = trust(("p", "gone", "2030-01-01T00:00:00Z"), ("q", "current", "2030-01-01T00:00:00Z"))
    other = trust(("p", "current", "2030-01-02T00:00:00Z"), ("r", "rejected", "2030-01-01T00:00:00Z"))
    page = merged_trust([one, other])
    assert page["proxies"][0]["state"] == "rejected"
    assert {row["proxy"]: row["state"] for row in page["proxies"]} == {"r": "rejected", "p": "current", "q": "current"}
    assert page["count"] == {"rejected": 1, "behind": 0, "gone": 0, "current": 2}
    assert (page["sequence"], page["is_complete"]) == (3, True)


def test_without_workers_the_page_is_empty() -> None:
    assert merged_trust([]) == {}

"""What several workers say as one page, as if it came from one process: their metrics, and who trusts what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from citadel_py.app.worker_control import Facts

TRUST_PAGE = "/trust"  # as in ca/trust_page.py, which imports grpc
_LIMIT = 1000
_WORST_FIRST = ("rejected", "behind", "gone", "current")


def merged_metrics(own: str, workers: Mapping[int, str]) -> bytes:
    """Pages in the Prometheus text format. Samples of a worker get its number as the label `worker`."""
    families: dict[str, Metric] = {}
    _add(families, own, {})
    for number, text in workers.items():
        _add(families, text, {"worker": str(number)})
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


def merged_trust(pages: Sequence[Facts]) -> dict[str, Any]:
    """Documents of ca/trust_page.py; empty where no worker answers.

    An agent that came back may be known to several workers: of what they say the newest is shown.
    Where not all rows are here the counts are those of the rows, and `lacking` is an upper bound.
    """
    if not pages:
        return {}
    newest: dict[tuple[object, ...], Facts] = {}
    for row in sorted((row for page in pages for row in page["proxies"]), key=lambda row: str(row["time"])):
        newest[row["caller"], row["agent"], row["proxy"], row["resource"]] = row
    proxies = sorted(newest.values(), key=lambda row: _WORST_FIRST.index(row["state"]))
    count = Counter(row["state"] for row in proxies)
    return {
        **pages[0],
        "count": {state: count[state] for state in pages[0]["count"]},
        "lacking": sum(page["lacking"] for page in pages),
        "is_complete": len(proxies) <= _LIMIT and all(page["is_complete"] for page in pages),
        "proxies": proxies[:_LIMIT],
    }


class _Families(Collector):
    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


def _add(families: dict[str, Metric], text: str, labels: Mapping[str, str]) -> None:
    for family in text_string_to_metric_families(text):
        whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        for sample in family.samples:
            whole.add_sample(sample.name, {**sample.labels, **labels}, sample.value)

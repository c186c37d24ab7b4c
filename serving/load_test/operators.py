"""What a server tells its operators over HTTP: the batches that it formed, and the memory of its processes."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections import Counter
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

BATCHES = "upsnet_executed_batches"  # a counter, by model and size
TIMEOUT = 5.0


class Snapshot(NamedTuple):
    """At one moment."""

    batches: Counter[tuple[str, str]]  # how often a batch of a size was executed, by (model, size)
    memory: dict[str, int]  # resident bytes, by process

    @classmethod
    def of(cls, address: str) -> Snapshot | None:
        """From host:port of the metrics; None where nothing answers there."""
        try:
            return cls(_batches(_get(f"http://{address}/metrics")), _memory(_get(f"http://{address}/health")))
        except (OSError, http.client.HTTPException):
            return None

    def batches_since(self, before: Snapshot) -> dict[str, dict[str, int]]:
        """By model, then by size."""
        found: dict[str, dict[str, int]] = {}
        for (model, size), times in sorted((self.batches - before.batches).items()):
            found.setdefault(model, {})[size] = times
        return found


def _get(url: str) -> str:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=TIMEOUT) as answer:
            return answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:  # /health of a server that is not ready has a body, too
        return error.read().decode(errors="replace")


def _batches(text: str) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        if family.name == BATCHES:
            for sample in family.samples:
                found[sample.labels["model"], sample.labels["size"]] += int(sample.value)
    return found


def _memory(text: str) -> dict[str, int]:
    try:
        memory = json.loads(text)["memory"]
    except (ValueError, LookupError, TypeError):
        return {}  # another server than ours: it has no such page
    return {str(name): int(size) for name, size in memory.items()}

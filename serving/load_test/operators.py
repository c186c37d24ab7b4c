"""What a server tells its operators: the batches that it formed, the memory of its processes, its restarts."""

from __future__ import annotations

import http.client
import urllib.request
from collections import Counter
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT = 5.0


class Snapshot(NamedTuple):
    """At one moment."""

    batches: Counter[tuple[str, str]]  # how often a batch of a size was executed, by (model, size)
    memory: dict[str, int]  # resident bytes, by process
    restarts: int  # of Triton

    @classmethod
    def of(cls, address: str) -> Snapshot | None:
        """From host:port of the metrics; None where none answer there."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"http://{address}/metrics", timeout=TIMEOUT
            ) as answer:
                return cls.read(answer.read().decode())
        except (OSError, ValueError, http.client.HTTPException):
            return None

    @classmethod
    def read(cls, text: str) -> Snapshot:
        """From Prometheus' text; what is not told counts as nothing."""
        found = cls(Counter(), {}, 0)
        families = text_string_to_metric_families(text)
        for sample in (sample for family in families for sample in family.samples):
            match sample.name:
                case "upsnet_executed_batches_total":
                    found.batches[sample.labels["model"], sample.labels["size"]] += int(sample.value)
                case "upsnet_resident_memory_bytes":
                    found.memory[sample.labels["process"]] = int(sample.value)
                case "process_resident_memory_bytes":
                    found.memory["service"] = int(sample.value)
                case "upsnet_triton_restarts_total":
                    found = found._replace(restarts=int(sample.value))
        return found

    def batches_since(self, before: Snapshot) -> dict[str, dict[str, int]]:
        """By model, then by size."""
        found: dict[str, dict[str, int]] = {}
        for (model, size), times in sorted((self.batches - before.batches).items()):
            found.setdefault(model, {})[size] = times
        return found

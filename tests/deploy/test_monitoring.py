"""What the dashboard, the alerts and the autoscaler ask for is held against the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from serving.front.canary import Canary
from serving.front.operators import Operators
from serving.front.recorder import Recorder, RecorderSettings
from serving.front.refusal import CODES
from serving.front.rest import STATUS
from serving.front.sampling import Sampling
from serving.front.settings import FrontSettings
from serving.front.shared_memory import SharedMemory
from serving.front.telemetry import make_telemetry
from serving.front.upstream import Upstreams
from serving.record import Outcome, Record
from tests.deploy.manifests import DEPLOY, KUBERNETES, ROOT, documents
from tests.serving.front.fake import FakeFleet
from tests.serving.ops.fakes import LIMITS, FakeBackend

MONITORING = DEPLOY / "monitoring"
# Of Triton (docs/user_guide/metrics.md of its repository), as the dashboard and the autoscaler use them.
TRITON = {
    "nv_inference_queue_duration_us": {"model", "version"},
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_request_duration_us": {"model", "version"},
    "nv_inference_pending_request_count": {"model", "version"},
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_gpu_memory_used_bytes": {"gpu_uuid"},
}
# Of the models' processes, which run inside Triton alone.
STUB = {"upsnet_stage_milliseconds_total": {"model", "stage"}, "upsnet_executed_batches_total": {"model", "size"}}
OF_PROMETHEUS = {"instance", "job", "le", "namespace", "pod"}


def exposed(folder: Path) -> dict[str, set[str]]:
    """Every series that the operators' port has of our own, with its labels."""
    telemetry = make_telemetry(None, None)
    shared = SharedMemory(folder, LIMITS)
    settings = FrontSettings("127.0.0.1", 0, None, 0, LIMITS, folder)
    fleet: Any = FakeFleet(FakeBackend(folder), LIMITS)
    Operators(Upstreams(fleet), shared, settings, telemetry.registry, Sampling())
    Canary(fleet, folder / "canary.json", telemetry.registry)
    Recorder(RecorderSettings(folder / "photos", 1.0), telemetry.registry)
    telemetry.finish(Record("http", "ModelInfer", model="upsnet", version="1"))
    telemetry.close()
    return series(generate_latest(telemetry.registry).decode()) | {"upsnet_http_connections": {"port"}}


def series(text: str) -> dict[str, set[str]]:
    """The names in Prometheus' text format, and the labels of each."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r"(\w+)=\"", labels))
    return found


def _expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for alerts in MONITORING.glob("alerts*.yaml"):
        asked += [rule["expr"] for group in documents(alerts)[0]["groups"] for rule in group["rules"]]
    for rule in documents(KUBERNETES / "prometheus-adapter.yaml")[0]["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="x"')
        asked += [rule["seriesQuery"], query.replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])]
    return asked


@pytest.mark.parametrize("expression", _expressions())
def test_metrics_and_labels_that_are_asked_for_exist(expression: str, tmp_path: Path) -> None:
    known = exposed(tmp_path) | STUB | TRITON
    names = re.findall(r"\b(?:upsnet|nv|process)_\w+", re.sub(r'"[^"]*"', "", expression))
    assert names and set(names) <= known.keys()
    labels = re.findall(r"(\w+)\s*[=!]~?\"", expression)
    labels += [label for part in re.findall(r"by \(([^)]*)\)", expression) for label in part.split(", ")]
    assert set(labels) <= set().union(*(known[name] for name in names)) | OF_PROMETHEUS
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def test_the_table_of_metrics_is_whole(tmp_path: Path) -> None:
    page = (ROOT / "docs/operating.md").read_text().partition("## Metrics")[2].partition("\n## ")[0]
    table: dict[str, set[str]] = {}
    for names, labels in re.findall(r"^\| (`upsnet_.*?) \| (.*?) \|", page, re.MULTILINE):
        table |= {name: set(re.findall(r"`(\w+)`", labels)) for name in re.findall(r"`(\w+)`", names)}
    of_histogram = re.compile(r"_(bucket|sum|count)$")
    known = {of_histogram.sub("", name): labels - {"le"} for name, labels in (exposed(tmp_path) | STUB).items()}
    assert table == {name: labels for name, labels in known.items() if name.startswith("upsnet_")}


def test_the_table_of_outcomes_is_whole() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([\d, ]*)\|", page, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(Outcome)
    for name, code, statuses in rows[1:]:
        assert CODES[Outcome(name)].name == code
        assert name == "cancelled" or str(STATUS[Outcome(name)]) in statuses


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)

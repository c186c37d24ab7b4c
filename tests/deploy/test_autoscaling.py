"""The autoscaler's own figures, tried on a day of load by simulation: pods that each answer four requests at a time."""

from __future__ import annotations

import heapq
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.manifests import KUBERNETES, documents

HELD, WAITING = "upsnet_requests_held", "upsnet_requests_waiting"
AT_ONCE, SECONDS = 4, 0.4  # requests that a pod works on, and how long each takes by itself
TO_START = 60.0  # until a pod that is wanted answers
WINDOW = 120.0  # over which the metrics are taken
SYNC, TOLERANCE = 15.0, 0.1  # of the controller, by default
DAY = 7200.0  # a day in two hours, with a rush at its busiest


@dataclass
class Pod:
    ready: float
    waiting: list[float] = field(default_factory=list)
    at_work: int = 0


@dataclass(frozen=True)
class Outcome:
    late: float  # share of the requests that took more than two seconds
    pod_seconds: float
    steps: int  # times that the number of pods changed
    most: int


def photos_per_second(moment: float) -> float:
    rush = 8 if 0.4 * DAY < moment < 0.5 * DAY else 0
    return 4 + 20 * (1 - math.cos(2 * math.pi * moment / DAY)) / 2 + rush


class Cluster:
    """Requests come by chance, each to a pod by chance. The controller is that of Kubernetes: for each metric
    ceil(pods x mean / target), unless the two are within a tenth; the most of them; no more and no fewer than the
    policies allow; fewer only than everything that was wanted within the stabilization window."""

    def __init__(self, autoscaler: dict[str, Any], metrics: dict[str, float]) -> None:
        self.spec, self.metrics = autoscaler, metrics
        self.down = autoscaler["behavior"]["scaleDown"]
        self.chance = random.Random(0)
        self.pods = [Pod(0.0) for _ in range(autoscaler["minReplicas"])]
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.took: list[tuple[float, float]] = []  # of each answer: when, and after how long
        self.queues: list[tuple[float, float]] = []
        self.wanted: list[tuple[float, int]] = []
        self.changes: list[tuple[float, int]] = []
        self.pod_seconds, self.most = 0.0, 0

    def run(self) -> Outcome:
        for what in (self.arrive, self.look, self.scale):
            self.at(SYNC, what)
        while self.events:
            moment, _, what, arguments = heapq.heappop(self.events)
            if moment > DAY:
                break
            what(moment, *arguments)
        late = sum(seconds > 2 for _, seconds in self.took) / len(self.took)
        return Outcome(late, self.pod_seconds, len(self.changes), self.most)

    def at(self, moment: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.events, (moment, self.chance.getrandbits(60), what, arguments))

    def arrive(self, now: float) -> None:
        self.at(now + self.chance.expovariate(photos_per_second(now)), self.arrive)
        pod = self.chance.choice([pod for pod in self.pods if pod.ready <= now])
        pod.waiting.append(now)
        self.begin(now, pod)

    def begin(self, now: float, pod: Pod) -> None:
        while pod.waiting and pod.at_work < AT_ONCE:
            pod.at_work += 1
            self.at(now + SECONDS * self.chance.uniform(0.7, 1.3), self.answer, pod, pod.waiting.pop(0))

    def answer(self, now: float, pod: Pod, came: float) -> None:
        pod.at_work -= 1
        self.took.append((now, now - came))
        self.begin(now, pod)  # also of a pod that has left: it answers what it has

    def look(self, now: float) -> None:
        self.at(now + SYNC, self.look)
        self.queues.append((now, sum(len(pod.waiting) for pod in self.pods) / len(self.pods)))

    def scale(self, now: float) -> None:
        self.at(now + SYNC, self.scale)
        pods = len(self.pods)
        self.pod_seconds, self.most = self.pod_seconds + SYNC * pods, max(self.most, pods)
        held = sum(seconds for when, seconds in self.took[-5_000:] if when > now - WINDOW) / WINDOW / pods
        recent = [length for when, length in self.queues if when > now - WINDOW]
        means = {HELD: held, WAITING: sum(recent) / max(len(recent), 1)}
        ratios = [means[name] / target for name, target in self.metrics.items()]
        wanted = max(pods if abs(ratio - 1) <= TOLERANCE else math.ceil(pods * ratio) for ratio in ratios)
        wanted = min(max(wanted, self.spec["minReplicas"]), self.spec["maxReplicas"])
        self.wanted.append((now, wanted))
        if wanted > pods:
            added = min(wanted - pods, self.allowed(now, "scaleUp", +1))
            self.pods += [Pod(now + TO_START) for _ in range(added)]
        else:
            since = now - self.down["stabilizationWindowSeconds"]
            wanted = max(want for when, want in self.wanted if when > since)
            added = -min(max(pods - wanted, 0), self.allowed(now, "scaleDown", -1))
            del self.pods[pods + added :]
        if added:
            self.changes.append((now, added))

    def allowed(self, now: float, direction: str, sign: int) -> int:
        (policy,) = self.spec["behavior"][direction]["policies"]
        assert policy["type"] == "Pods"
        recent = [sign * count for when, count in self.changes if when > now - policy["periodSeconds"]]
        return max(policy["value"] - sum(count for count in recent if count > 0), 0)


def autoscaler() -> dict[str, Any]:
    (document,) = documents(KUBERNETES / "autoscaling.yaml")
    return document["spec"]


def targets() -> dict[str, float]:
    found = {}
    for metric in autoscaler()["metrics"]:
        assert metric["type"] == "Pods" and metric["pods"]["target"]["type"] == "AverageValue"
        found[metric["pods"]["metric"]["name"]] = float(metric["pods"]["target"]["averageValue"])
    return found


def test_a_day_of_load() -> None:
    both = Cluster(autoscaler(), targets()).run()
    queue = Cluster(autoscaler(), {WAITING: targets()[WAITING]}).run()
    print(f"both: {both}\nqueue alone: {queue}")
    needed = DAY * sum(photos_per_second(moment) for moment in range(int(DAY))) / DAY * SECONDS / AT_ONCE
    assert both.late < 0.005 and both.most < autoscaler()["maxReplicas"]
    assert both.pod_seconds < 2 * max(needed, autoscaler()["minReplicas"] * DAY)
    assert queue.steps > 2 * both.steps and queue.late > 5 * both.late  # why the queue is not all that is looked at


def rules() -> dict[str, dict[str, Any]]:
    """Those of prometheus-adapter.yaml, by the metric that each makes."""
    (values,) = documents(KUBERNETES / "prometheus-adapter.yaml")
    return {rule["name"]["as"]: rule for rule in values["rules"]["custom"]}


def test_the_autoscalers_metrics_are_made() -> None:
    assert targets().keys() == rules().keys() == {HELD, WAITING}
    target = autoscaler()["scaleTargetRef"]
    deployments = [each for each in documents(KUBERNETES / "serving.yaml") if each["kind"] == target["kind"]]
    assert [target["name"], target["apiVersion"]] in [
        [each["metadata"]["name"], each["apiVersion"]] for each in deployments
    ]
    for rule in rules().values():
        assert rule.keys() == {"seriesQuery", "resources", "name", "metricsQuery"}  # what the adapter knows
        labels = set(re.findall(r'(\w+)!=""', rule["seriesQuery"]))
        assert rule["resources"]["overrides"] == {name: {"resource": name} for name in labels} and labels == {
            "namespace",
            "pod",
        }
        assert "<<.Series>>{<<.LabelMatchers>>}" in rule["metricsQuery"] and "by (<<.GroupBy>>)" in rule["metricsQuery"]


def test_keda_asks_the_same() -> None:
    """Of all pods at once, where the adapter is asked for each: KEDA divides by their number."""
    service = next(each for each in documents(KUBERNETES / "kserve.yaml") if each["kind"] == "InferenceService")
    predictor = service["spec"]["predictor"]
    bounds = {name: autoscaler()[name] for name in ("minReplicas", "maxReplicas")}
    assert bounds.items() <= predictor.items()
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    matchers = f'namespace="default",pod=~"{service["metadata"]["name"]}-predictor-.*"'
    asked = {}
    for metric in predictor["autoScaling"]["metrics"]:
        external = metric["external"]
        assert external["metric"]["backend"] == "prometheus" and external["target"]["type"] == "Value"
        asked[external["metric"]["query"]] = float(external["target"]["value"])
    ours = {}
    for name, rule in rules().items():
        series = re.findall(r"^\w+", rule["seriesQuery"])[0]
        query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.LabelMatchers>>", matchers)
        query = query.replace(" by (<<.GroupBy>>) ", "").replace("<<.GroupBy>>, ", "")
        ours[query] = targets()[name]
    assert asked == ours, json.dumps([list(asked), list(ours)], indent=1)
    window = {"stabilizationWindowSeconds": autoscaler()["behavior"]["scaleDown"]["stabilizationWindowSeconds"]}
    assert predictor["autoScaling"]["behavior"]["scaleDown"] == window

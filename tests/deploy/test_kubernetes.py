"""The manifests of a cluster that nobody has here: held against the schemas, each other, and what they start."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.manifests import CONTAINER, KUBERNETES, documents


def test_kubernetes() -> None:
    deployment, service, candidate, candidates_service, policy = documents(KUBERNETES / "serving.yaml")
    for each, its_service in ((deployment, service), (candidate, candidates_service)):
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"memory", "nvidia.com/gpu"} <= container["resources"]["limits"].keys()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):  # by a test inference
            command = container[probe]["exec"]["command"]
            assert (CONTAINER / Path(command[0]).name).stat().st_mode & 0o111
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {port["targetPort"] for port in its_service["spec"]["ports"]} <= ports.keys()
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert its_service["spec"]["selector"] == each["spec"]["selector"]["matchLabels"] == labels
    (apps,) = policy["spec"]["podSelector"]["matchExpressions"]
    assert (apps["key"], apps["operator"]) == ("app", "In")
    assert apps["values"] == [each["metadata"]["labels"]["app"] for each in (deployment, candidate)]
    let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert let_in == {8001, 8002} and all(rule["from"] for rule in policy["spec"]["ingress"])
    assert policy["spec"]["egress"] == [] and policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_candidates_pod_is_that_of_the_version_in_service() -> None:
    deployment, _, candidate, *_ = documents(KUBERNETES / "serving.yaml")
    assert deployment["spec"]["replicas"] == 1 and candidate["spec"]["replicas"] == 0
    pods = [each["spec"]["template"]["spec"] for each in (deployment, candidate)]
    assert pods[1]["containers"][0].pop("env") == [{"name": "ROLE", "value": "candidate"}]
    assert pods[0] == pods[1]


def test_clients_leave_before_the_pod_does() -> None:
    """gRPC's clients ask the name's addresses anew when a connection ends, but not more often than every 30 s; what
    comes over a connection after SIGTERM, Triton refuses."""
    script = (CONTAINER / "serve.sh").read_text()
    age, answers = (
        int(re.findall(rf"--{flag}=(\d+) ", script)[0]) for flag in ("grpc-max-connection-age", "exit-timeout-secs")
    )
    for deployment in (each for each in documents(KUBERNETES / "serving.yaml") if each["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert age == 30_000 and sleep >= 2 * 1.1 * age / 1000 + 5  # gRPC varies the age by a tenth
        assert pod["terminationGracePeriodSeconds"] >= sleep + answers + 10

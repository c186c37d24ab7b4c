"""The manifests of a cluster that nobody has here, held against each other and against what they start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.limits import Limits
from tests.deploy.manifests import CONTAINER, KUBERNETES, ROOT, documents
from upsnet.photos import MAX_PIXELS

Document = dict[str, Any]
UNITS = {"Mi": 2**20, "Gi": 2**30}
CONTAINERFILE = (CONTAINER / "Containerfile").read_text()


@dataclass(frozen=True)
class Pod:
    """A pod that serves: its labels, what it is and its one container."""

    labels: dict[str, str]
    spec: Document
    container: Document


def of_kind(file: str, kind: str, name: str = "upsnet") -> Document:
    found = [each for each in documents(KUBERNETES / file) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}"
    return found[0]


def deployed(name: str) -> Pod:
    template = of_kind("serving.yaml", "Deployment", name)["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return Pod(template["metadata"]["labels"], template["spec"], container)


def by_kserve() -> Pod:
    """As KServe puts it together: of the runtime the container and the volumes, of the service the rest."""
    service, runtime = (
        of_kind("kserve.yaml", "InferenceService"),
        of_kind("kserve.yaml", "ServingRuntime", "upsnet-triton"),
    )
    (container,) = runtime["spec"]["containers"]
    model = {"name": "models", "mountPath": "/mnt/models", "readOnly": True}
    container = container | {"volumeMounts": [model, *container["volumeMounts"]]}
    spec = service["spec"]["predictor"] | {"volumes": runtime["spec"]["volumes"]}
    return Pod({"serving.kserve.io/inferenceservice": service["metadata"]["name"]}, spec, container)


PODS = {"serving": deployed("upsnet"), "candidate": deployed("upsnet-candidate"), "kserve": by_kserve()}
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def size(text: str) -> int:
    """Bytes of a quantity such as 4Gi."""
    return int(text[:-2]) * UNITS[text[-2:]]


@every_pod
def test_a_pod_may_do_little(pod: Pod) -> None:
    assert pod.spec["automountServiceAccountToken"] is False and pod.spec["enableServiceLinks"] is False
    of_pod, of_container = pod.spec["securityContext"], pod.container["securityContext"]
    assert of_pod["runAsNonRoot"] and of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_pod["runAsUser"] == int(re.findall(r"^USER (\d+)$", CONTAINERFILE, re.M)[0])
    assert of_container["readOnlyRootFilesystem"] and of_container["allowPrivilegeEscalation"] is False
    assert of_container["capabilities"] == {"drop": ["ALL"]} and "privileged" not in of_container
    assert "hostNetwork" not in pod.spec and "hostPID" not in pod.spec and "hostIPC" not in pod.spec
    requests, limits = pod.container["resources"]["requests"], pod.container["resources"]["limits"]
    assert limits.keys() == {"memory", "nvidia.com/gpu"} and requests["nvidia.com/gpu"] == limits["nvidia.com/gpu"]


@every_pod
def test_what_a_pod_writes_into(pod: Pod) -> None:
    """The root is read-only: temporary files, and the tensors between Triton's processes, have places of their own."""
    mounts = {mount["mountPath"]: mount for mount in pod.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    variables = {variable["name"]: variable["value"] for variable in pod.container.get("env", [])}
    models = variables.get("MODELS", re.findall(r"^VOLUME (\S+)$", CONTAINERFILE, re.M)[0])
    assert mounts[models]["readOnly"] is True
    assert mounts.keys() == {models, "/dev/shm", "/tmp"}
    assert volumes[mounts["/tmp"]["name"]]["emptyDir"].keys() == {"sizeLimit"}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"


@every_pod
def test_shared_memory_has_room_for_the_largest_photos(pod: Pod) -> None:
    """Each instance keeps the most that one batch has taken: photos, as they came and resized, and their label maps."""
    config = (ROOT / "triton_repo/upsnet_photo/config.pbtxt").read_text()
    (instances,) = map(int, re.findall(r"^instance_group \[ \{ count: (\d+)", config, re.M))
    bounds = Limits(max_pixels=4 * 1344 * 1344)
    most = instances * (
        4 * (bounds.max_photo_bytes + 3 * MAX_PIXELS) + bounds.max_pixels * 3
    )  # maps of uint8 and uint16
    (shm,) = (volume["emptyDir"]["sizeLimit"] for volume in pod.spec["volumes"] if volume["name"] == "shm")
    assert most < size(shm) <= size(pod.container["resources"]["limits"]["memory"]) // 4
    (service, *_) = documents(CONTAINER / "compose.yaml")[0]["services"].values()
    assert service["shm_size"] == "4gb" and size(shm) == 4 * 2**30


@every_pod
def test_probes_ask_for_a_test_inference(pod: Pod) -> None:
    copied = dict(
        re.findall(r"^COPY --chmod=555 (?:\S+ )*deploy/container/(probe\.py) (/opt/\S+/)$", CONTAINERFILE, re.M)
    )
    seconds, metrics = map(float, re.findall(r"SECONDS = ([\d.]+) ", (CONTAINER / "probe.py").read_text()))
    addresses = ["http://127.0.0.1:8000", "http://127.0.0.1:8002/metrics", "/tmp/answered"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = pod.container[name]
        tolerant = addresses if name == "livenessProbe" else []  # a pod with too much work gets less, and no restart
        assert probe["exec"]["command"] == [f"{copied['probe.py']}probe.py", *tolerant]
        assert probe["timeoutSeconds"] > seconds + metrics * bool(tolerant)  # it tells itself what is wrong
    ready, alive = pod.container["readinessProbe"], pod.container["livenessProbe"]
    lasts = {name: each["periodSeconds"] * each["failureThreshold"] for name, each in (("r", ready), ("l", alive))}
    assert lasts["l"] > 2 * lasts["r"]  # out of service first, and started anew only when that has not helped


@every_pod
def test_ports(pod: Pod) -> None:
    """Triton's own numbers, which serve.sh does not change, the container's and the probe's are the same."""
    exposed = {int(port) for port in re.findall(r"^EXPOSE (.*)$", CONTAINERFILE, re.M)[0].split()}
    ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
    assert ports["grpc"] == 8001 and ports["metrics"] == 8002 and set(ports.values()) <= exposed
    assert not re.search(r"--(http|grpc|metrics)-port", (CONTAINER / "serve.sh").read_text())
    assert 'url: str = "http://127.0.0.1:8000"' in (CONTAINER / "probe.py").read_text() and 8000 in exposed


@every_pod
def test_clients_leave_before_the_pod_does(pod: Pod) -> None:
    """gRPC's clients ask the name's addresses anew when a connection ends, but not more often than every 30 s; what
    comes over a connection after SIGTERM, Triton refuses."""
    script = (CONTAINER / "serve.sh").read_text()
    age, answers = (
        int(re.findall(rf"--{flag}=(\d+) ", script)[0]) for flag in ("grpc-max-connection-age", "exit-timeout-secs")
    )
    sleep = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert age == 30_000 and sleep >= 2 * 1.1 * age / 1000 + 5  # gRPC varies the age by a tenth
    assert pod.spec["terminationGracePeriodSeconds"] >= sleep + answers + 10


def test_one_image() -> None:
    (copying,) = of_kind("models.yaml", "Pod", "upsnet-models")["spec"]["containers"]
    assert {copying["image"]} == {pod.container["image"] for pod in PODS.values()}


def test_the_models_claim() -> None:
    """Is that of all pods, who read it; the pod that writes into it is of the same user and may do as little."""
    claim, copying = (of_kind("models.yaml", kind, "upsnet-models") for kind in ("PersistentVolumeClaim", "Pod"))
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    claims = [
        volume["persistentVolumeClaim"]
        for spec in (PODS["serving"].spec, PODS["candidate"].spec, copying["spec"])
        for volume in spec["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert [each["claimName"] for each in claims] == [claim["metadata"]["name"]] * 3
    assert [each.get("readOnly", False) for each in claims] == [True, True, False]
    (container,), serving = copying["spec"]["containers"], PODS["serving"]
    assert copying["spec"]["securityContext"] == serving.spec["securityContext"]
    assert container["securityContext"] == serving.container["securityContext"]
    assert copying["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("file", "name", "page"),
    [("models.yaml", "upsnet-models", "kubernetes.md"), ("training.yaml", "upsnet-training", "clusters.md")],
)
def test_what_is_said_of_the_pod_that_copies(file: str, name: str, page: str) -> None:
    """Its commands, in the file and on the page, are for it; its image is large, and kubectl wait waits for 30 s."""
    pod = of_kind(file, "Pod", name)["spec"]
    (place,) = (mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"])
    for text in ((KUBERNETES / file).read_text(), (ROOT / "docs" / page).read_text()):
        assert f"kubectl wait --for=condition=Ready --timeout=30m pod/{name}\n" in text.replace("       #", "\n")
        assert re.search(rf"\| kubectl exec --stdin {name} -- tar -x -C {place}[/\n]", text)
        assert f"kubectl delete pod {name}\n" in text


def test_the_training_claim() -> None:
    """Is that of both jobs; the folders that they mount are there before, of their user."""
    claim, pod = (of_kind("training.yaml", kind, "upsnet-training") for kind in ("PersistentVolumeClaim", "Pod"))
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    models = of_kind("models.yaml", "Pod", "upsnet-models")["spec"]
    for key in ("securityContext", "restartPolicy", "automountServiceAccountToken"):
        assert pod["spec"][key] == models[key]
    assert pod["spec"]["containers"][0]["securityContext"] == models["containers"][0]["securityContext"]
    for job in ("train-pytorchjob.yaml", "train-trainjob.yaml"):
        text = (KUBERNETES / job).read_text()
        assert f"claimName: {claim['metadata']['name']} " in text
        assert f"image: {pod['spec']['containers'][0]['image']}\n" in text
        folders = " ".join(f"/training/{name}" for name in re.findall(r"subPath: (\w+)", text))
        for told in ((KUBERNETES / "training.yaml").read_text(), (ROOT / "docs/clusters.md").read_text()):
            assert f"kubectl exec upsnet-training -- mkdir -p {folders}\n" in told


@pytest.mark.parametrize("name", ["upsnet", "upsnet-candidate"])
def test_services_reach_their_pods(name: str) -> None:
    service, pod = of_kind("serving.yaml", "Service", name)["spec"], deployed(name)
    selector = of_kind("serving.yaml", "Deployment", name)["spec"]["selector"]["matchLabels"]
    assert service["selector"] == selector == pod.labels
    ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    assert service["clusterIP"] == "None"  # or a gRPC client would stay with one pod


def test_who_may_ask_whom() -> None:
    policy = of_kind("serving.yaml", "NetworkPolicy")["spec"]
    (apps,) = policy["podSelector"]["matchExpressions"]
    assert (apps["key"], apps["operator"]) == ("app", "In")
    assert apps["values"] == [PODS[name].labels["app"] for name in ("serving", "candidate")]
    let_in = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert let_in == {8001, 8002} and all(rule["from"] for rule in policy["ingress"])
    assert policy["egress"] == [] and policy["policyTypes"] == ["Ingress", "Egress"]


def test_the_candidates_pod_is_that_of_the_version_in_service() -> None:
    served, candidate = (of_kind("serving.yaml", "Deployment", name)["spec"] for name in ("upsnet", "upsnet-candidate"))
    assert "replicas" not in served and candidate["replicas"] == 0  # another apply leaves the autoscaler's number alone
    pods = [each["template"]["spec"] for each in (served, candidate)]
    assert pods[1]["containers"][0].pop("env") == [{"name": "ROLE", "value": "candidate"}]
    (spread,) = pods[0].pop("topologySpreadConstraints")  # of the candidate there is one
    assert spread["labelSelector"]["matchLabels"] == PODS["serving"].labels
    assert pods[0] == pods[1]


def test_kserves_container_is_that_of_the_deployment() -> None:
    ours, kserves = dict(PODS["serving"].container), dict(PODS["kserve"].container)
    for key in ("name", "ports", "volumeMounts"):
        del ours[key], kserves[key]
    assert kserves.pop("env") == [{"name": "MODELS", "value": "/mnt/models"}]
    assert kserves.pop("args") == re.findall(r'^CMD \["(.*)"\]$', CONTAINERFILE, re.M)
    assert ours == kserves
    service, runtime = (
        of_kind("kserve.yaml", "InferenceService"),
        of_kind("kserve.yaml", "ServingRuntime", "upsnet-triton"),
    )
    model = service["spec"]["predictor"]["model"]
    assert (
        model["runtime"] == runtime["metadata"]["name"]
        and model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    )
    assert model["modelFormat"].items() <= runtime["spec"]["supportedModelFormats"][0].items()
    (claim,) = (each["persistentVolumeClaim"] for each in PODS["serving"].spec["volumes"] if each["name"] == "models")
    assert model["storageUri"] == f"pvc://{claim['claimName']}"


@pytest.mark.parametrize(("file", "name"), [("serving.yaml", "upsnet"), ("kserve.yaml", "upsnet-predictor")])
def test_nodes_may_be_drained(file: str, name: str) -> None:
    """With one pod as well: minAvailable 1 would keep its node for ever."""
    budget = of_kind(file, "PodDisruptionBudget", name)["spec"]
    labels = PODS["serving" if file == "serving.yaml" else "kserve"].labels
    assert budget["selector"]["matchLabels"] == labels and budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("file", sorted(path.name for path in KUBERNETES.glob("*.yaml")))
def test_a_file_says_how_it_is_used(file: str) -> None:
    text = (KUBERNETES / file).read_text()
    assert text.startswith("# ") and f"deploy/kubernetes/{file}" in text
    named = set(re.findall(r"(?:deploy|docs)/[\w./-]+\.\w+", text))
    assert named and all(Path(ROOT / name).exists() for name in named)

"""The check of manifests finds what an API server would drop; every manifest passes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, KUBERNETES, OLDEST, Refused, check, documents

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "x"},
    "spec": {
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
    },
}
SERVICE: dict[str, Any] = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": {"name": "x"},
    "spec": {"predictor": {"model": {"modelFormat": {"name": "x"}, "storageUri": "pvc://x"}}},
}
JOB: dict[str, Any] = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "x"},
    "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": DEPLOYMENT["spec"]["template"]}}},
}
TRAIN: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "x"},
    "spec": {"runtimeRef": {"name": "x"}, "trainer": {"numNodes": 2}},
}


def changed(document: Any, path: str, value: object) -> Any:
    """A copy of the document with another value at a path of keys and numbers."""
    if not path:
        return value
    key, _, rest = path.partition(".")
    if isinstance(document, list):
        return [changed(each, rest, value) if str(at) == key else each for at, each in enumerate(document)]
    return document | {key: changed(document.get(key, {}), rest, value)}


@pytest.mark.parametrize("path", sorted(KUBERNETES.glob("*.yaml")), ids=lambda path: path.name)
def test_manifests(path: Path) -> None:
    for document in documents(path):
        if "kind" in document:  # values of a Helm chart have none
            check(document)


@pytest.mark.parametrize("document", [DEPLOYMENT, SERVICE, JOB, TRAIN], ids=lambda document: document["kind"])
def test_good_ones_pass(document: dict[str, Any], shared_data: Path) -> None:
    check(document)


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        (DEPLOYMENT, "spec.template.spec.containers.0.livenesProbe", {}),
        (DEPLOYMENT, "spec.template.spec.securityContext.runAsNonroot", True),
        (DEPLOYMENT, "spec.template.spec.terminationGracePeriodSeconds", "120"),
        (DEPLOYMENT, "metadata.lables", {"app": "x"}),
        (DEPLOYMENT, "apiVersion", "apps/v1beta1"),
        (DEPLOYMENT, "kind", "Deploymnet"),
        (SERVICE, "spec.predictor.model.storageURI", "pvc://x"),
        (SERVICE, "spec.predictor.model.volumeMount", []),
        (SERVICE, "spec.predictor.volumes", [{"name": "shm", "emptyDir": {"medium": "Memory", "sizelimit": "1Gi"}}]),
        (SERVICE, "spec.predictor.minReplicas", "2"),
        (SERVICE, "metadata.lables", {"app": "x"}),
        (SERVICE, "metadata.labels", {"app": 1}),
        (SERVICE, "sepc", {}),
        (SERVICE, "apiVersion", "serving.kserve.io/v1"),
        (JOB, "spec.pytorchReplicaSpecs.Worker.restartpolicy", "OnFailure"),
        (JOB, "spec.pytorchReplicaSpecs.Worker.template.spec.containers.0.imagePullpolicy", "Always"),
        (JOB, "spec.elasticpolicy", {}),
        (TRAIN, "spec.trainer.numNode", 2),
        (TRAIN, "spec.runtimeRef.names", "x"),
    ],
)
def test_misspelt_fields_are_found(document: dict[str, Any], path: str, value: object, shared_data: Path) -> None:
    with pytest.raises(Refused) as refused:
        check(changed(document, path, value))
    assert "\n" not in str(refused.value) and str(refused.value)


def test_the_oldest_release_is_the_pages() -> None:
    assert f"Kubernetes {OLDEST}" in (DEPLOY.parent / "docs/kubernetes.md").read_text()


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("spec: {replicas: 1}\nkind: Deployment\nspec: {}\n")
    with pytest.raises(yaml.YAMLError, match="stands twice"):
        documents(file)


def test_the_old_places_lead_to_the_new_ones() -> None:
    """Scripts of before name serving/deployment/ (docs/moved.md)."""
    old = DEPLOY.parent / "serving/deployment"
    links = {link.name: link.resolve(strict=True) for link in old.iterdir()}
    assert all(link.is_symlink() for link in old.iterdir()) and all(DEPLOY in place.parents for place in links.values())
    assert {"Dockerfile", "serve.sh", "probe.py", "docker-compose.yaml", "kubernetes.yaml"} <= links.keys()

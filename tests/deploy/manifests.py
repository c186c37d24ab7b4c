"""Kubernetes manifests without a cluster: what an API server would refuse, or drop without a word, is found here.

Core kinds by kubernetes-validate, kinds of KServe and Kubeflow by the schemas of their public definitions, which lie in
the shared data. Strictly: a field that the schema does not know is an error.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.shared import FOLDER, find
from upsnet.strict_yaml import load_yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINER, KUBERNETES = DEPLOY / "container", DEPLOY / "kubernetes"
OLDEST = "1.30"  # release of Kubernetes, as docs/kubernetes.md says
CUSTOM = {  # (apiVersion, kind): its file in k8s/ of the shared data
    ("serving.kserve.io/v1beta1", "InferenceService"): "inferenceservice_v1beta1.json",
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "servingruntime_v1alpha1.json",
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "trainjob_v1alpha1.json",
    ("kubeflow.org/v1", "PyTorchJob"): "pytorchjob_v1.json",
}
UNKNOWN = "x-kubernetes-preserve-unknown-fields"


class Refused(Exception):
    """What is wrong with a manifest, and where."""


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file. yaml.YAMLError where a key stands twice in a mapping."""
    return [load_yaml(part) for part in re.split(r"^---$", path.read_text(), flags=re.MULTILINE)]


def check(document: dict[str, Any]) -> None:
    """Refused where an API server of the oldest release or of today's would refuse the document, or drop a field.

    Skips the test where the kind's schema lies in the shared data and they are absent.
    """
    version, kind = str(document.get("apiVersion")), str(document.get("kind"))
    if file := CUSTOM.get((version, kind)):
        found = jsonschema.Draft202012Validator(_schema(file)).iter_errors(document)
        errors = sorted(found, key=lambda error: error.json_path)
        if errors:
            raise Refused(f"{kind}: " + "; ".join(f"{error.json_path}: {error.message[:200]}" for error in errors))
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}  # for the metadata
    for release in (OLDEST, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(document, release, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            raise Refused(f"{kind} of {version}: Kubernetes {release} has no schema for it") from None
        except kubernetes_validate.ValidationError as error:
            raise Refused(f"{kind}, Kubernetes {release}: {error.json_path}: {error.message[:200]}") from None


@cache
def _schema(name: str) -> dict[str, Any]:
    schema = json.loads((find(FOLDER / "k8s") / name).read_text())
    _close(schema)
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _close(schema: Any) -> None:
    """Makes unknown fields errors wherever fields are named, but where the definition itself lets them in."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get(UNKNOWN):
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)

"""An exported model as its file is: the manifest that goes with it, and what the graph itself says."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from upsnet.contract import METADATA_KEY, manifest_path
from upsnet.errors import InputError, one_line
from upsnet.files import sha256
from upsnet.manifest import Manifest

AGAIN = "export it again with `make onnx`"


class Exported(NamedTuple):
    manifest: Manifest  # beside it
    nodes: int  # of the main graph
    metadata: dict[str, str]


def read_exported(model: Path) -> Exported:
    """InputError for a file that is no exported model, and for one whose manifest is of another: engines of such would
    name their segments wrongly."""
    beside = manifest_path(model)
    if model.suffix != ".onnx" or not model.is_file():
        found = "a folder" if model.is_dir() else "no ONNX file" if model.is_file() else "no such file"
        raise InputError(f"{model}: {found}; name an exported model, as runs/x/model.onnx (`make onnx` exports it)")
    if not beside.is_file():
        raise InputError(f"{model}: there is no {beside.name} beside it; {AGAIN}")
    manifest = Manifest.load(beside)
    if manifest.onnx_sha256 and sha256(model) != manifest.onnx_sha256:
        raise InputError(
            f"{model}: not the model that {beside.name} describes: one was altered, damaged or replaced; {AGAIN}"
        )
    try:
        proto = onnx.load(str(model), load_external_data=False)
    except DecodeError:
        raise InputError(f"{model}: damaged: it is no ONNX file; {AGAIN}") from None
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if METADATA_KEY not in metadata:
        raise InputError(f"{model}: not an upsnet model (no {METADATA_KEY} metadata); {AGAIN}")
    try:
        inside = Manifest.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        raise InputError(f"{model}: its manifest is damaged ({one_line(error)}); {AGAIN}") from None
    if inside != manifest.model_copy(update={"onnx_sha256": inside.onnx_sha256}):
        keys = (name for name in Manifest.model_fields if name != "onnx_sha256")
        other = [name for name in keys if getattr(inside, name) != getattr(manifest, name)]
        raise InputError(f"{model}: {beside.name} has other {', '.join(other)} than the model itself; {AGAIN}")
    return Exported(manifest, len(proto.graph.node), metadata)

"""Names of the exported graph's contract; whoever only runs a model needs no more than these."""

from __future__ import annotations

from pathlib import Path

INPUTS = ["images", "sizes", "scales"]
OUTPUTS = ["panoptic", "segments", "segment_count"]
PLUGINS = "libupsnet_plugins.so"  # a TensorRT plan's custom operators
LIBRARY = "libupsnet_onnxruntime.so"  # ONNX Runtime's custom operators
CUDA_LIBRARY = "libupsnet_onnxruntime_cuda.so"  # with kernels for NVIDIA GPUs, too
METADATA_KEY = "upsnet.manifest"  # of the manifest: in the ONNX file, and in the configuration of a Triton model
CONFIGURATION_KEY = "upsnet.configuration"  # of the training run's, as JSON, in the ONNX file
MODEL = "upsnet"  # the name that Triton serves it under: tensors in, tensors out

# The other model of a server: photos in. Each tensor's first dimension is B, the photos of a request.
PHOTO_MODEL = "upsnet_photo"
PHOTO = "photo"  # in, BYTES B x 1: an encoded photo (JPEG, PNG, WebP, PPM, ...)
LABELS = "labels"  # out, UINT8 B x H x W: the segment's id of each pixel, 0 void; smaller photos are padded with 0
LABELS16 = "labels16"  # out, UINT16: the same
PHOTO_SIZES = "photo_sizes"  # out, INT32 B x 2: height and width of each photo inside labels
SEGMENTS_JSON = "segments_json"  # out, BYTES B x 1: a JSON list of {id, category_id, name, isthing, score, area, box}
COCO_PNG = "coco_png"  # out, BYTES B x 1: the official COCO panoptic PNG
OVERLAY = "overlay"  # out, BYTES B x 1: a JPEG
STAGES_JSON = "stages_json"  # out, BYTES B x 1: JSON, the seconds of each stage of the photo or of its batch
PHOTO_OUTPUTS = [LABELS, LABELS16, PHOTO_SIZES, SEGMENTS_JSON, COCO_PNG, OVERLAY, STAGES_JSON]


def manifest_path(model: Path) -> Path:
    """The manifest that goes with an ONNX file: model.onnx -> model.manifest.json beside it."""
    return model.with_suffix(".manifest.json")


def tensorrt_path(model: Path) -> Path:
    """The graph for TensorRT that goes with one for ONNX Runtime, where they need two (`Manifest.twins`): model.onnx ->
    model.tensorrt.onnx beside it."""
    return model.with_suffix(".tensorrt.onnx")


def is_for_tensorrt(model: Path) -> bool:
    """Whether the file is one that `tensorrt_path` names."""
    return model.suffixes[-2:] == [".tensorrt", ".onnx"]

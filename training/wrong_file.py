"""What a file is that somebody took for a checkpoint, and which command reads it."""

from __future__ import annotations

from pathlib import Path

TORCH = (
    "a file of torch.save or a pickle: the original UPSNet's and detectron2's Panoptic FPN are converted by `upsnet "
    "import FILE --out CHECKPOINT`, a backbone's weights go to model.backbone.weights, and a checkpoint of older "
    "versions of this project is not read; train again"
)
TORCH_BYTES = (b"PK\3\4", b"\x80")  # the latter a pickle: torch.save before 1.6, and detectron2's .pkl
FIRST_BYTES = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x89HDF": "a file in HDF5, which this project does not read",
    b"<": "a web page or XML; the download went wrong",
}
SUFFIXES = {
    ".onnx": "an exported model, which cannot be trained or exported again; give the checkpoint that it was made from",
    **dict.fromkeys((".engine", ".plan"), "a TensorRT engine; give the checkpoint that it was made from"),
    **dict.fromkeys((".json", ".yaml", ".yml"), "a text file; give the weights, as runs/NAME/best.safetensors"),
    **dict.fromkeys(
        (".h5", ".hdf5", ".keras", ".pb", ".tflite"), "a Keras or TensorFlow model, which is not read here"
    ),
}
FOREIGN = (  # a whole safetensors file without our metadata
    "weights in the safetensors format, but no checkpoint of this project; a backbone's, in timm's format, go to "
    "model.backbone.weights"
)


def what_it_is(path: Path) -> str:
    """By a file's name and its first bytes, with the cure; "" where that says nothing. OSError: it cannot be read."""
    with path.open("rb") as stream:
        start = stream.read(32)
    if _is_safetensors(start):
        return ""
    return SUFFIXES.get(path.suffix.lower()) or (TORCH if start.startswith(TORCH_BYTES) else other_bytes(start))


def other_bytes(start: bytes) -> str:
    """What begins so, neither a file of torch.save nor a pickle; "" where that is not known."""
    if _is_safetensors(start):
        return "one in the safetensors format: a checkpoint of this project needs no import"
    return next((text for first, text in FIRST_BYTES.items() if start.startswith(first)), "")


def _is_safetensors(start: bytes) -> bool:
    """Eight bytes of the header's length, which may be anything, then JSON."""
    return start[8:9] == b"{"

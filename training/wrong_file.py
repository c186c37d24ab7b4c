"""What a file is that somebody took for a checkpoint, and which command reads it."""

from __future__ import annotations

from pathlib import Path

TORCH = (
    "a file of torch.save: the original UPSNet's is converted by `upsnet import FILE --out CHECKPOINT`, a backbone's "
    "weights go to model.backbone.weights, and a checkpoint of older versions of this project is not read; train again"
)
FIRST_BYTES = {
    b"PK\3\4": TORCH,
    b"\x80": TORCH,  # a pickle: torch.save before 1.6, and detectron2's .pkl
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
    if start[8:9] == b"{":  # a safetensors file: eight bytes of the header's length, which may be anything, then JSON
        return ""
    return SUFFIXES.get(path.suffix.lower()) or next(
        (text for b, text in FIRST_BYTES.items() if start.startswith(b)), ""
    )

"""What a node has to do: multiplications with additions (MACs), and bytes that it reads and writes.

Of the shapes that ran: where ONNX Runtime fills channels up to its blocks of 8 or 16, it computes the filling, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.profiling.roofline import Kind
from eval.profiling.trace import CONTAINERS, Tensor

# Operators whose weights have the shape [O, I, h, w], a product for each output value; which of the inputs of at least
# three dimensions they are.
CONVOLUTIONS = {
    "Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "QLinearConv": 1, "ConvInteger": 1,
    "DeformConv": 1, "DeformConv2d": 2, "ModulatedDeformConv2d": 2,
}  # fmt: skip
SAMPLING = ("DeformConv", "DeformConv2d", "ModulatedDeformConv2d")  # every value that they multiply is between four
PRODUCTS = (
    "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
)  # fmt: skip
SAME_MEMORY = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size")  # the output is the input
PARTS = ("Gather", "GatherElements", "GatherND", "Slice", "Split")  # read no more of the first input than they write
BYTE_TYPES = ("int8", "uint8")
HALF_TYPES = ("float16", "bfloat16")
FP8_TYPES = ("float8",)


def count_macs(operator: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], turned: bool = False) -> int:
    """Of one execution; 0 for operators that are no product. turned: transA of Gemm.

    A deformable convolution has the convolution's, and four for each value that it takes between pixels.
    """
    if not inputs or not outputs:
        return 0
    if operator in CONVOLUTIONS:
        images = [tensor for tensor in inputs if len(tensor.shape) >= 3]
        weight = images[CONVOLUTIONS[operator]].shape
        products = outputs[0].items * _items(weight[1:])
        if operator in SAMPLING:
            batch, channels = images[0].shape[:2]
            products += 4 * batch * channels * _items(outputs[0].shape[2:]) * _items(weight[2:])
        return products
    if operator == "ConvTranspose":
        image, weight = inputs[0], [tensor for tensor in inputs if len(tensor.shape) >= 3][1].shape
        return image.items * _items(weight[1:])
    if operator in PRODUCTS:
        return outputs[0].items * inputs[0].shape[-2 if turned else -1]
    return 0


def count_bytes(operator: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Of one execution: every input read once and every output written once.

    Nothing where the output is the input's memory, or where the nodes of a body are counted instead.
    """
    if operator in SAME_MEMORY or operator in CONTAINERS:
        return 0
    written = sum(tensor.bytes for tensor in outputs)
    if operator in PARTS:
        return 2 * written + sum(tensor.bytes for tensor in inputs[1:])
    return written + sum(tensor.bytes for tensor in inputs)


def kind_of(inputs: Sequence[Tensor]) -> Kind:
    """What a product multiplies. TensorRT's TF32 is float32 here: its tensors are."""
    name = inputs[0].type if inputs else ""
    return "int8" if name in BYTE_TYPES else "fp16" if name in HALF_TYPES else "fp8" if name in FP8_TYPES else "fp32"


def _items(shape: Sequence[int]) -> int:
    return Tensor("", tuple(shape)).items


def complete(inputs: Sequence[Tensor], names: Sequence[str], weights: dict[int, Tensor]) -> tuple[Tensor, ...]:
    """A node's inputs with the weights that its profile leaves out, because they lie in a form of the kernel's own.

    names: of all its inputs; "" for one that is not given. weights: those that are the file's, by their place.
    """
    given = [place for place, name in enumerate(names) if name]
    missing = len(given) - len(inputs)
    if missing <= 0:
        return tuple(inputs)
    rest, whole = list(inputs), []
    for place in given:
        weight = weights.get(place)
        if weight is not None and missing > 0 and (not rest or rest[0] != weight):
            whole.append(weight)
            missing -= 1
        elif rest:
            whole.append(rest.pop(0))
    return tuple(whole)

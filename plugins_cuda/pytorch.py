"""Every operator's front for PyTorch, derived from its declaration (`<room>/schema.py`)."""

from __future__ import annotations

import ctypes
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast  # Any: autograd's ctx

import torch
from torch import Tensor
from torch.library import CustomOpDef

from plugins_cuda import schema as declared
from plugins_cuda.library import compiled
from plugins_cuda.schema import INT32_MAX, Attribute, Schema, Type, value_of

P = ParamSpec("P")
R = TypeVar("R")
Number = int | float | list[int]
Value = Tensor | list[Tensor] | Number | None
# (an operator's arguments, the gradient of its output) -> the gradients of those that have one
Gradient = Callable[[Mapping[str, Value], Tensor], Mapping[str, Tensor | list[Tensor]]]
NodeValue = (
    int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]
)  # as torch.onnx has it
FIXED = {Type.FLOAT32: torch.float32, Type.INT32: torch.int32, Type.INT64: torch.int64, Type.UINT8: torch.uint8}
FLOAT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # upsnet::DType
DTYPES = FLOAT_TYPES | {torch.float64: 3}  # of gradients
NCHW, NHWC = 0, 1  # upsnet::Layout
WITHOUT_LAUNCHERS = ("cpu", "onnxruntime")  # the libraries that have the rooms without a launcher


class Call(NamedTuple):
    """The checked arguments of one call."""

    tensors: dict[str, list[Tensor]]  # without those that are None
    numbers: dict[str, Number]
    sizes: dict[str, int]  # what the letters of the shapes stand for, and the integers among the numbers

    @property
    def first(self) -> Tensor:
        return next(iter(self.tensors.values()))[0]

    def pair(self, name: str) -> list[int]:
        return cast("list[int]", self.numbers[name])


def operator(
    schema: Schema,
    definition: Callable[P, R],
    gradient: Gradient | None = None,
    check: Callable[[Call], None] | None = None,
) -> Callable[P, R]:
    """The public function of a room. It has the signature and the docstring of its definition.

    It checks its arguments. While PyTorch exports to ONNX it emits a node. Otherwise it calls torch.ops.upsnet.<room>,
    which runs the compiled library, or the definition where there is none.
    gradient: of torch.ops.upsnet.<room>. None: it has none, and no gradient flows through it.
    check: refuses, with a ValueError, what the declaration cannot say.
    """
    names = [argument.name for argument in schema.given]
    if names != list(inspect.signature(definition).parameters):
        raise TypeError(f"{schema.name}: reference.py and schema.py must name the same arguments in the same order")
    run = _custom_op(schema, definition)  # PyTorch has the name from here on; a second of it would free the first
    if gradient is not None:
        _register(run, schema, gradient)
    defaults = {a.name: a.default for a in schema.attributes if a in schema.given and a.default is not None}
    absent = dict.fromkeys(tensor.name for tensor in schema.tensors if tensor.optional)

    @functools.wraps(definition)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        values = {**defaults, **absent, **dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or set(values) != set(names) or any(name in kwargs for name in names[: len(args)]):
            return definition(*args, **kwargs)  # a TypeError, in Python's own words
        arguments = read(schema, cast("dict[str, Value]", values))
        if check is not None:
            check(arguments)
        if torch.onnx.is_in_onnx_export():
            return cast(R, _node(schema, arguments))
        given = [_value(argument, arguments) for argument in schema.given]
        return cast(R, run(*(given if gradient is not None else map(_detached, given))))

    return call


def gradient_operator(schema: Schema, definition: Callable[..., object]) -> Callable[..., Any]:
    """torch.ops.upsnet.<name>, of which a gradient is made. Nothing flows back through it."""

    def refuse(*_: object) -> None:
        raise RuntimeError(f"upsnet::{schema.name}: a gradient has no gradient here; differentiate once")

    op = _custom_op(schema, definition)
    op.register_autograd(refuse)
    return op


def _register(op: CustomOpDef, schema: Schema, gradient: Gradient) -> None:
    """`gradient` as the autograd of the operator."""

    def keep(ctx: Any, inputs: Sequence[Value], output: object) -> None:
        values = dict(zip((argument.name for argument in schema.given), inputs, strict=True))
        kept = [values.pop(tensor.name) for tensor in schema.tensors]
        ctx.save_for_backward(*(each for value in kept for each in (value if isinstance(value, list) else [value])))
        ctx.numbers = values

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Value, ...]:
        saved = list(ctx.saved_tensors)
        values: dict[str, Value] = dict(ctx.numbers)
        for tensor in schema.tensors:
            own, saved = saved[: len(tensor.shapes)], saved[len(tensor.shapes) :]
            values[tensor.name] = own if tensor.each else own[0]
        found = gradient(values, grad_output)
        return tuple(found.get(argument.name) for argument in schema.given)

    op.register_autograd(backward, setup_context=keep)


def _types_as_they_are(device: torch.device) -> AbstractContextManager[None]:
    """Autocast does not reach into it: a definition chooses the types it computes in."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _value(argument: declared.Tensor | Attribute, call: Call) -> Value:
    if isinstance(argument, Attribute):
        return call.numbers[argument.name]
    tensors = call.tensors.get(argument.name, [])
    return tensors if argument.each else tensors[0] if tensors else None


def _detached(value: Value) -> Value:
    """As an operator without a gradient takes it."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    return cast(Value, [_detached(each) for each in value]) if isinstance(value, list) else value


# --- checks ----------------------------------------------------------------------------------------------------------


def read(schema: Schema, values: Mapping[str, Value]) -> Call:
    """ValueError, one line with the argument's name, where the declaration says no."""
    call = Call({}, {}, {})
    for argument in schema.given:
        value = values[argument.name]
        if isinstance(argument, Attribute):
            number = _number(schema.name, argument, value)
            call.numbers[argument.name] = number
            if isinstance(number, int):
                call.sizes[argument.name] = number
        elif value is not None or not argument.optional:
            call.tensors[argument.name] = _tensors(schema.name, argument, value, call)
    for attribute in schema.attributes:
        if attribute.size:
            call.numbers[attribute.name] = call.sizes[attribute.name] = value_of(attribute.size, call.sizes)
    return call


def _number(room: str, attribute: Attribute, value: Value) -> Number:
    least, most = attribute.least, attribute.most
    if attribute.count > 1:
        pair = [value] * attribute.count if isinstance(value, int) else list(cast("Sequence[int]", value))
        if len(pair) != attribute.count or (least is not None and min(pair) < least) or max(pair) > INT32_MAX:
            wanted = f"be a number, or (vertical, horizontal), in {least}..{INT32_MAX}"
            raise ValueError(f"{room}: {attribute.name} must {wanted}, got {value}")
        return pair
    number = cast("int | float", value)
    if not ((least is None or number >= least) and (most is None or number <= most)):  # NaN neither
        wanted = f"be at least {least}" if most is None else f"lie in {least}..{most}"
        raise ValueError(f"{room}: {attribute.name} must {wanted}, got {value}")
    if number != number:
        raise ValueError(f"{room}: {attribute.name} must be a number, got NaN")
    if attribute.type is int and number > INT32_MAX:
        raise ValueError(f"{room}: {attribute.name} must be at most {INT32_MAX}, got {value}")
    return number if attribute.type is int else attribute.type(number)


def _tensors(room: str, declaration: declared.Tensor, value: Value, call: Call) -> list[Tensor]:
    """Sizes are not compared while exporting to ONNX: they are symbols then."""
    tensors = list(cast("Sequence[Tensor]", value)) if declaration.each else [cast(Tensor, value)]
    if len(tensors) != len(declaration.shapes):
        levels = ", ".join(declaration.each)
        raise ValueError(f"{room}: {declaration.name} must be {levels}, got {len(tensors)} tensors")
    first = call.first if call.tensors else tensors[0]
    exporting = torch.onnx.is_in_onnx_export()
    for index, (tensor, shape) in enumerate(zip(tensors, declaration.shapes, strict=True)):
        seen = dict(call.sizes)
        fits = tensor.ndim == len(shape)
        for word, size in zip(shape, tensor.shape, strict=False):
            expected = int(word) if word.isdigit() else call.sizes.setdefault(word, size)
            fits = fits and (exporting or bool(size == expected))
        like = first if declaration.type is Type.LIKE_FIRST else tensors[0] if index else None
        if not fits or not _has_type(tensor, declaration.type, like):
            wanted = f"{declaration.type.value if like is None else like.dtype} [{', '.join(shape)}]"
            if any(word in seen for word in shape):
                wanted += " = (" + ", ".join(str(seen.get(word, word)) for word in shape) + ")"
            name = f"{declaration.name}[{index}]" if declaration.each else declaration.name
            raise ValueError(f"{room}: {name} must be {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{room}: {declaration.name} must be on {first.device}, got {tensor.device}")
    return tensors


def _has_type(tensor: Tensor, wanted: Type, like: Tensor | None) -> bool:
    if like is not None:
        return tensor.dtype == like.dtype
    if wanted is Type.FEATURES:
        return tensor.dtype in FLOAT_TYPES
    return tensor.dtype == FIXED[wanted] if wanted in FIXED else tensor.is_floating_point()


# --- the compiled operator -------------------------------------------------------------------------------------------


def _custom_op(schema: Schema, definition: Callable[..., object]) -> CustomOpDef:
    """torch.ops.upsnet.<name>, for torch.compile and torch.export too. No gradient yet."""
    names = [argument.name for argument in schema.given]
    params_class = params_type(schema)

    def run(*values: Value) -> Tensor | tuple[Tensor, ...]:
        call = read(schema, dict(zip(names, values, strict=True)))
        outputs = _empty_outputs(schema, call)
        types = {call.tensors[tensor.name][0].dtype for tensor in schema.tensors if tensor.has_own_type}
        library = compiled(call.first.device) if types <= (DTYPES if schema.float64 else FLOAT_TYPES).keys() else None
        if library is not None and not (schema.on_cpu if library.name in WITHOUT_LAUNCHERS else schema.on_gpu):
            library = None
        if library is not None and max(call.sizes.values()) <= INT32_MAX:
            params = params_class()
            _held = fill_params(params, schema, call, outputs)
            library.run(schema.name, params, call.first.device)
        else:
            with _types_as_they_are(call.first.device):
                results = cast("Callable[..., Tensor | tuple[Tensor, ...]]", definition)(*values)
            flat = [each for output in outputs for each in output]
            for output, result in zip(flat, [results] if isinstance(results, Tensor) else results, strict=True):
                output.copy_(result)
        return _one_or_all(outputs)

    def fake(*values: Value) -> Tensor | tuple[Tensor, ...]:
        return _one_or_all(_empty_outputs(schema, read(schema, dict(zip(names, values, strict=True)))))

    arguments = ", ".join(f"{_pytorch_type(argument)} {argument.name}" for argument in schema.given)
    results = ", ".join("Tensor" for output in schema.outputs for _ in output.shapes)
    op = torch.library.custom_op(f"upsnet::{schema.name}", run, mutates_args=(), schema=f"({arguments}) -> ({results})")
    op.register_fake(fake)
    return op


def _pytorch_type(argument: declared.Tensor | Attribute) -> str:
    if isinstance(argument, declared.Tensor):
        return "Tensor[]" if argument.each else "Tensor?" if argument.optional else "Tensor"
    name = {int: "SymInt", float: "float", bool: "bool"}[argument.type]
    return f"{name}[]" if argument.count > 1 else name


def _one_or_all(results: Sequence[Sequence[Tensor]]) -> Tensor | tuple[Tensor, ...]:
    flat = tuple(each for result in results for each in result)
    return flat[0] if len(flat) == 1 else flat


def _shape(words: Sequence[str], call: Call) -> list[int]:
    return [value_of(word, call.sizes) for word in words]


def _dtype(declaration: declared.Tensor, call: Call) -> torch.dtype:
    if declaration.type is Type.AS_SUMS:
        return torch.promote_types(call.first.dtype, torch.float32)
    return call.first.dtype if declaration.type is Type.LIKE_FIRST else FIXED.get(declaration.type, torch.float32)


def _order(declaration: declared.Tensor, call: Call) -> torch.memory_format:
    follows = declaration.channels_last and layout_of(next(iter(call.tensors.values()))) == NHWC
    return torch.channels_last if follows else torch.contiguous_format


def _empty_outputs(schema: Schema, call: Call) -> list[list[Tensor]]:
    outputs = []
    for output in schema.outputs:
        there = not output.optional or output.optional in call.tensors
        dtype, device = _dtype(output, call), call.first.device
        order = _order(output, call) if there else torch.contiguous_format
        shapes = [_shape(words, call) if there else [0] for words in output.shapes]
        outputs.append([torch.empty(shape, dtype=dtype, device=device, memory_format=order) for shape in shapes])
    return outputs


def layout_of(tensors: Sequence[Tensor]) -> int | None:
    """NCHW or NHWC when all of the tensors [B, C, H, W] are dense in that order, else None."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return NCHW
    return NHWC if all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors) else None


def params_type(schema: Schema) -> type[ctypes.Structure]:
    """Params of <room>/params.h, which generate.py writes from the same fields."""
    fields = []
    for field in schema.fields():
        pointer = field.kind.endswith("*")
        kind = ctypes.c_void_p if pointer else ctypes.c_float if field.kind == "float" else ctypes.c_int32
        fields.append((field.name, kind * field.count if field.count > 1 else kind))
    return type("Params", (ctypes.Structure,), {"_fields_": fields})


def fill_params(
    params: ctypes.Structure, schema: Schema, call: Call, outputs: Sequence[list[Tensor]]
) -> Iterable[list[Tensor]]:
    """Every member by its name. Returns the tensors that the pointers point to."""
    held = {output.name: tensors for output, tensors in zip(schema.outputs, outputs, strict=True)}
    members: dict[str, Sequence[Number]] = {}
    for tensor in schema.tensors:
        given = call.tensors.get(tensor.name, [])
        layout = layout_of(given) if tensor.channels_last else None
        if tensor.type in (Type.AS_FLOAT32, Type.AS_SUMS):
            given = [each.to(_dtype(tensor, call)) for each in given]
        if tensor.channels_last and not tensor.has_own_type:
            given = [each.contiguous(memory_format=_order(tensor, call)) for each in given]
        elif layout is None:
            given = [each.contiguous() for each in given]
        held[tensor.name] = [each if each.data_ptr() % each.element_size() == 0 else each.clone() for each in given]
        if tensor.has_own_type:
            members[f"{tensor.name}_type"] = [DTYPES[given[0].dtype]]
            members[f"{tensor.name}_layout"] = [layout or NCHW]
    members |= {name: [tensor.data_ptr() for tensor in tensors] for name, tensors in held.items() if tensors}
    for name, letters in schema.sizes.items():
        members[name] = [value_of(each, call.sizes) for each in schema.of_each_level(letters)]
    members |= {name: number if isinstance(number, list) else [number] for name, number in call.numbers.items()}
    for name in (field[0] for field in params._fields_):
        values = members.get(name, [])  # none: an optional tensor that is not there
        if len(values) > 1:
            getattr(params, name)[:] = values
        elif values:
            setattr(params, name, values[0])
    return held.values()


# --- the ONNX node ---------------------------------------------------------------------------------------------------


class Node(NamedTuple):
    """upsnet::<name> of one call."""

    name: str
    inputs: list[Tensor]
    attributes: dict[str, NodeValue]


def node_of(schema: Schema, call: Call) -> Node:
    name, inputs = schema.node, []
    for tensor in schema.tensors:
        given = call.tensors.get(tensor.name)
        if tensor.node and given is None:
            continue
        name = tensor.node or name
        if given is None:
            given = [call.first.new_zeros(_shape(tensor.shapes[0], call), dtype=torch.float32)]
        for each in given:
            inputs.append(each.float() if tensor.type is Type.AS_FLOAT32 and each.dtype != torch.float32 else each)
    attributes = {a.node_name: _node_value(a, call.numbers[a.name]) for a in schema.attributes if not a.gone}
    return Node(name, inputs, attributes | {"plugin_version": "1", "plugin_namespace": ""})


def _node(schema: Schema, call: Call) -> Tensor | tuple[Tensor, ...]:
    """The node, while torch.onnx.export traces."""
    node = node_of(schema, call)
    results = torch.onnx.ops.symbolic_multi_out(
        f"upsnet::{node.name}",
        node.inputs,
        node.attributes,
        dtypes=[_dtype(output, call) for output in schema.outputs],
        shapes=[_shape(output.shapes[0], call) for output in schema.outputs],
        version=1,
    )
    return results[0] if len(results) == 1 else tuple(results)


def _node_value(attribute: Attribute, number: Number) -> NodeValue:
    if isinstance(number, list):
        return number * 2 if attribute.twice else number
    if attribute.words:
        return attribute.words[int(number)]
    return number if attribute.type is float else int(number)

"""The C++ that follows from the operators' declarations: `python generate.py FOLDER ROOM...`, run by CMake.

FOLDER/<room>/params.h holds the kernels' parameters, FOLDER/<room>/declared.h the operator as a node of a graph, where
it is one. A room may lie in another (deform_conv/backward). Needs the standard library alone.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugins_cuda.schema import Attribute, Schema, Tensor

HERE = Path(__file__).resolve().parent
PARAMS = """// Made from its room's schema.py.
#pragma once

#include <algorithm>

#include "common/types.h"

namespace upsnet::{room} {{

struct Params {{
{fields}
}};

inline constexpr Member kMembers[] = {{
{members}
}};

// Every pointer is a multiple of its elements' size; kernels that read or write several at once ask for more.
inline bool has_aligned_pointers(const Params& params) {{
  return {pointers};
}}

}}  // namespace upsnet::{room}
"""
DECLARED = """// Made from {room}/schema.py.
#pragma once

#include <algorithm>
#include <array>
#include <string>

#include "{room}/kernel.cuh"
#include "common/node.h"

namespace upsnet::{room} {{

// See common/node.h.
struct Declared {{
  static constexpr Node kNodes[] = {{{nodes}}};
  static constexpr Tensor kInputs[] = {{
{inputs}
  }};
  static constexpr Tensor kOutputs[] = {{
{outputs}
  }};

{attributes}

  template <typename Self, typename Visitor>
  static void attributes(Self& self, Visitor& visitor) {{
{visits}
  }}
  void check() const {{
{checks}
  }}
  void check_sizes(const Shape*, int32_t) const {{}}
  template <typename Shapes, typename Dimensions>
  void output_shapes(const Shapes* in, Shapes* out, Dimensions& dims) const {{
{shapes}
  }}
  Params params(const Call& call) const {{
    Params params{{}};
{members}
    return params;
  }}
  const char* unsupported(const Call& call) const {{ return {room}::unsupported(params(call)); }}
{launcher}  int run_cpu(const Call& call, const Pool& pool) const {{ return {room}::run_cpu(params(call), pool); }}
}};

}}  // namespace upsnet::{room}
"""


LAUNCHER = """  size_t workspace_size(const Call& call) const {{ return {room}::workspace_size(params(call)); }}
  int launch(const Call& call, void* workspace, size_t bytes, CUstream_st* stream) const {{
    return {room}::launch(params(call), workspace, bytes, stream);
  }}
"""


# schema.Type -> upsnet::Type; the others are kFeatures or kFloat32.
TYPES = {"INT32": "kInt32", "INT64": "kInt64", "LIKE_FIRST": "kLikeFirstInput", "UINT8": "kUInt8"}


def read_schema(room: str) -> Schema:
    """SCHEMA of <room>/schema.py. The packages around it want PyTorch: here they are mere folders."""
    name, folder = "plugins_cuda", HERE
    for part in ("", *room.split("/")):
        name, folder = f"{name}.{part}".rstrip("."), folder / part
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(folder)]
    return importlib.import_module(f"{name}.schema").SCHEMA


def params_header(schema: Schema) -> str:
    """The struct; pytorch.params_type makes the same one for ctypes."""
    lines = []
    for field in schema.fields():
        count = f"[{field.count}]" if field.count > 1 else ""
        lines.append(f"  {field.kind} {field.name}{count};" + (f"  // {field.comment}" if field.comment else ""))
    members = [f"    UPSNET_MEMBER(Params, {field.name})," for field in schema.fields()]
    parts = {
        "fields": "\n".join(lines),
        "members": "\n".join(members),
        "pointers": " &&\n         ".join(pointers(schema)),
    }
    return PARAMS.format(room=schema.name, **parts)


def pointers(schema: Schema) -> Iterator[str]:
    """The test of every pointer's alignment."""
    like_first = f"element_size(params.{schema.tensors[0].name}_type)"
    for tensor in [*schema.tensors, *schema.outputs]:
        size = f"element_size(params.{tensor.name}_type)" if tensor.has_own_type else like_first
        size = size if tensor.element == "void" else f"sizeof({tensor.element})"
        if tensor.type.name == "AS_SUMS":
            size = f"std::max<size_t>({like_first}, 4)"
        for index in range(len(tensor.shapes)):
            place = f"[{index}]" if tensor.each else ""
            yield f"is_aligned(params.{tensor.name}{place}, {size})"


def declared_header(schema: Schema) -> str:
    """The table of a node."""
    optional = [tensor for tensor in schema.tensors if tensor.node]
    inputs = sum(len(tensor.shapes) for tensor in schema.tensors)
    nodes = [(schema.node, inputs - len(optional)), *((tensor.node, inputs) for tensor in optional)]
    parts = {
        "nodes": [", ".join(f'{{"{name}", {count}}}' for name, count in nodes)],
        "inputs": [row for tensor in schema.tensors for row in rows(tensor)],
        "outputs": [row for tensor in schema.outputs for row in rows(tensor)],
        "attributes": [member(attribute) for attribute in schema.attributes],
        "visits": [visit(attribute) for attribute in schema.attributes],
        "checks": [line for attribute in schema.attributes for line in checks(attribute)],
        "shapes": list(output_shapes(schema)),
        "members": list(fill_params(schema)),
    }
    launcher = LAUNCHER.format(room=schema.name) if schema.on_gpu else ""
    text = {name: "\n".join(lines) for name, lines in parts.items()}
    return DECLARED.format(room=schema.name, launcher=launcher, **text)


def rows(tensor: Tensor) -> Iterator[str]:
    """The tensor's lines in kInputs or kOutputs."""
    for index, (name, shape) in enumerate(zip(tensor.each or [tensor.name], tensor.shapes, strict=True)):
        kind = "kFeatures" if tensor.has_own_type else TYPES.get(tensor.type.name, "kFloat32")
        kind = "kLikeFirstInput" if index else kind
        last = str(tensor.channels_last).lower()
        yield f'      {{"{name}", "{" ".join(shape)}", Type::{kind}, {last}}},'


def member(attribute: Attribute) -> str:
    name, default = attribute.node_name, attribute.default or 0
    if attribute.count > 1:
        count = attribute.count * (2 if attribute.twice else 1)
        return f"  std::array<int32_t, {count}> {name}{{{', '.join([str(default)] * count)}}};"
    if attribute.words:
        return f'  std::string {name} = "{attribute.words[int(default)]}";'
    return f"  float {name} = {float(default)}f;" if attribute.type is float else f"  int32_t {name} = {int(default)};"


def visit(attribute: Attribute) -> str:
    need = "required" if attribute.default is None else "optional"
    return f'    visitor.{need}("{attribute.node_name}", self.{attribute.node_name});'


def checks(attribute: Attribute) -> Iterator[str]:
    name = attribute.node_name
    lowest = f"*std::min_element({name}.begin(), {name}.end())" if attribute.count > 1 else name

    def require(condition: str, what: str) -> str:
        return f'    require({condition}, "attribute {name} {what}");'

    if attribute.words:
        any_word = " || ".join(f'{name} == "{word}"' for word in attribute.words)
        yield require(any_word, f"must be {' or '.join(reversed(attribute.words))}")
    if attribute.type is float:
        yield require(f"{name} == {name}", "is NaN")
    if attribute.gone:
        yield require(
            f"{name} == {attribute.default}", f"is gone and must be {attribute.default}: export the model anew"
        )
    if attribute.least is not None:
        yield require(f"{lowest} >= {attribute.least}", f"must be at least {attribute.least}")
    if attribute.most is not None:
        yield require(f"{name} <= {attribute.most}", f"must be at most {attribute.most}")


def places(schema: Schema) -> dict[str, tuple[int, int]]:
    """Where every letter first stands: input and axis."""
    found: dict[str, tuple[int, int]] = {}
    shapes = [shape for tensor in schema.tensors for shape in tensor.shapes]
    for index, shape in enumerate(shapes):
        for axis, word in enumerate(shape):
            found.setdefault(word, (index, axis))
    return found


def output_shapes(schema: Schema) -> Iterator[str]:
    where = places(schema)

    def size(word: str) -> str:
        words = re.split("[+*]", word)
        known = [each for each in words if each in where and not each.isdigit()]
        if not known:
            return f"dims.constant({word})"
        index, axis = where[known[0]]
        dim = f"in[{index}].d[{axis}]"
        other = next((each for each in words if each != known[0]), "")
        return f"dims.{'product' if '*' in word else 'sum'}({dim}, {other})" if other else dim

    for index, output in enumerate(schema.outputs):
        yield f"    out[{index}] = dims.shape({', '.join(map(size, output.shape.split()))});"


def fill_params(schema: Schema) -> Iterator[str]:
    index = 0
    for tensor in schema.tensors:
        element = "" if tensor.element == "void" else f"<{tensor.element}>"
        for level in range(len(tensor.shapes)):
            place = f"[{level}]" if tensor.each else ""
            yield f"    params.{tensor.name}{place} = call.input{element}({index + level});"
        if tensor.has_own_type:
            yield f"    params.{tensor.name}_type = call.type({index});"
            if tensor.channels_last:
                yield f"    params.{tensor.name}_layout = call.layout({index});"
        index += len(tensor.shapes)
    for number, output in enumerate(schema.outputs):
        element = "" if output.element == "void" else f"<{output.element}>"
        yield f"    params.{output.name} = call.output{element}({number});"
    used = {
        word for each in schema.sizes.values() for size in schema.of_each_level(each) for word in re.split("-", size)
    }
    for letter, (tensor_index, axis) in places(schema).items():
        if letter in used:
            yield f"    const int32_t {letter} = call.size({tensor_index}, {axis});"
    for name, letters in schema.sizes.items():
        each = schema.of_each_level(letters)
        yield from (f"    params.{name}{f'[{i}]' if len(each) > 1 else ''} = {size};" for i, size in enumerate(each))
    for attribute in schema.attributes:
        node = attribute.node_name
        if attribute.words:
            yield f'    params.{attribute.name} = {node} == "{attribute.words[1]}";'
        elif attribute.count > 1:
            yield from (f"    params.{attribute.name}[{i}] = {node}[{i}];" for i in range(attribute.count))
        elif not attribute.gone:
            yield f"    params.{attribute.name} = {node};"


def main(folder: str, *rooms: str) -> None:
    for room in rooms:
        schema = read_schema(room)
        headers = [
            ("params.h", params_header(schema)),
            *([("declared.h", declared_header(schema))] if schema.node else []),
        ]
        for name, text in headers:
            path = Path(folder, room, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_text() != text:  # else everything would be compiled anew
                path.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])

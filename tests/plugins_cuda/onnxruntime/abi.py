"""ONNX Runtime's C interface in lines of text, as our abi.h declares it or as its own header does: the place of every
function that we use in its table, and how its arguments travel; the members of a custom operator; values.

    python -m tests.plugins_cuda.onnxruntime.abi FOLDER > tests/plugins_cuda/onnxruntime/abi.txt

FOLDER holds onnxruntime_c_api.h, from ONNX Runtime's sources or a release. What is not in that file has to be recorded
so, once, when abi.h is to have more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from upsnet.kernels.building import SOURCES

ABI = SOURCES / "onnxruntime" / "abi.h"
STRUCTS = {"Api": "OrtApi", "ApiBase": "OrtApiBase", "CustomOp": "OrtCustomOp"}
ELEMENT = "ONNX_TENSOR_ELEMENT_DATA_TYPE_"
NAMES = {  # of values, in ONNX Runtime's header
    "kFail": "ORT_FAIL",
    "kInvalidArgument": "ORT_INVALID_ARGUMENT",
    "kRuntimeException": "ORT_RUNTIME_EXCEPTION",
    **{
        f"k{name}": ELEMENT + name.upper()
        for name in ["Undefined", "Float", "Uint8", "Int32", "Int64", "Float16", "BFloat16"]
    },
    "kDefaultMemory": "OrtMemTypeDefault",
    "kRequired": "INPUT_OUTPUT_REQUIRED",
}
PROGRAM = """
#include <cstddef>
#include <iostream>
#include <string>
#include <type_traits>
#include {header}

template <typename T>
std::string travels() {{
  if (std::is_void_v<T>) return "-";
  if (std::is_pointer_v<T>) return "p";
  using Sized = std::conditional_t<std::is_void_v<T>, int, T>;
  return (std::is_floating_point_v<T> ? "f" : "i") + std::to_string(sizeof(Sized));
}}
template <typename T>
struct Member {{
  static std::string text() {{ return travels<T>(); }}
}};
template <typename Result, typename... Arguments, bool kNoexcept>
struct Member<Result (*)(Arguments...) noexcept(kNoexcept)> {{
  static std::string text() {{
    return travels<Result>() + "(" + ((travels<Arguments>() + " ") + ... + std::string()) + ")";
  }}
}};
#define MEMBER(type, name, member) \\
  std::cout << name << " " << offsetof(type, member) << " " << Member<decltype(type::member)>::text() << "\\n";

int main() {{
{lines}
}}
"""


def members(text: str, struct: str) -> list[str]:
    """The functions that abi.h declares in a struct, and its numbers."""
    body = text.split(f"struct {struct} {{", 1)[1].split("\n};", 1)[0]
    return re.findall(r"^  (?:uint32_t |[\w\* ]*\(\*)(\w+)\)?[(;]", re.sub(r"//.*", "", body), re.MULTILINE)


def describe(text: str, headers: Path | None = None) -> list[str]:
    """What `text`, an abi.h, declares; or the same things as ONNX Runtime's header in the folder `headers` has them."""
    lines = []
    for ours, theirs in STRUCTS.items():
        struct = theirs if headers else f"upsnet::onnxruntime::{ours}"
        lines += [f'  MEMBER({struct}, "{ours}.{member}", {member})' for member in members(text, ours)]
    enums = re.findall(r"^enum (\w+) : \w+ \{(.*?)\}", text, re.MULTILINE | re.DOTALL)
    for enum, values in enums:
        for value in re.findall(r"(k\w+) =", values):
            name = NAMES[value] if headers else f"upsnet::onnxruntime::{value}"
            lines.append(f'  std::cout << "{enum}.{value} " << int({name}) << " i" << sizeof({name}) << "\\n";')
    header = "<onnxruntime_c_api.h>" if headers else '"abi.h"'
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "describe"
        program.with_suffix(".cpp").write_text(PROGRAM.format(header=header, lines="\n".join(lines)))
        (Path(folder) / "abi.h").write_text(text)
        command = ["g++", "-std=c++17", "-w", f"-isystem{headers or folder}", f"-I{folder}"]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of the sanitizers
        subprocess.run([*command, program.with_suffix(".cpp"), "-o", program], check=True, env=environment)
        return subprocess.check_output([program], text=True, env=environment).splitlines()


if __name__ == "__main__":
    print("\n".join(describe(ABI.read_text(), Path(sys.argv[1]))))

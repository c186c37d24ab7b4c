"""What is in which TensorRT: the enumerations of the fake, and what a version lacks."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple


class Flavour(NamedTuple):
    """A package that the fake stands for. number: of its version, for comparisons; RTX counts as what it is like."""

    name: str
    module: str
    version: str
    number: tuple[int, int]

    @property
    def rtx(self) -> bool:
        return self.module == "tensorrt_rtx"


FLAVOURS = {
    "10.9": Flavour("10.9", "tensorrt", "10.9.0.34", (10, 9)),
    "10.13": Flavour("10.13", "tensorrt", "10.13.3.9", (10, 13)),
    "10.16": Flavour("10.16", "tensorrt", "10.16.0.72", (10, 16)),
    "11.0": Flavour("11.0", "tensorrt", "11.0.0.12", (11, 0)),
    "11.1": Flavour("11.1", "tensorrt", "11.1.0.106", (11, 1)),
    "rtx": Flavour("rtx", "tensorrt_rtx", "1.7.1.116", (11, 1)),
}

DATA_TYPES = dict(
    FLOAT=0, HALF=1, INT8=2, INT32=3, BOOL=4, UINT8=5, FP8=6, BF16=7, INT64=8, INT4=9, FP4=10, E8M0=11
)  # fmt: skip
SIZES = dict(FLOAT=4, HALF=2, INT8=1, INT32=4, BOOL=1, UINT8=1, FP8=1, BF16=2, INT64=8, INT4=0.5, FP4=0.5, E8M0=1)
ALIASES = dict(
    float32="FLOAT", float16="HALF", bfloat16="BF16", int8="INT8", int32="INT32", int64="INT64", uint8="UINT8",
    fp8="FP8", fp4="FP4", int4="INT4", bool="BOOL",
)  # fmt: skip

BUILDER_FLAGS = (
    "DEBUG GPU_FALLBACK REFIT DISABLE_TIMING_CACHE EDITABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS DIRECT_IO "
    "VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME ERROR_ON_TIMING_CACHE_MISS DISABLE_COMPILATION_CACHE STRIP_PLAN "
    "REFIT_IDENTICAL WEIGHT_STREAMING REFIT_INDIVIDUAL STRICT_NANS MONITOR_MEMORY"
)
LAYER_TYPES = (
    "CONVOLUTION CAST ACTIVATION POOLING LRN SCALE SOFTMAX DECONVOLUTION CONCATENATION ELEMENTWISE UNARY PADDING "
    "SHUFFLE REDUCE TOPK GATHER MATRIX_MULTIPLY CONSTANT IDENTITY PLUGIN_V2 SLICE SHAPE RESIZE SELECT FILL QUANTIZE "
    "DEQUANTIZE SCATTER EINSUM ASSERTION GRID_SAMPLE CUMULATIVE NORMALIZATION PLUGIN_V3 CONDITION TRIP_LIMIT"
)
ENUMS = {
    "MemoryPoolType": "WORKSPACE DLA_MANAGED_SRAM DLA_LOCAL_DRAM DLA_GLOBAL_DRAM TACTIC_DRAM TACTIC_SHARED_MEMORY",
    "ProfilingVerbosity": "LAYER_NAMES_ONLY NONE DETAILED",
    "TensorIOMode": "NONE INPUT OUTPUT",
    "TensorLocation": "DEVICE HOST",
    "TensorFormat": "LINEAR CHW2 HWC8 CHW4 CHW16 CHW32",
    "LayerInformationFormat": "ONELINE JSON",
    "HardwareCompatibilityLevel": "NONE AMPERE_PLUS SAME_COMPUTE_CAPABILITY",
    "ExecutionContextAllocationStrategy": "STATIC ON_PROFILE_CHANGE USER_MANAGED",
    "EngineCapability": "STANDARD SAFETY DLA_STANDALONE",
    "RuntimePlatform": "SAME_AS_BUILD WINDOWS_AMD64",
    "TilingOptimizationLevel": "NONE FAST MODERATE FULL",
    "PluginCapabilityType": "CORE BUILD RUNTIME",
    "WeightsRole": "KERNEL BIAS SHIFT SCALE CONSTANT ANY",
    "ErrorCode": (
        "SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH INVALID_NODE "
        "UNSUPPORTED_GRAPH UNSUPPORTED_NODE UNSUPPORTED_NODE_ATTR UNSUPPORTED_NODE_INPUT UNSUPPORTED_NODE_DATATYPE"
    ),
    "Severity": "INTERNAL_ERROR ERROR WARNING INFO VERBOSE",
    "LayerType": LAYER_TYPES,
}
RTX_ENUMS = {
    "CudaGraphStrategy": "DISABLED WHOLE_GRAPH_CAPTURE",
    "DynamicShapesKernelSpecializationStrategy": "LAZY EAGER NONE",
    "ComputeCapability": "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121",
    "EngineValidity": "VALID SUBOPTIMAL INVALID",
    "EngineInvalidityDiagnostics": (
        "VERSION_MISMATCH UNSUPPORTED_CC OLD_CUDA_DRIVER OLD_CUDA_RUNTIME INSUFFICIENT_GPU_MEMORY MALFORMED_ENGINE"
    ),
}
# Names that RTX 1.7's bindings do not have, so that no test can hold them against something.
ELSEWHERE = {
    "BuilderFlag": {"FP16", "BF16", "INT8", "FP8", "INT4", "FP4"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH", "PREFER_JIT_PYTHON_PLUGINS", "PREFER_AOT_PYTHON_PLUGINS"},
    "Builder": {"platform_has_fast_fp16"},
}


def _members(words: str) -> dict[str, int]:
    return {word: number for number, word in enumerate(words.split())}


def enums(flavour: Flavour) -> dict[str, Any]:
    """By name, with the members that this version has."""
    flags, network, parser = BUILDER_FLAGS, "STRONGLY_TYPED", "NATIVE_INSTANCENORM"
    if flavour.number < (11, 0):
        flags += " FP16 BF16 INT8 FP8 INT4 FP4"
        network = "EXPLICIT_BATCH STRONGLY_TYPED"
    if not flavour.rtx:
        network += " PREFER_JIT_PYTHON_PLUGINS PREFER_AOT_PYTHON_PLUGINS"
    if flavour.number >= (10, 15):
        parser += " ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA REPORT_CAPABILITY_DLA ENABLE_PLUGIN_OVERRIDE"
    words = ENUMS | {"OnnxParserFlag": parser} | (RTX_ENUMS if flavour.rtx else {})
    made = {name: IntEnum(name, _members(each)) for name, each in words.items()}  # type: ignore[misc]
    made["BuilderFlag"] = IntEnum("BuilderFlag", _members(flags))
    # In 10 it follows EXPLICIT_BATCH; from 11 on, and in RTX, it is the first, and changes nothing.
    made["NetworkDefinitionCreationFlag"] = IntEnum("NetworkDefinitionCreationFlag", _members(network))  # type: ignore[misc]
    made["DataType"] = IntEnum("DataType", DATA_TYPES)
    made["DataType"].itemsize = property(lambda this: SIZES[this.name])  # type: ignore[attr-defined]
    return made


def lacking(flavour: Flavour) -> dict[str, set[str]]:
    """Class -> its names that this version does not have."""
    rtx_alone = {
        "IBuilderConfig": {"num_compute_capabilities", "get_compute_capability", "set_compute_capability"},
        "IExecutionContext": {"is_stream_capturable"},
        "Runtime": {"get_engine_validity", "engine_header_size"},
        "IRuntimeConfig": {
            "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "create_runtime_cache",
            "set_runtime_cache", "get_runtime_cache",
        },
    }  # fmt: skip
    missing: dict[str, set[str]] = {} if flavour.rtx else rtx_alone
    if flavour.number < (10, 13):
        missing = missing | {"ICudaEngine": {"create_runtime_config"}}
    if flavour.number >= (11, 0):
        missing = missing | {"Builder": {"platform_has_fast_fp16"}}
    return missing

"""What is measured, the most telling first: whoever is cut short has the most."""

from __future__ import annotations

from typing import NamedTuple

CEILINGS = "ceilings"  # a variant that is none: what the machine can do at most; it compiles our kernels, too
REFERENCE = "eager, reference operators"  # what every other one is compared with
EAGER = "eager"
GRAPH = "eager, CUDA graph"
COMPILE = "torch.compile, CUDA graphs"
AOT = "AOTInductor"
ORT = "ONNX Runtime"
ORT_BODIES = "ONNX Runtime, function bodies"
TENSORRT = "TensorRT"
MOST = {  # seconds that one may take, all batches of a network together
    CEILINGS: 240,
    REFERENCE: 60,
    EAGER: 60,
    GRAPH: 60,
    COMPILE: 240,
    AOT: 300,
    ORT: 240,  # its kernels are compiled, and the network is exported
    ORT_BODIES: 120,
    TENSORRT: 400,
}
SHORT = {  # for a command line
    "reference": REFERENCE,
    "eager": EAGER,
    "graph": GRAPH,
    "compile": COMPILE,
    "aot": AOT,
    "onnxruntime": ORT,
    "bodies": ORT_BODIES,
    "tensorrt": TENSORRT,
}
NETWORKS = {"coco_r50": (800, 1344), "coco_hybrid": (512, 672)}  # configurations, and the size of the photos
TINY = {"tiny": (64, 96)}  # rehearsed
BATCHES = (1, 8)
PRECISIONS = ("fp16", "bf16", "fp32")


class Case(NamedTuple):
    """One process."""

    network: str
    variant: str
    precision: str

    def __str__(self) -> str:
        return f"{self.network} {self.precision}, {self.variant}"


def all_cases(rehearsed: bool = False) -> list[Case]:
    """fp16 of both networks before bf16 and fp32; what takes seconds before what compiles for minutes."""
    networks = list(TINY if rehearsed else NETWORKS)
    quick, slow = (REFERENCE, EAGER, GRAPH), (COMPILE, ORT, ORT_BODIES, AOT, TENSORRT)
    order = [
        *((variants, network, "fp16") for variants in (quick, slow[:1], slow[1:3]) for network in networks),
        *((quick, network, "bf16") for network in networks),
        *((slow[3:], network, "fp16") for network in networks),
        *((quick, network, "fp32") for network in networks),
        *((slow[:1], network, "bf16") for network in networks),
        *((slow[1:3], network, "fp32") for network in networks),
        *((slow[3:], network, "bf16") for network in networks),
    ]
    return [Case(network, variant, precision) for variants, network, precision in order for variant in variants]

"""The usual names of NVIDIA's GPUs, and the drivers that a version of CUDA needs."""

from __future__ import annotations

# By compute capability: https://developer.nvidia.com/cuda-gpus
GPUS = {
    "70": "V100",
    "72": "Jetson Xavier",
    "75": "T4, RTX 20, Quadro RTX",
    "80": "A100, A30",
    "86": "A10, A40, A2, RTX 30, RTX A6000",
    "87": "Jetson Orin",
    "89": "L4, L40S, RTX 40, RTX 6000 Ada",
    "90": "H100, H200, GH200",
    "100": "B200, GB200",
    "103": "B300, GB300",
    "110": "Jetson Thor",
    "120": "RTX 50, RTX PRO Blackwell",
    "121": "DGX Spark (GB10)",
}
# The oldest driver on Linux for a major version of CUDA: CUDA's release notes, "minor version compatibility".
DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580"}

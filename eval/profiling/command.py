"""`upsnet engine profile`: where the time of a model goes in ONNX Runtime, by module and by operator.

    upsnet engine profile --model runs/demo --photo street.jpg
    upsnet engine profile --model r50.onnx --size 800x1088 --batch 4 --out profile.json
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eval.profiling import roofline
from eval.profiling.chart import draw
from eval.profiling.measure import BODIES, LIBRARY, profile
from eval.profiling.report import Profile, profile_table
from upsnet.command_line.tables import print_tables
from upsnet.errors import InputError
from upsnet.files import write_bytes
from upsnet.geometry import NetworkBatch, ResizeRule, collate, to_network
from upsnet.machine import machine_facts, package_versions
from upsnet.photos import read_photo
from upsnet.runtimes.onnx_runtime import OnnxRuntimePredictor
from upsnet.runtimes.open import find_model

KERNELS = (LIBRARY, BODIES)

"""The kernels' machine code (sm_90) against plugins_cuda/sass.json: a change that makes one fatter is seen."""

from __future__ import annotations

import copy
import json

import pytest

from plugins_cuda import sass
from plugins_cuda.sass import Figures

# cuobjdump's way to print; a branch to code behind EXIT and back is no loop.
TEXT = """
        /*0000*/                   S2R R0, SR_TID.X ;                    /* 0x0000000000007919 */
                                                                         /* 0x000fe20000000800 */
        /*0010*/              @!P0 BRA 0xc0 ;                            /* 0x */
        /*0020*/                   LDG.E R2, desc[UR4][R4.64] ;          /* 0x */
        /*0030*/                   FFMA R3, R2, R2, R3 ;                 /* 0x */
        /*0040*/                   IADD3 R0, R0, 0x1, RZ ;               /* 0x */
        /*0050*/               @P1 BRA 0x30 ;                            /* 0x */
        /*0060*/                   BSSY B0, 0x90 ;                       /* 0x */
        /*0070*/               @P3 BRA 0x90 ;                            /* 0x */
        /*0080*/                   BSYNC B0 ;                            /* 0x */
        /*0090*/               @P2 BRA 0x20 ;                            /* 0x */
        /*00a0*/                   STG.E desc[UR4][R4.64], R3 ;          /* 0x */
        /*00b0*/                   EXIT ;                                /* 0x */
        /*00c0*/                   MOV R3, RZ ;                          /* 0x */
        /*00d0*/                   BRA 0x20 ;                            /* 0x */
        /*00e0*/                   BRA 0xe0 ;                            /* 0x */
        /*00f0*/                   NOP ;                                 /* 0x */
"""


def test_inner_loops_of_a_text() -> None:
    code = sass.instructions(TEXT)
    assert len(code) == 15
    (loop,) = sass.inner_loops(code)
    assert [address for address, *_ in loop] == [0x30, 0x40, 0x50]
    assert sass.count_by_class(loop) == {"BRA": 1, "float": 1, "integer": 1}


def test_names() -> None:
    symbol = (
        "_ZN6upsnet11deform_conv41_GLOBAL__N__09e89751_9_launch_cu_7d725f1417add_splits_kernelI6__halfEEvNS0_7ProblemE"
    )
    assert sass.short_names([symbol]) == {symbol: "deform_conv: add_splits_kernel<half>"}


@pytest.fixture(scope="module")
def recorded() -> Figures:
    return json.loads(sass.RECORD.read_text())


def kernels_of(recorded: Figures) -> dict[str, Figures]:
    return recorded["kernels"]


def test_no_kernel_is_fatter_than_recorded(recorded: Figures) -> None:
    try:
        release = sass.nvcc_release()
        if release != recorded["nvcc"]:
            pytest.skip(f"nvcc here is {release}, the record is of {recorded['nvcc']}: {sass.RECORD_COMMAND}")
        sass.find("cuobjdump")
    except sass.MissingToolError as missing:
        pytest.skip(str(missing))
    lines = sass.fatter(kernels_of(recorded), sass.measure(sass.compile_kernels()))
    assert not lines, "\n".join([*lines, f"where that is meant: {sass.RECORD_COMMAND}"])


def test_nothing_recorded_spills(recorded: Figures) -> None:
    assert {(figures["stack"], figures["local"]) for figures in kernels_of(recorded).values()} == {(0, 0)}


@pytest.mark.parametrize("key", [*sass.LIMITS, "instructions"])
def test_a_fatter_kernel_is_named(recorded: Figures, key: str) -> None:
    before, name = kernels_of(recorded), "deform_conv: deform_conv_kernel<half, 128, true>"
    now = copy.deepcopy(before)
    now[name][key] = now[name][key] * 11 // 10 + 1
    assert sass.fatter(before, now) == [f"{name}: {key}: {before[name][key]} before, {now[name][key]} now"]
    assert sass.fatter(now, before) == []


def test_a_fatter_loop_is_named_and_a_new_kernel(recorded: Figures) -> None:
    before, name = kernels_of(recorded), "panoptic_fusion: label_pixels<half, (Layout)0, false>"
    now = copy.deepcopy(before)
    now[name]["loop"]["LDL"] = 1
    now["nms: other"] = now.pop("nms: nms_kernel<true>")
    assert sass.fatter(before, now) == [
        "nms: nms_kernel<true>: is in the record alone",
        "nms: other: is not in the record",
        f"{name}: inner loop, LDL: 0 before, 1 now",
    ]

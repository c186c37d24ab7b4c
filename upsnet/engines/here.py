"""Whether this machine is one that an engine runs on: its platform, CPU, driver and GPU."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator

from upsnet.driver import Driver
from upsnet.engines.findings import Cause, Finding, failed, fine, unknown
from upsnet.engines.gpus import DRIVERS
from upsnet.engines.kinds import Kind
from upsnet.engines.manifest import EngineManifest, this_platform
from upsnet.machine import cpu_level

LEAST_LEVEL = 2  # of x86-64, that a library of operators is compiled for
AMPERE = "80"  # the compute capability that TensorRT's AMPERE_PLUS begins with


def check_platform(manifest: EngineManifest) -> Finding:
    here = this_platform()
    if manifest.platform != here:
        text = f"it was built for {manifest.platform}, and this machine is {here}"
        return failed("platform", "platform", text, "build the engine on a machine of this kind")
    return fine("platform", here)


def check_cpu() -> Finding:
    """Whether a library of operators runs on this CPU."""
    level = cpu_level()
    if level is None:
        return unknown("CPU", f"which instructions this {platform.machine()} has")
    if level < LEAST_LEVEL:
        text = "this CPU has no SSE4.2 (x86-64-v2), which the library of operators is compiled for"
        return failed(
            "CPU", "CPU instructions", text, "take a CPU from 2009 or later, or the virtual one that shows it"
        )
    return fine("CPU", f"x86-64-v{level}; the library needs v{LEAST_LEVEL}, and takes the highest that there is")


def check_gpu(
    driver: Driver, number: int, kind: Kind, manifest: EngineManifest | None, cuda: int | None
) -> Iterator[Finding]:
    """The driver, and whether the GPU of that number is one that the engine runs on. cuda: what the package needs."""
    wanted, upwards = capabilities(kind, manifest)
    if driver.problem and not driver.has_gpu:
        needs = (
            f", and it needs one of compute capability {runs_on(wanted, upwards)}" if wanted else ", and it needs one"
        )
        yield unknown("GPU", f"{driver.problem}{needs}")
        return
    if driver.problem:
        nothing = driver.cuda is None and not driver.cure
        cause: Cause = "GPU" if nothing else "driver"
        yield failed(cause, cause, driver.problem, driver.cure or "take a machine with one")
        return
    if driver.cuda is not None and cuda is not None and driver.cuda[0] < cuda:
        text = f"NVIDIA's driver is too old: it runs CUDA {dotted(driver.cuda)}, and the package needs CUDA {cuda}"
        newer = f"install NVIDIA's driver {DRIVERS.get(cuda, f'for CUDA {cuda}')} or newer"
        yield failed("driver", "driver too old", text, f"{newer}, or the package for CUDA {driver.cuda[0]}")
    else:
        yield fine("driver", f"works; CUDA {dotted(driver.cuda)}" if driver.cuda else "works")
    if number >= len(driver.gpus):
        text = f"there is no GPU number {number}: the driver knows {len(driver.gpus)}, counted from 0"
        yield failed("GPU", "GPU", text, "name one that is there, as --device cuda:0")
        return
    gpu = driver.gpus[number]
    title = f"{gpu.name}, compute capability {capability(gpu.compute_capability)}"
    if not wanted:
        yield unknown("GPU", f"which GPUs it runs on is nowhere said; here is {title}")
    elif gpu.compute_capability not in wanted and not (upwards and int(gpu.compute_capability) >= int(wanted[0])):
        text = f"it runs on compute capability {runs_on(wanted, upwards)}, and GPU {number} is {title}"
        yield failed("GPU", "compute capability", text, "build the engine on this machine with `make engine`")
    elif manifest is not None and manifest.gpu not in (None, gpu.name):
        yield fine("GPU", f"{title}; it was built on {manifest.gpu}, and is fastest there")
    else:
        yield fine("GPU", title)


def capability(number: str) -> str:
    """As people write it: "9.0" for "90"."""
    return f"{number[:-1]}.{number[-1]}" if re.fullmatch(r"\d{2,3}", number) else number


def capabilities(kind: Kind, manifest: EngineManifest | None) -> tuple[tuple[str, ...], bool]:
    """The compute capabilities that it runs on, () where nobody says; and whether newer ones are among them, too."""
    if manifest is not None and (manifest.hardware_compatible or "").lower().startswith("ampere"):
        return (AMPERE,), True
    said = manifest.compute_capabilities if manifest is not None else ()
    return said or kind.compute_capabilities, False


def runs_on(capabilities: tuple[str, ...], upwards: bool = False) -> str:
    """8.6, 8.9."""
    return ", ".join(map(capability, capabilities)) + (" and newer" if upwards else "")


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"

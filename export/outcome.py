"""What became of an engine."""

from __future__ import annotations

from typing import Literal

from upsnet.engines.manifest import Counts
from upsnet.report import Sparse


class Outcome(Sparse):
    """What became of one engine, as engine.json has it. Which keys there are depends on the status."""

    status: Literal["built", "refused", "absent"]
    stage: str | None = None  # refused: plugins, parser, builder, types or process
    errors: list[str] | None = None  # refused
    reason: str | None = None  # absent: why; refused without plugins: the cure
    file: str | None = None
    nodes: int | None = None
    bytes: int | None = None
    seconds: float | None = None  # of the build
    version: str | None = None  # of the package that built it
    built_with: dict[str, str] | None = None  # further packages and their versions
    layers: Counts | None = None  # those of weights by the type that they compute in
    plugins: Counts | None = None  # custom operators by the type of their first input
    kernels: str | None = None  # ONNX Runtime's: the library's name, or that function bodies serve, and why
    kernel_abi: int | None = None  # of the plugins: an engine runs with plugins of the same number alone
    notes: list[str] | None = None  # what its maker should know, one line each

    @property
    def lacks_plugins(self) -> bool:
        """The parser met operators whose plugins nobody has built: no failure where it was not asked for."""
        return self.stage == "parser" and self.reason is not None

    def brief(self) -> str:
        """As str(); where plugins are lacking the cure alone, without what the parser says of that."""
        return self.reason if self.lacks_plugins and self.reason else str(self)

    def __str__(self) -> str:
        """Why it was not built, the first error alone; else its size, its time, its kernels, and what its layers and
        plugins compute in."""
        if self.status != "built":
            first, *others = self.errors or [""]
            more = f" (and {len(others)} more)" if others else ""
            return "; ".join(filter(None, [first + more, self.reason]))
        counts = {**(self.layers or {}), **(self.plugins or {})}
        parts = [f"{count} {name} {kind}" for name, kinds in counts.items() for kind, count in kinds.items()]
        size = f"{(self.bytes or 0) / 1e6:.1f} MB"
        time = f" in {self.seconds:.1f} s" if self.seconds is not None else ""
        kernels = f"kernels: {self.kernels}" if self.kernels else ""
        return "; ".join(filter(None, [size + time, kernels, ", ".join(parts)]))

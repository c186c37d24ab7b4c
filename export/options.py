"""What an engine's builder can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from upsnet.engines.manifest import Profile


class EngineOptions(BaseModel):
    """Options of the builders; which of them a backend has, its `options` says. The defaults leave the choice to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profiles: tuple[Profile, ...] = ()  # (): one, of the model's resize rule and largest batch
    workspace: int | None = Field(default=None, gt=0)  # bytes: the most memory that a layer may use beside its tensors
    level: int | None = Field(default=None, ge=0, le=5)  # how long the builder looks for faster kernels; TensorRT: 3
    timing_cache: Path | None = None  # None: one in the user's cache, for each version and GPU
    version_compatible: bool = False
    hardware_compatible: Literal["same", "ampere+"] | None = None
    compute_capabilities: tuple[str, ...] = ()
    weight_streaming: bool = False
    refit: bool = False

    def given(self) -> dict[str, Any]:
        """Those that differ from the default, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)

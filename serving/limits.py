"""How much one request may bring, and how many may wait: everything that a server's memory depends on."""

from __future__ import annotations

from typing import NamedTuple

from upsnet.manifest import Manifest

CHANNELS = 3
ROOM = 1 << 16  # bytes of a message beside its images: the other tensors, names, parameters


class Limits(NamedTuple):
    """Bounds of a service."""

    max_pixels: int  # B x H x W of a tensor request
    max_photo_bytes: int = 32 << 20  # of one encoded photo
    max_photos: int = 4  # in one request
    max_waiting: int = 64  # requests in the queue
    large_pixels: int = 0  # a tensor request of more, or a photo of more, is a large one: see the lanes

    @property
    def max_message(self) -> int:
        """Bytes of one gRPC message or HTTP body."""
        return max(self.max_pixels * CHANNELS, self.max_photo_bytes * self.max_photos) + ROOM

    @classmethod
    def of(cls, manifest: Manifest) -> Limits:
        """What the model is made for, and a plan's profile: its largest batch, of photos upright and across in one."""
        rule = manifest.resize
        height, width = rule.padded_size(rule.max_side, rule.max_side)
        return cls(max_pixels=manifest.max_batch * height * width, max_photos=manifest.max_batch)

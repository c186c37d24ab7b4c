"""How much one request may bring, and how many may wait: everything that a server's memory depends on."""

from __future__ import annotations

from typing import NamedTuple

from upsnet.manifest import Manifest

CHANNELS = 3
ROOM = 1 << 16  # bytes of a message beside its images: the other tensors, names, parameters
LEAST_PIXELS = 1 << 22  # what max_pixels is at least, so that a model of small images can be tried with large ones


class Limits(NamedTuple):
    """Bounds of a service."""

    max_pixels: int  # B x H x W of a tensor request
    max_photo_bytes: int = 32 << 20  # of one encoded photo
    max_photos: int = 4  # in one request
    max_waiting: int = 64  # requests in the queue
    large_pixels: int = 0  # a tensor request of more is a large one: see serving/front/admission.py; 0: none is
    large_photo_pixels: int = 1 << 24  # height x width; photos of more, or bytes of their maps, are a large request
    instances: int = 2  # of each model in Triton: requests that run at the same time
    max_seconds: float = 120.0  # that a request may take where its caller names no deadline
    max_restart: float = 30.0  # seconds that a request waits for a server that is not ready
    max_held: int = 1 << 30  # bytes of all messages that are being read or wait at one time
    max_region_bytes: int = 256 << 20  # of one region of shared memory
    max_regions: int = 64

    @property
    def max_message(self) -> int:
        """Bytes of one gRPC message or HTTP body."""
        return max(self.max_pixels * CHANNELS, self.max_photo_bytes * self.max_photos) + ROOM

    @property
    def max_in_flight(self) -> int:
        """Requests that are with Triton: full batches form from them, and its own queue stays short."""
        return 2 * self.max_photos * self.instances

    @property
    def of_port(self) -> Limits:
        """Of a service that starts with a version of these: gRPC's largest message cannot be changed later, and a
        version to come may take as many photos as is usual."""
        return self._replace(max_photos=max(self.max_photos, Limits._field_defaults["max_photos"]))

    @classmethod
    def of(cls, manifest: Manifest) -> Limits:
        """What the model is made for, and a plan's profile: its largest batch, of photos upright and across in one."""
        rule = manifest.resize
        height, width = rule.padded_size(rule.max_side, rule.max_side)
        photo_height, photo_width = rule.padded_size(rule.short_side, rule.max_side)
        return cls(
            max_pixels=max(manifest.max_batch * height * width, LEAST_PIXELS),
            max_photos=manifest.max_batch,
            large_pixels=photo_height * photo_width,
        )

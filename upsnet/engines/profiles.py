"""Whether an engine's profiles hold the photos that its network's rule makes."""

from __future__ import annotations

from upsnet.contract import INPUTS
from upsnet.engines.findings import Finding, failed, fine
from upsnet.engines.manifest import EngineManifest, Profile

# Photos, height to width, that are tried where none is named.
RATIOS = ((1, 1), (3, 4), (2, 3), (9, 16), (1, 2), (4, 3), (3, 2), (16, 9), (2, 1))
AGAIN = "build the engine again with `make engine`"


def check_profiles(manifest: EngineManifest, photo: tuple[int, int] | None) -> Finding:
    """Whether the engine holds the sizes of photos that its network's rule makes."""
    profiles, resize = manifest.profiles, manifest.network.resize
    broken = next((name for each in profiles for name in INPUTS if not _ordered(each.get(name))), None)
    if broken:
        text = f"a profile in the manifest has no smallest, usual and largest shape of {broken!r} in this order"
        return failed("profile", "profile", text, AGAIN)

    def fits(height: int, width: int) -> bool:
        padded = resize.padded_size(*resize.network_size(height, width))
        return any(_holds(each, padded) for each in profiles)

    held = "; ".join(bounds(each) for each in profiles)
    if photo is not None and not fits(*photo):
        height, width = resize.padded_size(*resize.network_size(*photo))
        text = f"a photo of {photo[0]} x {photo[1]} is {height} x {width} in the network, and the engine holds {held}"
        return failed("profile", "profile", text, "build the engine again with a profile that holds it")
    refused = [f"{height}:{width}" for height, width in RATIOS if not fits(840 * height, 840 * width)]
    if len(refused) == len(RATIOS) and photo is None:
        short, longest = resize.short_side, resize.max_side
        text = (
            f"no photo fits: the network takes a short side of {short} and at most {longest}, the engine holds {held}"
        )
        return failed("profile", "profile", text, AGAIN)
    but = f"; photos of height to width {', '.join(refused)} do not fit, and are refused" if refused else ""
    return fine("profile", f"holds {held}{but}")


def _ordered(shapes: object) -> bool:
    if not isinstance(shapes, tuple) or len({len(shape) for shape in shapes}) != 1:
        return False
    return all(0 < low <= usual <= high for low, usual, high in zip(*shapes, strict=True))


def _holds(profile: Profile, size: tuple[int, int]) -> bool:
    low, _, high = profile["images"]
    return all(low[axis] <= side <= high[axis] for axis, side in zip((1, 2), size, strict=True))


def bounds(profile: Profile) -> str:
    """1 to 4 photos of 32 x 32 to 1344 x 1344, best 1 of 800 x 1088."""
    low, usual, high = profile["images"]
    sizes = [f"{height} x {width}" for _, height, width, *_ in (low, usual, high)]
    return f"{low[0]} to {high[0]} photos of {sizes[0]} to {sizes[2]}, best {usual[0]} of {sizes[1]}"

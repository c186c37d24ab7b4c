"""What to do with a data set that was just made."""

from __future__ import annotations

from pathlib import Path

TIMES, LEAST = 30, 40_000  # a photo in a schedule; photos of a schedule, where there are few


def how_to_train(folder: Path, images: int, pixels: int) -> str:
    """folder: with train.json and val.json. images, pixels: of its training photos, all together.

    The two numbers of training/configs/custom.yaml that follow from the photos, and the command.
    """
    area = pixels / max(images, 1) / 100
    limit = int(float(f"{area:.2g}"))
    return (
        "Next: copy training/configs/custom.yaml to my.yaml. For these photos set there\n"
        f"  panoptic: {{stuff_area_limit: {limit}}}  # 1 % of a photo, or less where stuff in small pieces counts\n"
        f"  images: {max(TIMES * images, LEAST)}  # in schedule\n"
        f"and then: upsnet train --config my.yaml --data {folder}"
    )

"""Panoptic quality of a prediction folder in the official COCO panoptic format, equal to the official panopticapi.

    python eval/pq.py --gt-json val.json --pred-json predictions.json --json pq.json

The same as `upsnet pq`.
"""

from __future__ import annotations

from upsnet.command_line.command import run
from upsnet.command_line.pq import main

if __name__ == "__main__":
    run(main)

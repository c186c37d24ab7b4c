"""UPSNet's panoptic head, in three steps; in brackets the heuristic merge, where it differs.

1. Which detections stay: their masks, pruned class by class [all as one].
2. The label of every pixel: the argmax over stuff, instances and the unknown class [the first mask's, else the best
   channel's].
3. From labels to segments: the majority rule [none], the area limit, the map and the table.
"""

from plugins_cuda.panoptic_fusion import reference
from plugins_cuda.panoptic_fusion.schema import SCHEMA
from plugins_cuda.pytorch import Call, operator

MAX_ROWS = 255
MAX_MASK = 512


def _check(call: Call) -> None:
    stuff, channels, rows, cells = (call.sizes[name] for name in ("num_stuff", "C", "N", "M"))
    if stuff > channels:
        message = f"num_stuff is {stuff}, but semantic has {channels} channels, stuff and things"
    elif cells > MAX_MASK or (rows > 0 and cells == 0):
        message = f"mask_logits has {cells} cells a side, not 1 to {MAX_MASK}"
    elif stuff + rows > MAX_ROWS:
        message = f"{stuff} stuff classes + {rows} detections do not fit a uint8 map ({MAX_ROWS})"
    else:
        return
    raise ValueError(f"panoptic_fusion: {message}")


panoptic_fusion = operator(SCHEMA, reference.panoptic_fusion, check=_check)

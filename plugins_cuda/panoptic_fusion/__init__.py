"""UPSNet's panoptic head: pruning, panoptic logits, the unknown class, the majority rule and the area limit."""

from plugins_cuda.panoptic_fusion import reference
from plugins_cuda.panoptic_fusion.schema import SCHEMA
from plugins_cuda.pytorch import Call, operator

MAX_ROWS = 255
MAX_MASK = 512


def _check(call: Call) -> None:
    stuff, channels, rows, cells = (call.sizes[name] for name in ("num_stuff", "C", "N", "M"))
    if stuff >= channels:
        message = f"num_stuff is {stuff}, but semantic has {channels} channels, stuff and things"
    elif cells > MAX_MASK or (rows > 0 and cells == 0):
        message = f"mask_logits has {cells} cells a side, not 1 to {MAX_MASK}"
    elif stuff + rows > MAX_ROWS:
        message = f"{stuff} stuff classes + {rows} detections do not fit a uint8 map ({MAX_ROWS})"
    else:
        return
    raise ValueError(f"panoptic_fusion: {message}")


panoptic_fusion = operator(SCHEMA, reference.panoptic_fusion, check=_check)

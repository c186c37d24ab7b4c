"""What boxes need in every convention: the weights of their coding, the grid of anchors, rows by index."""

from plugins_cuda.boxes import gather_rows as gather_rows
from plugins_cuda.boxes import grid_anchors as grid_anchors

# Of a delta's shift and of its growth.
RPN_WEIGHTS = (1.0, 1.0)
BOX_WEIGHTS = (10.0, 5.0)

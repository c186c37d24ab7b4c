"""Non-maximum suppression whose outputs have a fixed size and a count."""

from plugins_cuda.nms import reference
from plugins_cuda.nms.schema import SCHEMA
from plugins_cuda.pytorch import operator

nms = operator(SCHEMA, reference.nms)

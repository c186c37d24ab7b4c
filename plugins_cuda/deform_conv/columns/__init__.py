"""The gradient of a deformable convolution between its two matrix products."""

from plugins_cuda.deform_conv.columns import reference
from plugins_cuda.deform_conv.columns.schema import SCHEMA
from plugins_cuda.pytorch import gradient_operator

deform_conv_columns = gradient_operator(SCHEMA, reference.deform_conv_columns)

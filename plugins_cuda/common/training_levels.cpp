// run_cpu of the rooms of training on x86-64; see levels.cpp.
#include "common/levels.h"
#include "deform_conv/backward/launch.h"
#include "roi_align_fpn/backward/launch.h"

UPSNET_ROOM(roi_align_fpn_backward)
UPSNET_ROOM(deform_conv_backward)

// Every plugin's creator, defined in its room's plugin.cpp.
#pragma once

#include "tensorrt/abi/plugin.h"

namespace upsnet::tensorrt {

nvinfer1::IPluginCreatorInterface* roi_align_fpn_creator();
nvinfer1::IPluginCreatorInterface* padded_nms_creator();
nvinfer1::IPluginCreatorInterface* padded_batched_nms_creator();
nvinfer1::IPluginCreatorInterface* deform_conv_creator();
nvinfer1::IPluginCreatorInterface* modulated_deform_conv_creator();
nvinfer1::IPluginCreatorInterface* panoptic_fusion_creator();

}  // namespace upsnet::tensorrt

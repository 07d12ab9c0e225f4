// GridSample3D on the GPU, without any TensorRT in it.

#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "grid_sample_3d.h"

namespace paramorph {

struct Options {
    Interpolation interpolation = Interpolation::kLinear;
    Padding padding = Padding::kBorder;
    bool align_corners = true;
};

struct Shape {
    int32_t batch, channels;
    Size volume, output;
};

// Why a shape cannot be sampled, or nullptr if it can.
const char* refusal(const Shape& shape);

// warped(p) = volume(p + displacement(p)), computed in float32.
//
//   volume        (batch, channels, volume.d, volume.h, volume.w), T = float or __half
//   displacement  (batch, 3, output.d, output.h, output.w), in voxels
//   warped        (batch, channels, output.d, output.h, output.w)
//
// All are contiguous device memory. The shape must have no refusal.
template <typename T>
cudaError_t grid_sample_3d(const T* volume, const float* displacement, T* warped,
                           const Shape& shape, const Options& options, cudaStream_t stream);

}  // namespace paramorph

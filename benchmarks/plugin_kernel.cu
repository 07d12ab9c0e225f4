// The plugin's kernel behind a C function, for plugin_kernel.py: no TensorRT is needed.

#include "kernel.h"

using namespace paramorph;

// `n` is B C VD VH VW D H W. Returns a cudaError_t, or -1 for a shape that is refused.
extern "C" int run(int half, const void* volume, const float* displacement, void* warped,
                   const int32_t* n, int nearest, int zeros, int align_corners,
                   cudaStream_t stream) {
    const Shape shape{n[0], n[1], {n[2], n[3], n[4]}, {n[5], n[6], n[7]}};
    if (refusal(shape) != nullptr) {
        return -1;
    }
    const Options options{nearest ? Interpolation::kNearest : Interpolation::kLinear,
                          zeros ? Padding::kZeros : Padding::kBorder, align_corners != 0};
    if (half) {
        return grid_sample_3d(static_cast<const __half*>(volume), displacement,
                              static_cast<__half*>(warped), shape, options, stream);
    }
    return grid_sample_3d(static_cast<const float*>(volume), displacement,
                          static_cast<float*>(warped), shape, options, stream);
}

// The arithmetic of GridSample3D: where a voxel is read, and what is read there.
//
// It compiles as plain C++ as well as CUDA, so that a test on the host holds the very code that
// the kernel runs to PyTorch's grid_sample.

#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define PARAMORPH_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PARAMORPH_HOST_DEVICE inline
#endif

namespace paramorph {

enum class Interpolation : int32_t { kLinear, kNearest };

// What lies outside the volume: its nearest voxel, or zeros.
enum class Padding : int32_t { kBorder, kZeros };

// Voxels along each axis; W is contiguous in memory.
struct Size {
    int32_t d, h, w;

    PARAMORPH_HOST_DEVICE int64_t voxels() const { return int64_t{d} * h * w; }
};

// From the index of an output voxel to where the volume is read, along each axis:
// (index + displacement) * scale + shift.
struct Positions {
    float scale_d, scale_h, scale_w, shift;
};

// With `align_corners` the volume is read at index + displacement; without it, in the reference's
// old convention, position x along an axis of n voxels is read at x * n / (n - 1) - 0.5.
inline Positions positions_in(Size volume, bool align_corners) {
    if (align_corners) {
        return {1.0f, 1.0f, 1.0f, 0.0f};
    }
    const auto scale = [](int32_t n) { return static_cast<float>(n) / static_cast<float>(n - 1); };
    return {scale(volume.d), scale(volume.h), scale(volume.w), -0.5f};
}

// A read position within an axis of n voxels and what counts as outside of it: finite and small
// enough for an int32, whatever it was. A NaN becomes the low end (fmaxf prefers the number): the
// first voxel where the border is read, zero where zeros are.
template <Padding padding>
PARAMORPH_HOST_DEVICE float confined(float position, int32_t n) {
    constexpr float kBeyond = padding == Padding::kBorder ? 0.0f : 2.0f;
    return fminf(fmaxf(position, -kBeyond), static_cast<float>(n - 1) + kBeyond);
}

PARAMORPH_HOST_DEVICE bool inside(int32_t index, int32_t n) {
    return static_cast<uint32_t>(index) < static_cast<uint32_t>(n);
}

// The voxels that one output voxel is a weighted sum of: the same for every channel.
template <Interpolation interpolation>
struct Taps {
    static constexpr int kCount = interpolation == Interpolation::kLinear ? 8 : 1;

    uint32_t offset[kCount];  // within one channel
    bool inside[kCount];      // else the tap reads nothing
    float weight[kCount];

    template <typename T>
    PARAMORPH_HOST_DEVICE T sum(const T* channel) const {
        float total = 0.0f;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
        for (int i = 0; i < kCount; ++i) {
            if (inside[i]) {
                total += weight[i] * static_cast<float>(channel[offset[i]]);
            }
        }
        return static_cast<T>(total);
    }
};

// The taps at a confined read position (z, y, x). Ties between nearest voxels go to the even one.
template <Interpolation interpolation>
PARAMORPH_HOST_DEVICE Taps<interpolation> taps_at(Size volume, float z, float y, float x) {
    constexpr bool kNearest = interpolation == Interpolation::kNearest;
    const float low_z = kNearest ? rintf(z) : floorf(z);
    const float low_y = kNearest ? rintf(y) : floorf(y);
    const float low_x = kNearest ? rintf(x) : floorf(x);
    const int32_t first_z = static_cast<int32_t>(low_z);
    const int32_t first_y = static_cast<int32_t>(low_y);
    const int32_t first_x = static_cast<int32_t>(low_x);
    Taps<interpolation> taps;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int i = 0; i < taps.kCount; ++i) {
        const int dz = i >> 2, dy = (i >> 1) & 1, dx = i & 1;
        const int32_t iz = first_z + dz, iy = first_y + dy, ix = first_x + dx;
        const uint32_t row = static_cast<uint32_t>(iz) * volume.h + iy;
        taps.offset[i] = row * volume.w + ix;
        taps.inside[i] = inside(iz, volume.d) && inside(iy, volume.h) && inside(ix, volume.w);
        if constexpr (kNearest) {
            taps.weight[i] = 1.0f;
        } else {
            const float up_z = z - low_z, up_y = y - low_y, up_x = x - low_x;
            taps.weight[i] =
                (dx ? up_x : 1.0f - up_x) * (dy ? up_y : 1.0f - up_y) * (dz ? up_z : 1.0f - up_z);
        }
    }
    return taps;
}

// Writes every channel of the output voxel (z, y, x) of one batch item.
//
//   volume        (channels, volume_size), a channel of less than 2^32 voxels
//   displacement  (3, output_size), in voxels, channel order = axis order
//   warped        (channels, output_size)
template <Interpolation interpolation, Padding padding, typename T>
PARAMORPH_HOST_DEVICE void warp_voxel(const T* __restrict__ volume,
                                      const float* __restrict__ displacement,
                                      T* __restrict__ warped, int32_t channels, Size volume_size,
                                      Size output_size, Positions at, int32_t z, int32_t y,
                                      int32_t x) {
    const int64_t volume_voxels = volume_size.voxels(), output_voxels = output_size.voxels();
    const int64_t here = (int64_t{z} * output_size.h + y) * output_size.w + x;
    const float to_z = static_cast<float>(z) + displacement[here];
    const float to_y = static_cast<float>(y) + displacement[here + output_voxels];
    const float to_x = static_cast<float>(x) + displacement[here + 2 * output_voxels];
    const Taps<interpolation> taps = taps_at<interpolation>(
        volume_size, confined<padding>(to_z * at.scale_d + at.shift, volume_size.d),
        confined<padding>(to_y * at.scale_h + at.shift, volume_size.h),
        confined<padding>(to_x * at.scale_w + at.shift, volume_size.w));
    for (int32_t c = 0; c < channels; ++c) {
        warped[c * output_voxels + here] = taps.sum(volume + c * volume_voxels);
    }
}

}  // namespace paramorph

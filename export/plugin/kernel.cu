#include <limits>

#include "kernel.h"

namespace paramorph {
namespace {

// A warp reads and writes 32 neighbours along W at once. A block is a brick, because neighbouring
// voxels along every axis read neighbouring voxels, from the cache once one of them has.
constexpr dim3 kBlock{32, 4, 2};
constexpr int64_t kMaxBlocks = 65535;  // of the grid's second and third dimension

constexpr int64_t blocks(int64_t voxels, int64_t per_block) {
    return (voxels + per_block - 1) / per_block;
}

template <Interpolation interpolation, Padding padding, typename T>
__global__ void sample(const T* __restrict__ volume, const float* __restrict__ displacement,
                       T* __restrict__ warped, Shape shape, Positions at, int32_t blocks_along_d) {
    const int32_t item = blockIdx.z / blocks_along_d;
    const int32_t z = (blockIdx.z % blocks_along_d) * blockDim.z + threadIdx.z;
    const int32_t y = blockIdx.y * blockDim.y + threadIdx.y;
    const int32_t x = blockIdx.x * blockDim.x + threadIdx.x;
    if (z >= shape.output.d || y >= shape.output.h || x >= shape.output.w) {
        return;
    }
    const int64_t output_voxels = shape.output.voxels();
    const int64_t first_channel = int64_t{item} * shape.channels;
    warp_voxel<interpolation, padding>(volume + first_channel * shape.volume.voxels(),
                                       displacement + int64_t{item} * 3 * output_voxels,
                                       warped + first_channel * output_voxels, shape.channels,
                                       shape.volume, shape.output, at, z, y, x);
}

template <typename T>
auto kernel_of(const Options& options) {
    const bool border = options.padding == Padding::kBorder;
    if (options.interpolation == Interpolation::kLinear) {
        return border ? sample<Interpolation::kLinear, Padding::kBorder, T>
                      : sample<Interpolation::kLinear, Padding::kZeros, T>;
    }
    return border ? sample<Interpolation::kNearest, Padding::kBorder, T>
                  : sample<Interpolation::kNearest, Padding::kZeros, T>;
}

}  // namespace

const char* refusal(const Shape& shape) {
    if (shape.volume.d < 2 || shape.volume.h < 2 || shape.volume.w < 2) {
        return "expected a volume of at least two voxels along each axis";
    }
    if (shape.volume.voxels() > std::numeric_limits<uint32_t>::max()) {
        return "expected a volume of less than 2^32 voxels";
    }
    if (blocks(shape.output.h, kBlock.y) > kMaxBlocks ||
        blocks(shape.output.d, kBlock.z) * shape.batch > kMaxBlocks) {
        return "expected an output of at most 65535 blocks of voxels along D and H";
    }
    return nullptr;
}

template <typename T>
cudaError_t grid_sample_3d(const T* volume, const float* displacement, T* warped,
                           const Shape& shape, const Options& options, cudaStream_t stream) {
    const int64_t blocks_along_d = blocks(shape.output.d, kBlock.z);
    const dim3 grid(static_cast<uint32_t>(blocks(shape.output.w, kBlock.x)),
                    static_cast<uint32_t>(blocks(shape.output.h, kBlock.y)),
                    static_cast<uint32_t>(blocks_along_d * shape.batch));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return cudaSuccess;  // nothing to write
    }
    kernel_of<T>(options)<<<grid, kBlock, 0, stream>>>(
        volume, displacement, warped, shape, positions_in(shape.volume, options.align_corners),
        static_cast<int32_t>(blocks_along_d));
    return cudaGetLastError();
}

template cudaError_t grid_sample_3d(const float*, const float*, float*, const Shape&,
                                    const Options&, cudaStream_t);
template cudaError_t grid_sample_3d(const __half*, const float*, __half*, const Shape&,
                                    const Options&, cudaStream_t);

}  // namespace paramorph

// Runs the kernel's arithmetic on the host: raw bytes of volume and displacement from stdin, those
// of the warped volume to stdout.
//
//   plugin_host float|half linear|nearest border|zeros ALIGN_CORNERS B C VD VH VW D H W

#include "grid_sample_3d.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

using namespace paramorph;

namespace {

template <typename T>
std::vector<T> read(size_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, stdin) != count) {
        std::abort();
    }
    return values;
}

template <typename T, Interpolation interpolation, Padding padding>
void warp(bool align_corners, int batch, int channels, Size volume_size, Size output_size) {
    const size_t volume_item = channels * volume_size.voxels();
    const size_t output_item = channels * output_size.voxels();
    const std::vector<T> volume = read<T>(batch * volume_item);
    const std::vector<float> displacement = read<float>(batch * 3 * output_size.voxels());
    const Positions at = positions_in(volume_size, align_corners);
    for (int item = 0; item < batch; ++item) {
        // Allocations of their own, so that the address sanitizer sees a read past either end.
        const std::vector<T> from(volume.begin() + item * volume_item,
                                  volume.begin() + (item + 1) * volume_item);
        std::vector<T> warped(output_item);
        const float* u = displacement.data() + item * 3 * output_size.voxels();
        for (int z = 0; z < output_size.d; ++z) {
            for (int y = 0; y < output_size.h; ++y) {
                for (int x = 0; x < output_size.w; ++x) {
                    warp_voxel<interpolation, padding>(from.data(), u, warped.data(), channels,
                                                       volume_size, output_size, at, z, y, x);
                }
            }
        }
        std::fwrite(warped.data(), sizeof(T), warped.size(), stdout);
    }
}

template <typename T, Interpolation interpolation, typename... Rest>
void choose_padding(const std::string& padding, Rest... rest) {
    padding == "border" ? warp<T, interpolation, Padding::kBorder>(rest...)
                        : warp<T, interpolation, Padding::kZeros>(rest...);
}

template <typename T, typename... Rest>
void choose(const std::string& interpolation, Rest... rest) {
    interpolation == "linear" ? choose_padding<T, Interpolation::kLinear>(rest...)
                              : choose_padding<T, Interpolation::kNearest>(rest...);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 13) {
        return 2;
    }
    const std::string type = argv[1], interpolation = argv[2], padding = argv[3];
    int n[9];
    for (int i = 0; i < 9; ++i) {
        n[i] = std::atoi(argv[4 + i]);
    }
    const Size volume{n[3], n[4], n[5]}, output{n[6], n[7], n[8]};
    if (type == "half") {
        choose<_Float16>(interpolation, padding, n[0] != 0, n[1], n[2], volume, output);
    } else {
        choose<float>(interpolation, padding, n[0] != 0, n[1], n[2], volume, output);
    }
}

#include "rescaling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels.h"

namespace paramorph {
namespace {

constexpr double kFwhm = 2.355;       // full width at half maximum of a Gaussian, in deviations
constexpr double kNegligible = 1e-9;  // a weight that changes no float32
constexpr double kPi = 3.14159265358979323846;

// What one sample takes from consecutive voxels.
struct Row {
    int first;
    std::vector<float> weights;
};

// The discrete Gaussian on `size` voxels, h, of which voxel i gives h[|i - j|] + h[i + j + 1] to
// voxel j: its own and what a mirror at the border throws back, so that nothing passes it.
//
// Source: Lindeberg, Scale-space for discrete signals (1990); the modes of diffusion between
// neighbours on a line are cosines.
std::vector<double> gaussian(int size, double variance) {
    const auto n = static_cast<std::size_t>(size);
    std::vector<double> cosines(2 * n), decay(n), h(2 * n);
    for (std::size_t k = 0; k < 2 * n; ++k) {
        cosines[k] = std::cos(kPi * static_cast<double>(k) / size);
    }
    for (std::size_t k = 0; k < n; ++k) {
        decay[k] = std::exp(-variance * (1 - cosines[k]));
    }
    for (std::size_t m = 0; m < 2 * n; ++m) {
        double sum = 0.5;
        for (std::size_t k = 1; k < n; ++k) {
            sum += decay[k] * cosines[k * m % (2 * n)];
        }
        h[m] = sum / size;
    }
    return h;
}

Row without_zeros(const std::vector<double>& weights) {
    const auto counts = [](double weight) { return std::abs(weight) > kNegligible; };
    const auto first = std::find_if(weights.begin(), weights.end(), counts);
    const auto stop = std::find_if(weights.rbegin(), weights.rend(), counts).base();
    return {static_cast<int>(first - weights.begin()), std::vector<float>(first, stop)};
}

std::vector<Row> matrix(int size, int target, Coarser coarser) {
    const double step = static_cast<double>(size) / target;
    const double variance = (step * step - 1) / (kFwhm * kFwhm);
    const bool smooths = variance > 0 && coarser == Coarser::kSmoothedFirst;
    const std::vector<double> h = smooths ? gaussian(size, variance) : std::vector<double>();
    std::vector<Row> rows;
    std::vector<double> weights(static_cast<std::size_t>(size));
    for (int t = 0; t < target; ++t) {
        const double at = std::clamp((t + 0.5) * step - 0.5, 0.0, size - 1.0);
        const int below = static_cast<int>(at), above = std::min(below + 1, size - 1);
        const double share = at - below;
        std::fill(weights.begin(), weights.end(), 0.0);
        if (smooths) {
            for (int j = 0; j < size; ++j) {
                const auto taken = [&h, j](int i) {
                    return h[static_cast<std::size_t>(std::abs(i - j))] +
                           h[static_cast<std::size_t>(i + j + 1)];
                };
                weights[static_cast<std::size_t>(j)] =
                    (1 - share) * taken(below) + share * taken(above);
            }
        } else {
            weights[static_cast<std::size_t>(below)] += 1 - share;
            weights[static_cast<std::size_t>(above)] += share;
        }
        rows.push_back(without_zeros(weights));
    }
    return rows;
}

// An array of (outer, size, inner), whose middle axis gets one entry per row.
Values along_axis(const Values& array, std::size_t outer, std::size_t size, std::size_t inner,
                  const std::vector<Row>& rows) {
    std::size_t widest = 0;
    for (const Row& row : rows) {
        widest = std::max(widest, row.weights.size());
    }
    std::vector<int> first, count;
    Values weights(rows.size() * widest);
    for (const Row& row : rows) {
        std::copy(row.weights.begin(), row.weights.end(), &weights[first.size() * widest]);
        first.push_back(row.first);
        count.push_back(static_cast<int>(row.weights.size()));
    }
    Values result(outer * rows.size() * inner);
    rescale(array.data(), static_cast<int>(size), static_cast<int>(inner),
            static_cast<int>(rows.size()), first.data(), count.data(), weights.data(),
            static_cast<int>(widest), result.data(), 0, static_cast<int>(outer * rows.size()));
    return result;
}

}  // namespace

Values rescaled(const float* array, int channels, const Shape& shape, const Shape& target,
                Coarser coarser) {
    const auto length = [](int32_t size) { return static_cast<std::size_t>(size); };
    Values result(array, array + length(channels) * voxels(shape));
    std::size_t outer = length(channels) * voxels(shape), inner = 1;
    for (const std::size_t axis : {2, 1, 0}) {  // as in Python
        outer /= length(shape[axis]);
        if (target[axis] != shape[axis]) {
            const std::vector<Row> rows = matrix(shape[axis], target[axis], coarser);
            result = along_axis(result, outer, length(shape[axis]), inner, rows);
        }
        inner *= length(target[axis]);
    }
    return result;
}

}  // namespace paramorph

#include "iteration.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <new>
#include <utility>

#include "error.h"
#include "kernels.h"

namespace paramorph {
namespace {

// As paramorph_rt/refinement/forces.py has them, which says what each is for.
constexpr int kRadius = 2;
constexpr float kLeastProduct = 1e-6F, kLeastVariance = 1e-4F;
constexpr double kLeastForce = 0.35, kCut = 3.0;

constexpr int kWidest = 1000;  // taps to either side: more than that is a mistake
constexpr int kSlabsPerThread = 2;  // so that a thread that is held up does not hold up all

using Kernel = Values;
using Kernels = std::array<Kernel, 3>;
using Weights = std::array<float, 3>;

Kernel gaussian_taps(double sigma) {
    if (!(kCut * sigma < kWidest)) {
        refuse(PARAMORPH_INVALID_ARGUMENT,
               "levels: expected a Gaussian of at most " + std::to_string(kWidest) +
                   " voxels to either side, got a deviation of " + std::to_string(sigma) +
                   " voxels; verify the level's sigmas and the images' spacing.");
    }
    const int radius = static_cast<int>(kCut * sigma + 0.5);
    if (radius == 0) {
        return {1.0F};
    }
    std::vector<double> taps;
    double sum = 0;
    for (int offset = -radius; offset <= radius; ++offset) {
        taps.push_back(std::exp(-0.5 * std::pow(offset / sigma, 2)));
        sum += taps.back();
    }
    Kernel kernel;
    for (const double tap : taps) {
        kernel.push_back(static_cast<float>(tap / sum));
    }
    return kernel;
}

int radius_of(const Kernel& kernel) { return static_cast<int>(kernel.size()) / 2; }

// The functions of kernels.c on volumes of one shape, each spread over threads.
class Passes {
public:
    Passes(const Shape& shape, Workers& workers) : shape_(shape), workers_(workers) {}

    void sample(const float* volume, int channels, const float* shift, float* out,
                float scale = 1, bool add = false) {
        over_slabs(shape_[0], [=](int start, int stop) {
            return ::sample(volume, channels, shape_.data(), shift, scale, add, out, start, stop);
        });
    }

    // Along all axes; `out` may be `volume`.
    void convolve(const float* volume, const Kernels& kernels, float* spare, float* out) {
        over_slabs(shape_[0], [&, this](int start, int stop) {
            return convolve_planes(volume, shape_.data(), kernels[1].data(), radius_of(kernels[1]),
                                   kernels[2].data(), radius_of(kernels[2]), spare, start, stop);
        });
        over_slabs(shape_[1], [&, this](int start, int stop) {
            return convolve_depth(spare, shape_.data(), kernels[0].data(), radius_of(kernels[0]),
                                  out, start, stop);
        });
    }

    void correlation_force(const float* warped, const float* fixed, const float* fixed_mean,
                           const float* fixed_variance, const Weights& weights, float* force) {
        over_slabs(shape_[0], [&, this](int start, int stop) {
            return ::correlation_force(warped, fixed, fixed_mean, fixed_variance, shape_.data(),
                                       kRadius, kLeastProduct, kLeastVariance, weights.data(),
                                       force, start, stop);
        });
    }

    void add_difference_force(const float* warped, const float* fixed, int channels,
                              const Weights& weights, float* force) {
        over_slabs(shape_[0], [&, this](int start, int stop) {
            return ::add_difference_force(warped, fixed, channels, shape_.data(), weights.data(),
                                          force, start, stop);
        });
    }

    // Of the longest vector, whose components count by `weights`.
    float longest(const float* field, const Weights& weights) {
        std::mutex mutex;
        float most = 0;
        over_slabs(shape_[0], [&, this](int start, int stop) {
            const float found = ::longest(field, shape_.data(), weights.data(), start, stop);
            const std::lock_guard<std::mutex> lock(mutex);
            most = std::max(most, found);
            return 0;
        });
        return std::sqrt(most);
    }

private:
    // Calls pass(start, stop) for slabs of an axis; what it returns is 0, or memory has run out.
    template <typename Pass>
    void over_slabs(int slices, const Pass& pass) {
        const int parts = workers_.count() * kSlabsPerThread;
        const int size = (slices + parts - 1) / parts;
        std::atomic<bool> failed{false};
        workers_.each((slices + size - 1) / size, [&](int slab) {
            const int start = slab * size;
            if (pass(start, std::min(start + size, slices)) != 0) {
                failed = true;
            }
        });
        if (failed) {
            throw std::bad_alloc();
        }
    }

    const Shape shape_;
    Workers& workers_;
};

// Means and variances in the cubes around all voxels of an image.
struct Moments {
    Moments(Passes& passes, const Values& image) : mean(image.size()), variance(image.size()) {
        const Kernel box(2 * kRadius + 1, 1.0F / (2 * kRadius + 1));
        Values square(image), spare(image.size());
        std::transform(image.begin(), image.end(), square.begin(), [](float x) { return x * x; });
        passes.convolve(image.data(), {box, box, box}, spare.data(), mean.data());
        passes.convolve(square.data(), {box, box, box}, spare.data(), variance.data());
        for (std::size_t p = 0; p < image.size(); ++p) {
            variance[p] = std::max(variance[p] - mean[p] * mean[p], 0.0F);
        }
    }

    Values mean, variance;
};

// A level's lengths in voxels of its grid.
struct Lengths {
    Lengths(const paramorph_level& level, const Grid& grid) {
        for (std::size_t axis = 0; axis < 3; ++axis) {
            const double size = grid.spacing_mm[axis] / level.spacing_mm;
            relative[axis] = static_cast<float>(size);
            // Central differences per millimetre, as steps in voxels.
            slopes[axis] = static_cast<float>(0.5 / (size * size));
            feature_slopes[axis] = static_cast<float>(level.features) * slopes[axis];
            force_taps[axis] = gaussian_taps(level.force_sigma / size);
            field_taps[axis] = gaussian_taps(level.field_sigma / size);
        }
    }

    Weights relative, slopes, feature_slopes;
    Kernels force_taps, field_taps;
};

}  // namespace

Values iterated(const LevelImages& images, const paramorph_level& level, Values displacement,
                Workers& workers) {
    const Lengths lengths(level, images.grid);
    Passes passes(images.grid.shape, workers);
    const Moments of_fixed(passes, images.fixed);
    const std::size_t count = images.fixed.size();
    Values field = std::move(displacement), force(3 * count), moved(3 * count);
    Values warped(count), spare(count), warped_features(images.moving_features.size());
    for (int32_t step = 0; step < level.iterations; ++step) {
        passes.sample(images.moving.data(), 1, field.data(), warped.data());
        passes.correlation_force(warped.data(), images.fixed.data(), of_fixed.mean.data(),
                                 of_fixed.variance.data(), lengths.slopes, force.data());
        if (images.channels > 0) {
            passes.sample(images.moving_features.data(), images.channels, field.data(),
                          warped_features.data());
            passes.add_difference_force(warped_features.data(), images.fixed_features.data(),
                                        images.channels, lengths.feature_slopes, force.data());
        }
        for (std::size_t c = 0; c < 3; ++c) {
            float* const component = force.data() + c * count;
            for (std::size_t p = 0; p < images.counts.size(); ++p) {
                component[p] *= images.counts[p];
            }
            passes.convolve(component, lengths.force_taps, spare.data(), component);
        }
        const double longest = passes.longest(force.data(), lengths.relative);
        const auto scale = static_cast<float>(level.step / std::max(longest, kLeastForce));
        passes.sample(field.data(), 3, force.data(), moved.data(), scale, /*add=*/true);
        for (std::size_t c = 0; c < 3; ++c) {
            passes.convolve(moved.data() + c * count, lengths.field_taps, spare.data(),
                            field.data() + c * count);
        }
    }
    return field;
}

void warp(const float* moving, const Shape& shape, const float* displacement, float* warped,
          Workers& workers) {
    Passes(shape, workers).sample(moving, 1, displacement, warped);
}

}  // namespace paramorph

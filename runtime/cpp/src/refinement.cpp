#include "refinement.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "error.h"
#include "iteration.h"

namespace paramorph {
namespace {

// As paramorph_rt/refinement/coarse_to_fine.py and settings.py have them, which say what each is for.
constexpr double kMostVoxels = 24'000'000, kFiner = 0.75, kLeastSize = 4, kCoarser = 1.4;
constexpr int32_t kDefaultIterations = 7;

constexpr int32_t kMostThreads = 1024;  // more is a mistake

struct Stage {
    paramorph_level level;
    Grid grid;
};

[[noreturn]] void refuse_argument(std::string message) {
    refuse(PARAMORPH_INVALID_ARGUMENT, std::move(message));
}

Shape shape_of(const int32_t* sizes) { return {sizes[0], sizes[1], sizes[2]}; }

// The shape of an array that lies on a grid of its own, or on that of the images.
Shape shape_or(const int32_t* sizes, const Shape& images) {
    const Shape own = shape_of(sizes);
    return own == Shape{} ? images : own;
}

// Positive, and few enough for the passes to count in int.
void check_shape(const char* name, const Shape& shape) {
    double count = 1;
    for (const int32_t size : shape) {
        count *= std::max(size, 0);
    }
    if (count < 1 || count > std::numeric_limits<int32_t>::max()) {
        refuse_argument(std::string(name) + ": expected three positive sizes of at most 2^31 voxels, "
                        "got " + text(shape) + "; give D, H, W.");
    }
}

void check_values(const char* name, const float* values, std::size_t count) {
    if (!std::all_of(values, values + count, [](float value) { return std::isfinite(value); })) {
        refuse_argument(std::string(name) +
                        ": expected finite values, got NaN or infinity; fill them with 0 before.");
    }
}

bool good(double value, double least) { return value >= least && std::isfinite(value); }

void check_level(const paramorph_level& level, int32_t number) {
    const double tiny = std::numeric_limits<double>::min();
    if (!good(level.spacing_mm, tiny) || !good(level.step, tiny) || level.iterations < 0 ||
        !good(level.force_sigma, 0) || !good(level.field_sigma, 0) ||
        !good(level.feature_sigma, 0) || !good(level.features, 0)) {
        refuse_argument("levels[" + std::to_string(number) +
                        "]: expected a positive spacing and step, and nothing negative, got another "
                        "value; start from paramorph_usual_levels.");
    }
}

void check_numbers(const paramorph_refinement& given) {
    check_shape("shape", shape_of(given.shape));
    if (!std::all_of(given.spacing_mm, given.spacing_mm + 3,
                     [](double size) { return size > 0 && std::isfinite(size); })) {
        refuse_argument("spacing_mm: expected three positive numbers, got others; give the size of a "
                        "voxel in mm.");
    }
    if (given.threads < 0 || given.threads > kMostThreads) {
        refuse_argument("threads: expected at most " + std::to_string(kMostThreads) + ", got " +
                        std::to_string(given.threads) + "; 0 is one per core.");
    }
    if (given.level_count < 0 || (given.levels == nullptr) != (given.level_count == 0)) {
        refuse_argument("levels: expected an array and its level_count, or NULL and 0, got " +
                        std::to_string(given.level_count) + " levels in " +
                        (given.levels == nullptr ? "NULL" : "an array") +
                        "; NULL and 0 are the usual levels.");
    }
    for (int32_t i = 0; i < given.level_count; ++i) {
        check_level(given.levels[i], i);
    }
}

void check_arrays(const paramorph_refinement& given) {
    const Shape shape = shape_of(given.shape);
    check_values("moving", given.moving, voxels(shape));
    check_values("fixed", given.fixed, voxels(shape));
    if (given.counts != nullptr) {
        check_values("counts", given.counts, voxels(shape));
    }
    if (given.start != nullptr) {
        const Shape own = shape_or(given.start_shape, shape);
        check_shape("start_shape", own);
        check_values("start", given.start, 3 * voxels(own));
    }
    if (given.features != nullptr) {
        const Shape own = shape_or(given.feature_shape, shape);
        check_shape("feature_shape", own);
        if (given.channels < 1) {
            refuse_argument("channels: expected those of the features, got " +
                            std::to_string(given.channels) + "; take info.channels.");
        }
        if (!good(given.smoothing, 0)) {
            refuse_argument("smoothing: expected that of the features' model, or 0, got " +
                            std::to_string(given.smoothing) + "; take info.smoothing.");
        }
        check_values("features", given.features,
                     2 * static_cast<std::size_t>(given.channels) * voxels(own));
    }
}

// What the images' field of view is, cut into other voxels.
Grid with_shape(const Grid& grid, const Shape& shape) {
    Grid cut{shape, {}};
    for (std::size_t axis = 0; axis < 3; ++axis) {
        cut.spacing_mm[axis] = grid.spacing_mm[axis] * grid.shape[axis] / shape[axis];
    }
    return cut;
}

double least(const Grid& grid) {
    return *std::min_element(grid.spacing_mm.begin(), grid.spacing_mm.end());
}

std::vector<paramorph_level> usable_levels(const paramorph_refinement& given) {
    std::vector<paramorph_level> levels(given.levels, given.levels + given.level_count);
    if (levels.empty()) {
        levels.resize(PARAMORPH_USUAL_LEVELS);
        usual_levels(kDefaultIterations, levels.data(), PARAMORPH_USUAL_LEVELS);
    }
    const auto idle = [](const paramorph_level& level) { return level.iterations == 0; };
    levels.erase(std::remove_if(levels.begin(), levels.end(), idle), levels.end());
    return levels;
}

// The levels that are worth it for images on a grid, each with its own.
std::vector<Stage> planned(const std::vector<paramorph_level>& levels, const Grid& images) {
    std::vector<Stage> plan;
    for (const paramorph_level& level : levels) {
        Shape shape;
        for (std::size_t axis = 0; axis < 3; ++axis) {
            const double extent = images.spacing_mm[axis] * images.shape[axis];
            const double spacing = std::max(level.spacing_mm, images.spacing_mm[axis]);
            shape[axis] =
                static_cast<int32_t>(std::max(kLeastSize, std::nearbyint(extent / spacing)));
        }
        check_shape("shape", shape);
        const bool worth_it = level.spacing_mm >= kFiner * least(images) &&
                              static_cast<double>(voxels(shape)) <= kMostVoxels;
        if (plan.empty() || worth_it) {
            plan.push_back({level, with_shape(images, shape)});
        }
    }
    return plan;
}

// The images on all grids of a plan, each made from those on the next finer one.
std::vector<LevelImages> pyramid(const paramorph_refinement& given, const std::vector<Stage>& plan) {
    std::vector<LevelImages> levels(plan.size());
    const float *moving = given.moving, *fixed = given.fixed, *counts = given.counts;
    Shape shape = shape_of(given.shape);
    for (std::size_t i = plan.size(); i-- > 0;) {
        const Shape& target = plan[i].grid.shape;
        levels[i].grid = plan[i].grid;
        levels[i].moving = rescaled(moving, 1, shape, target);
        levels[i].fixed = rescaled(fixed, 1, shape, target);
        moving = levels[i].moving.data();
        fixed = levels[i].fixed.data();
        if (counts != nullptr) {
            levels[i].counts = rescaled(counts, 1, shape, target);
            counts = levels[i].counts.data();
        }
        shape = target;
    }
    return levels;
}

// Lets a level compare features, if there are any and they are not much coarser than the level.
void compare_features(Stage& stage, LevelImages& images, const paramorph_refinement& given,
                      const Grid& view) {
    if (given.features == nullptr || stage.level.features == 0) {
        return;
    }
    const Grid grid = with_shape(view, shape_or(given.feature_shape, view.shape));
    if (stage.level.spacing_mm * kCoarser < least(grid)) {
        return;
    }
    const std::size_t one = static_cast<std::size_t>(given.channels) * voxels(grid.shape);
    images.channels = given.channels;
    images.moving_features =
        rescaled(given.features, given.channels, grid.shape, images.grid.shape);
    images.fixed_features =
        rescaled(given.features + one, given.channels, grid.shape, images.grid.shape);
    const double smoothing = given.smoothing == 0 ? 1 : given.smoothing;
    stage.level.field_sigma = smoothing * stage.level.feature_sigma;
}

// A displacement in voxels of one grid, in those of another.
Values in_voxels_of(const Shape& target, const Values& displacement, const Shape& shape,
                    Coarser coarser = Coarser::kSmoothedFirst) {
    Values result = rescaled(displacement.data(), 3, shape, target, coarser);
    const std::size_t count = voxels(target);
    for (std::size_t c = 0; c < 3; ++c) {
        const auto growth =
            static_cast<float>(static_cast<double>(target[c]) / static_cast<double>(shape[c]));
        std::transform(result.begin() + static_cast<std::ptrdiff_t>(c * count),
                       result.begin() + static_cast<std::ptrdiff_t>((c + 1) * count),
                       result.begin() + static_cast<std::ptrdiff_t>(c * count),
                       [growth](float value) { return value * growth; });
    }
    return result;
}

Values start_on(const Shape& shape, const paramorph_refinement& given) {
    if (given.start == nullptr) {
        return Values(3 * voxels(shape));
    }
    const Shape own = shape_or(given.start_shape, shape_of(given.shape));
    const Values start(given.start, given.start + 3 * voxels(own));
    return in_voxels_of(shape, start, own, Coarser::kSampled);
}

}  // namespace

void refine(const paramorph_refinement& given, float* displacement, float* warped) {
    if (given.moving == nullptr || given.fixed == nullptr || displacement == nullptr) {
        refuse_argument("moving, fixed, displacement: expected three arrays, got NULL; pass them.");
    }
    check_numbers(given);
    check_arrays(given);
    Grid view{shape_of(given.shape), {}};
    std::copy(given.spacing_mm, given.spacing_mm + 3, view.spacing_mm.begin());
    std::vector<Stage> plan = planned(usable_levels(given), view);
    std::vector<LevelImages> images = pyramid(given, plan);
    Shape shape = plan.empty() ? view.shape : plan.front().grid.shape;
    Values field = start_on(shape, given);
    Workers workers(given.threads);
    for (std::size_t i = 0; i < plan.size(); ++i) {
        compare_features(plan[i], images[i], given, view);
        field = in_voxels_of(plan[i].grid.shape, field, shape);
        field = iterated(images[i], plan[i].level, std::move(field), workers);
        shape = plan[i].grid.shape;
        images[i] = {};
    }
    field = in_voxels_of(view.shape, field, shape);
    std::copy(field.begin(), field.end(), displacement);
    check_finite("refinement", "displacements", displacement, field.size());
    if (warped != nullptr) {
        warp(given.moving, view.shape, displacement, warped, workers);
    }
}

void usual_levels(int32_t iterations, paramorph_level* levels, int32_t level_count) {
    // As paramorph_rt/refinement/settings.py has them.
    if (level_count != PARAMORPH_USUAL_LEVELS) {
        refuse_argument("level_count: expected " + std::to_string(PARAMORPH_USUAL_LEVELS) +
                        " levels, got " + std::to_string(level_count) +
                        "; compile the program with this library's header.");
    }
    if (iterations < 0 || iterations > std::numeric_limits<int32_t>::max() / 2) {
        refuse_argument("iterations: expected at least 0, got " + std::to_string(iterations) +
                        "; the default is " + std::to_string(kDefaultIterations) + ".");
    }
    const int32_t few = static_cast<int32_t>((2LL * iterations + 4) / 5);
    levels[0] = {6.0, 2 * iterations, 1.0, 1.7, 0.65, 0.8, 3.0};
    levels[1] = {3.0, iterations, 1.5, 1.7, 0.65, 0.8, 3.0};
    levels[2] = {1.5, iterations, 1.5, 1.7, 0.65, 0.8, 3.0};
    levels[3] = {1.0, few, 1.0, 1.7, 0.5, 0.6, 3.0};
    levels[4] = {0.7, few, 1.0, 1.7, 0.5, 0.6, 3.0};
}

}  // namespace paramorph

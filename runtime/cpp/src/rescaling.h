// From one grid to another over the same field of view; what paramorph_rt/refinement/rescaling.py is
// in Python.
#pragma once

#include <vector>

#include "bundle.h"

namespace paramorph {

using Values = std::vector<float>;

enum class Coarser { kSmoothedFirst, kSampled };

// Samples an array of (channels, D, H, W) linearly on a grid of another shape; beyond the outermost
// voxels' centres their values go on. Along an axis that gets coarser it is smoothed first, by the
// Gaussian that takes the array's resolution to the target's, unless `coarser` says otherwise.
Values rescaled(const float* array, int channels, const Shape& shape, const Shape& target,
                Coarser coarser = Coarser::kSmoothedFirst);

}  // namespace paramorph

// The steps of one level of a refinement; what paramorph_rt/refinement/compiled.py is in Python.
#pragma once

#include <paramorph.h>

#include <array>

#include "rescaling.h"
#include "workers.h"

namespace paramorph {

// Of voxels over a field of view.
struct Grid {
    Shape shape;
    std::array<double, 3> spacing_mm;
};

// What one level compares, on its grid; empty where there is none.
struct LevelImages {
    Grid grid;
    Values moving, fixed;  // (D, H, W)
    Values counts;         // (D, H, W), weight of each voxel's force; empty: all count
    Values moving_features, fixed_features;  // (channels, D, H, W)
    int channels = 0;
};

// Takes all steps of a level from `displacement`, (3, D, H, W) in voxels of its grid.
// Throws PARAMORPH_INVALID_ARGUMENT: a Gaussian too wide for the grid.
Values iterated(const LevelImages& images, const paramorph_level& level, Values displacement,
                Workers& workers);

// moving(p + displacement(p)) into `warped`, (D, H, W).
void warp(const float* moving, const Shape& shape, const float* displacement, float* warped,
          Workers& workers);

}  // namespace paramorph

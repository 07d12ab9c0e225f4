// Refinement of a field on the pair itself, on the CPU; what
// paramorph_rt/refinement/coarse_to_fine.py is in Python.
#pragma once

#include <paramorph.h>

namespace paramorph {

// paramorph_refine, whose header says what it does.
// Throws PARAMORPH_INVALID_ARGUMENT, PARAMORPH_BACKEND_ERROR.
void refine(const paramorph_refinement& given, float* displacement, float* warped);

// paramorph_usual_levels.
// Throws PARAMORPH_INVALID_ARGUMENT.
void usual_levels(int32_t iterations, paramorph_level* levels, int32_t level_count);

}  // namespace paramorph

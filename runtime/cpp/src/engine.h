// The story of the library: bundle → engine for this machine → displacement and warped volume.
#pragma once

#include <paramorph.h>

#include <cstddef>
#include <memory>

#include "bundle.h"

namespace paramorph {

// What options.network calls the feature network, and the network its output.
constexpr char kFeatures[] = "features";

// Its functions are those of the C interface, which says what they do.
class Engine {
public:
    virtual ~Engine() = default;

    virtual paramorph_info info() const = 0;
    virtual void run(const float* moving, const float* fixed, float* displacement,
                     float* warped) = 0;
    virtual void features(const float* moving, const float* fixed, float* features) = 0;
    virtual void enqueue(const float* moving, const float* fixed, float* displacement,
                         float* warped, void* stream) = 0;
    virtual void* stream() const = 0;
};

// The one that options.backend asks for.
std::unique_ptr<Engine> open_engine(const char* folder, const paramorph_options& options);

// Of the network to run: what is asked for, or that of the bundle's grid.
Shape requested_shape(const Bundle& bundle, const paramorph_options& options);

// What a bundle tells of any engine; the text lives as long as the bundle.
paramorph_info info_of(const Bundle& bundle, const Shape& shape);

// Throws PARAMORPH_INVALID_ARGUMENT: an array that is missing, or one that nothing is given for.
void check_arrays(const char* file, bool has_warped, const float* moving, const float* fixed,
                  const float* displacement, const float* warped);

// Throws PARAMORPH_BACKEND_ERROR. `what` names the values: "displacements", "features".
void check_finite(const char* file, const char* what, const float* values, std::size_t count);

}  // namespace paramorph

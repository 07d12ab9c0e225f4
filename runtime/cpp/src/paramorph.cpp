// The C interface: nothing is thrown across it.
#include <paramorph.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <new>

#include "engine.h"
#include "error.h"
#include "refinement.h"
#include "tensorrt.h"

struct paramorph_engine {
    std::unique_ptr<paramorph::Engine> engine;
};

namespace {

// No allocation: the sentence fits even when memory has run out.
thread_local char last_error[2048] = "";

paramorph_status failed(paramorph_status status, const char* message) {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

template <typename Work>
paramorph_status guarded(Work work) noexcept {
    try {
        work();
        return PARAMORPH_OK;
    } catch (const paramorph::Error& error) {
        return failed(error.status, error.message.c_str());
    } catch (const std::bad_alloc&) {
        return failed(PARAMORPH_OUT_OF_MEMORY,
                      "memory: expected enough on the host, got too little; free some.");
    } catch (const std::filesystem::filesystem_error& error) {
        return failed(PARAMORPH_BUNDLE_ERROR, error.what());
    } catch (const std::exception& error) {
        return failed(PARAMORPH_INTERNAL_ERROR, error.what());
    } catch (...) {
        return failed(PARAMORPH_INTERNAL_ERROR, "an exception of an unknown kind");
    }
}

void check_engine(const paramorph_engine* engine) {
    if (engine == nullptr) {
        paramorph::refuse(PARAMORPH_INVALID_ARGUMENT,
                          "engine: expected one from paramorph_open, got NULL; open it first.");
    }
}

void check_given(const void* argument, const char* name) {
    if (argument == nullptr) {
        paramorph::refuse(PARAMORPH_INVALID_ARGUMENT,
                          std::string(name) + ": expected a pointer, got NULL; pass one.");
    }
}

// A structure's size tells the header that its caller was compiled with. When members are added at
// its end, smaller sizes will be those of older programs, which leave them 0.
template <typename Structure>
void check_size(const Structure& given, const char* name) {
    if (given.struct_size != sizeof(Structure)) {
        paramorph::refuse(PARAMORPH_INVALID_ARGUMENT,
                          std::string(name) + ".struct_size: expected " +
                              std::to_string(sizeof(Structure)) + ", got " +
                              std::to_string(given.struct_size) +
                              "; set it to the structure's sizeof, and compile with the header of "
                              "this library.");
    }
}

}  // namespace

const char* paramorph_version() { return PARAMORPH_VERSION; }

const char* paramorph_built_for() { return paramorph::kBuiltFor; }

const char* paramorph_last_error() { return last_error; }

paramorph_status paramorph_open(const char* bundle, const paramorph_options* options,
                                paramorph_engine** engine) {
    if (engine != nullptr) {
        *engine = nullptr;
    }
    return guarded([=] {
        check_given(bundle, "bundle");
        check_given(engine, "engine");
        paramorph_options given{};
        if (options != nullptr) {
            check_size(*options, "options");
            given = *options;
        }
        *engine = new paramorph_engine{paramorph::open_engine(bundle, given)};
    });
}

void paramorph_close(paramorph_engine* engine) { delete engine; }

paramorph_status paramorph_describe(const paramorph_engine* engine, paramorph_info* info) {
    return guarded([=] {
        check_engine(engine);
        check_given(info, "info");
        check_size(*info, "info");
        *info = engine->engine->info();
        info->struct_size = sizeof *info;
    });
}

paramorph_status paramorph_register(paramorph_engine* engine, const float* moving,
                                    const float* fixed, float* displacement, float* warped) {
    return guarded([=] {
        check_engine(engine);
        engine->engine->run(moving, fixed, displacement, warped);
    });
}

paramorph_status paramorph_features(paramorph_engine* engine, const float* moving,
                                    const float* fixed, float* features) {
    return guarded([=] {
        check_engine(engine);
        engine->engine->features(moving, fixed, features);
    });
}

paramorph_status paramorph_refine(const paramorph_refinement* refinement, float* displacement,
                                  float* warped) {
    return guarded([=] {
        check_given(refinement, "refinement");
        check_size(*refinement, "refinement");
        paramorph::refine(*refinement, displacement, warped);
    });
}

paramorph_status paramorph_usual_levels(int32_t iterations, paramorph_level* levels,
                                        int32_t level_count) {
    return guarded([=] {
        check_given(levels, "levels");
        paramorph::usual_levels(iterations, levels, level_count);
    });
}

paramorph_status paramorph_register_async(paramorph_engine* engine, const float* moving,
                                          const float* fixed, float* displacement, float* warped,
                                          void* stream) {
    return guarded([=] {
        check_engine(engine);
        engine->engine->enqueue(moving, fixed, displacement, warped, stream);
    });
}

void* paramorph_stream(const paramorph_engine* engine) {
    return engine != nullptr ? engine->engine->stream() : nullptr;
}

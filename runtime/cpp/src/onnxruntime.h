// ONNX Runtime's C interface, opened when it is needed.
//
// Its functions come as a table that only ever grows at its end, so one build serves every version.
// The table is declared in onnxruntime.cpp, as far as it is used: no header has to be found.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"

namespace paramorph {

class OnnxRuntime {
public:
    // path: NULL where the loader finds it by its name.
    // Throws PARAMORPH_MISSING_DEPENDENCY: it is not there, or no ONNX Runtime.
    explicit OnnxRuntime(const char* path);
    ~OnnxRuntime();
    OnnxRuntime(const OnnxRuntime&) = delete;

    // Of a network, and where on the host it goes: (batch, channels, D, H, W).
    struct Output {
        const char* name;
        int32_t batch, channels;
        float* values;
    };

    // A network, loaded. It must not outlive its library.
    class Session {
    public:
        Session(Session&&) = default;

        // Volumes on the host; computes these outputs alone.
        // Throws PARAMORPH_BACKEND_ERROR.
        void run(const float* moving, const float* fixed,
                 const std::vector<Output>& outputs) const;

    private:
        friend class OnnxRuntime;
        using Handle = std::unique_ptr<void, void (*)(void*)>;

        Session(const OnnxRuntime& library, const NetworkEntry& entry, Handle handle)
            : library_(&library), entry_(entry), handle_(std::move(handle)) {}

        const OnnxRuntime* library_;
        NetworkEntry entry_;
        Handle handle_;
    };

    // file, weights: what the files of `entry` hold, not needed afterwards.
    // threads: within one operator; 0 is all cores.
    // Throws PARAMORPH_BACKEND_ERROR: ONNX Runtime refuses it.
    Session session(const std::vector<char>& file, const std::optional<std::vector<char>>& weights,
                    const NetworkEntry& entry, int32_t threads) const;

    std::string version;  // in full, such as "1.31.1"

private:
    struct Table;

    // Throws PARAMORPH_BACKEND_ERROR with the words of a status that is not NULL.
    void check(void* status, const std::string& file, const char* expected) const;

    const Table* table_ = nullptr;
    void* environment_ = nullptr;
};

}  // namespace paramorph

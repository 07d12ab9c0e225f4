#include "onnxruntime.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "library.h"

namespace paramorph {
namespace {

constexpr char kSoname[] = "libonnxruntime.so.1";
constexpr std::uint32_t kOldestVersion = 18;  // of the interface: ONNX Runtime 1.18

// Values of its enumerations.
constexpr int kErrors = 3, kArenaAllocator = 1, kDefaultMemory = 0, kFloat = 1;

using Handle = void*;  // to what ONNX Runtime alone looks into
using Status = void*;  // NULL: good

struct Base {
    const void* (*get_table)(std::uint32_t version);
    const char* (*get_version)();
};

}  // namespace

// ONNX Runtime's OrtApi, by the places of its functions: what lies between is not used here.
//
// Source: onnxruntime_c_api.h, whose functions keep their places ("only add to the end").
struct OnnxRuntime::Table {
    void* to_2[2];
    const char* (*get_error_message)(Status);
    Status (*create_environment)(int log_level, const char* name, Handle* environment);
    void* to_8[4];
    Status (*create_session)(Handle environment, const void* file, std::size_t bytes,
                             Handle options, Handle* session);
    Status (*run)(Handle session, Handle options, const char* const* input_names,
                  const Handle* inputs, std::size_t input_count, const char* const* output_names,
                  std::size_t output_count, Handle* outputs);
    Status (*create_session_options)(Handle* options);
    void* to_22[11];
    Status (*set_log_level)(Handle options, int level);
    void* to_24[1];
    Status (*set_threads)(Handle options, int threads);
    void* to_49[24];
    Status (*create_tensor)(Handle memory, void* data, std::size_t bytes,
                            const std::int64_t* shape, std::size_t rank, int type, Handle* tensor);
    void* to_69[19];
    Status (*create_cpu_memory)(int allocator, int type, Handle* memory);
    void* to_92[22];
    void (*release_environment)(Handle);
    void (*release_status)(Status);
    void (*release_memory)(Handle);
    void (*release_session)(Handle);
    void (*release_tensor)(Handle);
    void* to_100[3];
    void (*release_options)(Handle);
    void* to_279[178];
    Status (*add_weights)(Handle options, const char* const* files, char* const* contents,
                          const std::size_t* bytes, std::size_t count);
};

OnnxRuntime::OnnxRuntime(const char* path) {
    const std::string name = path != nullptr ? path : kSoname;
    // Else it writes a device id into the user's cache; who set the variable has decided otherwise.
    setenv("ORT_DISABLE_TELEMETRY", "1", /*overwrite=*/0);
    const Library library(name, "ONNX Runtime",
                          "install it, or say where it lies in options.library");
    const Base* const base = library.symbol<const Base* (*)()>("OrtGetApiBase")();
    version = base->get_version();
    table_ = static_cast<const Table*>(base->get_table(kOldestVersion));
    if (table_ == nullptr) {
        refuse(PARAMORPH_MISSING_DEPENDENCY, name + ": expected ONNX Runtime 1.18 or newer, got " +
                                                 version + "; install a newer one.");
    }
    static_assert(offsetof(Table, release_options) == 100 * sizeof(void*));
    static_assert(offsetof(Table, add_weights) == 279 * sizeof(void*));
    check(table_->create_environment(kErrors, "paramorph", &environment_), name, "an environment");
}

OnnxRuntime::~OnnxRuntime() { table_->release_environment(environment_); }

OnnxRuntime::Session OnnxRuntime::session(const std::vector<char>& file,
                                          const std::optional<std::vector<char>>& weights,
                                          const NetworkEntry& entry, int32_t threads) const {
    Handle made = nullptr;
    check(table_->create_session_options(&made), entry.file, "options");
    const Session::Handle options(made, table_->release_options);
    check(table_->set_log_level(options.get(), kErrors), entry.file, "options");
    check(table_->set_threads(options.get(), threads), entry.file, "that number of threads");
    if (weights) {
        const char* const name = entry.weights->file.c_str();
        char* const content = const_cast<char*>(weights->data());  // which it only reads
        const std::size_t bytes = weights->size();
        check(table_->add_weights(options.get(), &name, &content, &bytes, 1), entry.file, "weights");
    }
    Handle session = nullptr;
    check(table_->create_session(environment_, file.data(), file.size(), options.get(), &session),
          entry.file, "a network that it loads");
    return {*this, entry, Session::Handle(session, table_->release_session)};
}

void OnnxRuntime::Session::run(const float* moving, const float* fixed,
                               const std::vector<Output>& outputs) const {
    const Table& table = *library_->table_;
    void* made = nullptr;
    library_->check(table.create_cpu_memory(kArenaAllocator, kDefaultMemory, &made), entry_.file,
                    "memory of the host");
    const Handle memory(made, table.release_memory);
    std::vector<Handle> owned;
    const auto tensor = [&](const float* data, std::int64_t batch, std::int64_t channels) {
        const auto& [d, h, w] = entry_.shape;
        const std::array<std::int64_t, 5> shape = {batch, channels, d, h, w};
        const std::size_t bytes =
            static_cast<std::size_t>(batch * channels) * voxels(entry_.shape) * sizeof(float);
        void* value = nullptr;
        // ONNX Runtime does not write to what is an input.
        library_->check(table.create_tensor(memory.get(), const_cast<float*>(data), bytes,
                                            shape.data(), shape.size(), kFloat, &value),
                        entry_.file, "arrays of its shape");
        owned.emplace_back(value, table.release_tensor);
        return value;
    };
    const char* const input_names[] = {"moving", "fixed"};
    void* const inputs[] = {tensor(moving, 1, 1), tensor(fixed, 1, 1)};
    std::vector<const char*> names;
    std::vector<void*> results;
    for (const Output& output : outputs) {
        names.push_back(output.name);
        results.push_back(tensor(output.values, output.batch, output.channels));
    }
    library_->check(table.run(handle_.get(), nullptr, input_names, inputs, 2, names.data(),
                              names.size(), results.data()),
                    entry_.file, "its results");
}

void OnnxRuntime::check(void* status, const std::string& file, const char* expected) const {
    if (status != nullptr) {
        std::string words = table_->get_error_message(status);
        table_->release_status(status);
        words = words.substr(0, words.find('\n'));
        refuse(PARAMORPH_BACKEND_ERROR, file + ": expected " + expected + " from ONNX Runtime " +
                                            version + ", got \"" + words +
                                            "\"; update it, or export the bundle again.");
    }
}

}  // namespace paramorph

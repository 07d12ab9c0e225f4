#include "plugin.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

namespace paramorph {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr char kInterpolation[] = "interpolation";
constexpr char kPadding[] = "padding";
constexpr char kAlignCorners[] = "align_corners";

constexpr const char* kInterpolations[] = {"linear", "nearest"};  // in the order of the enums
constexpr const char* kPaddings[] = {"border", "zeros"};

// What TensorRT expects of int32_t methods.
constexpr int32_t kSuccess = 0, kFailure = 1;

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

__attribute__((format(printf, 1, 2))) void report(const char* format, ...) {
    char message[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    nvinfer1::ILoggerFinder* finder = logger_finder.load();
    if (nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message);
    } else {
        std::fprintf(stderr, "%s\n", message);
    }
}

// A major version of TensorRT in this process that is not the one of the headers, or 0. ILogger and
// ILoggerFinder have other tables of functions in 11 than in 10, so an error that this library
// reports would call the wrong one.
int other_tensorrt() {
    const auto is_loaded = [](int major) {
        char name[32];
        std::snprintf(name, sizeof(name), "libnvinfer.so.%d", major);
        return dlopen(name, RTLD_LAZY | RTLD_NOLOAD) != nullptr;
    };
    if (!is_loaded(NV_TENSORRT_MAJOR)) {
        for (int major = 10; major < 20; ++major) {
            if (is_loaded(major)) {
                return major;
            }
        }
    }
    return 0;
}

PluginField text_field(const char* name, const char* value) {
    return {name, value, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(value)) + 1};
}

// Sets `choice` to the field's place among `names`. The text may lack its terminating zero.
template <typename Enum>
bool read_choice(const PluginField& field, const char* const (&names)[2], Enum& choice) {
    const char* text = static_cast<const char*>(field.data);
    if (field.type == PluginFieldType::kCHAR && text != nullptr) {
        const size_t length = strnlen(text, static_cast<size_t>(field.length));
        for (int i = 0; i < 2; ++i) {
            if (length == std::strlen(names[i]) && std::memcmp(text, names[i], length) == 0) {
                choice = static_cast<Enum>(i);
                return true;
            }
        }
        report("%s: expected %s \"%s\" or \"%s\", got \"%.*s\"", kName, field.name, names[0],
               names[1], static_cast<int>(length), text);
        return false;
    }
    report("%s: expected %s as text", kName, field.name);
    return false;
}

bool read_flag(const PluginField& field, bool& flag) {
    if (field.type != PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
        report("%s: expected %s as one int32", kName, field.name);
        return false;
    }
    const int32_t value = *static_cast<const int32_t*>(field.data);
    if (value != 0 && value != 1) {
        report("%s: expected %s 0 or 1, got %d", kName, field.name, value);
        return false;
    }
    flag = value == 1;
    return true;
}

bool read_field(const PluginField& field, Options& options) {
    if (std::strcmp(field.name, kInterpolation) == 0) {
        return read_choice(field, kInterpolations, options.interpolation);
    }
    if (std::strcmp(field.name, kPadding) == 0) {
        return read_choice(field, kPaddings, options.padding);
    }
    if (std::strcmp(field.name, kAlignCorners) == 0) {
        return read_flag(field, options.align_corners);
    }
    report("%s: expected the attributes %s, %s and %s, got %s", kName, kInterpolation, kPadding,
           kAlignCorners, field.name);
    return false;
}

// A wildcard (-1) fits anything.
bool fits(int64_t dimension, int64_t expected) {
    return dimension == expected || dimension < 0 || expected < 0;
}

bool accepts(const nvinfer1::Dims& volume, const nvinfer1::Dims& displacement) {
    if (volume.nbDims != 5 || displacement.nbDims != 5) {
        report("%s: expected a volume and a displacement of 5 dimensions, got %d and %d", kName,
               volume.nbDims, displacement.nbDims);
        return false;
    }
    for (const nvinfer1::Dims* dims : {&volume, &displacement}) {
        for (int axis = 0; axis < 5; ++axis) {
            if (dims->d[axis] > INT32_MAX) {  // the kernel's own sizes have 32 bits
                report("%s: expected axes of up to %d, got one of %lld", kName, INT32_MAX,
                       static_cast<long long>(dims->d[axis]));
                return false;
            }
        }
    }
    if (!fits(displacement.d[1], 3)) {
        report("%s: expected a displacement of 3 channels, got %lld", kName,
               static_cast<long long>(displacement.d[1]));
        return false;
    }
    if (!fits(displacement.d[0], volume.d[0])) {
        report("%s: expected volume and displacement of one batch size, got %lld and %lld", kName,
               static_cast<long long>(volume.d[0]), static_cast<long long>(displacement.d[0]));
        return false;
    }
    return true;
}

Size size_of(const nvinfer1::Dims& dims) {
    return {static_cast<int32_t>(dims.d[2]), static_cast<int32_t>(dims.d[3]),
            static_cast<int32_t>(dims.d[4])};
}

Shape shape_of(const nvinfer1::PluginTensorDesc* inputs) {
    const nvinfer1::Dims& volume = inputs[0].dims;
    return {static_cast<int32_t>(volume.d[0]), static_cast<int32_t>(volume.d[1]), size_of(volume),
            size_of(inputs[1].dims)};
}

template <typename T>
cudaError_t launch(const void* const* inputs, void* const* outputs, const Shape& shape,
                   const Options& options, cudaStream_t stream) {
    return grid_sample_3d(static_cast<const T*>(inputs[0]), static_cast<const float*>(inputs[1]),
                          static_cast<T*>(outputs[0]), shape, options, stream);
}

}  // namespace

Fields::Fields(const Options& options)
    : align_corners_(options.align_corners),
      fields_{text_field(kInterpolation, kInterpolations[static_cast<int>(options.interpolation)]),
              text_field(kPadding, kPaddings[static_cast<int>(options.padding)]),
              PluginField(kAlignCorners, &align_corners_, PluginFieldType::kINT32, 1)} {
    collection_.nbFields = 3;
    collection_.fields = fields_;
}

Plugin::Plugin(const Options& options) : options_(options), fields_(options) {
    std::snprintf(identity_, sizeof(identity_), "%s,%s,%d",
                  kInterpolations[static_cast<int>(options.interpolation)],
                  kPaddings[static_cast<int>(options.padding)], options.align_corners);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE:
            return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD:
            return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME:
            return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept { return new (std::nothrow) Plugin(*this); }

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
    if (input_count != 2 || output_count != 1) {
        return kFailure;
    }
    outputs[0] = inputs[0];
    return kSuccess;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                const nvinfer1::DimsExprs*, int32_t shape_input_count,
                                nvinfer1::DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder&) noexcept {
    if (input_count != 2 || shape_input_count != 0 || output_count != 1) {
        report("%s: expected the inputs volume and displacement", kName);
        return kFailure;
    }
    const nvinfer1::DimsExprs &volume = inputs[0], &displacement = inputs[1];
    if (volume.nbDims != 5 || displacement.nbDims != 5) {
        report("%s: expected a volume and a displacement of 5 dimensions, got %d and %d", kName,
               volume.nbDims, displacement.nbDims);
        return kFailure;
    }
    outputs[0].nbDims = 5;
    for (int axis = 0; axis < 5; ++axis) {
        outputs[0].d[axis] = axis < 2 ? volume.d[axis] : displacement.d[axis];
    }
    return kSuccess;
}

bool Plugin::supportsFormatCombination(int32_t position,
                                       const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                       int32_t) noexcept {
    const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
        return false;
    }
    switch (position) {
        case 0:
            return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
        case 1:
            return tensor.type == DataType::kFLOAT;
        default:
            return tensor.type == tensors[0].desc.type;
    }
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
    return accepts(inputs[0].desc.dims, inputs[1].desc.dims) ? kSuccess : kFailure;
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t,
                              const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
    if (!accepts(inputs[0].dims, inputs[1].dims)) {
        return kFailure;
    }
    if (const char* reason = refusal(shape_of(inputs))) {
        report("%s: %s", kName, reason);
        return kFailure;
    }
    return kSuccess;
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* inputs,
                        const nvinfer1::PluginTensorDesc*, const void* const* input_data,
                        void* const* output_data, void*, cudaStream_t stream) noexcept {
    const bool half = inputs[0].type == DataType::kHALF;
    const cudaError_t status = (half ? launch<__half> : launch<float>)(
        input_data, output_data, shape_of(inputs), options_, stream);
    if (status != cudaSuccess) {
        report("%s: %s", kName, cudaGetErrorString(status));
        return kFailure;
    }
    return kSuccess;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return clone();
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
    return fields_.collection();
}

nvinfer1::IPluginV3* Creator::createPlugin(const char*,
                                           const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
    Options options;
    for (int i = 0; fields != nullptr && i < fields->nbFields; ++i) {
        if (!read_field(fields->fields[i], options)) {
            return nullptr;
        }
    }
    return new (std::nothrow) Plugin(options);
}

const nvinfer1::PluginFieldCollection* Creator::getFieldNames() noexcept {
    static const Fields defaults{Options{}};
    return defaults.collection();
}

}  // namespace paramorph

nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static paramorph::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    if (const int major = paramorph::other_tensorrt()) {
        std::fprintf(stderr,
                     "%s: expected TensorRT %d, whose headers this library was compiled with, got "
                     "TensorRT %d; build the plugin again with the headers of that one.\n",
                     paramorph::kName, NV_TENSORRT_MAJOR, major);
        count = 0;
    }
    return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { paramorph::logger_finder = finder; }

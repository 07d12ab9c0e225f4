// Loads the plugin as TensorRT does, asks it what TensorRT would, and prints the answers as JSON.
//
//   plugin_probe libparamorph_plugin.so

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

class Logger final : public ILogger, public ILoggerFinder {
public:
    void log(Severity, const char* message) noexcept override { last = message; }
    ILogger* findLogger() override { return this; }
    std::string last;
} logger;

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        out += (c == '"' || c == '\\') ? std::string{'\\', c} : std::string{c};
    }
    return out + '"';
}

std::string joined(const std::vector<std::string>& items) {
    std::string out;
    for (const std::string& item : items) {
        out += (out.empty() ? "" : ", ") + item;
    }
    return '[' + out + ']';
}

PluginField text(const char* name, const char* value) {
    const auto length = static_cast<int32_t>(std::string(value).size());
    return {name, value, PluginFieldType::kCHAR, length + 1};
}

PluginField number(const char* name, const int32_t& value) {
    return {name, &value, PluginFieldType::kINT32, 1};
}

std::string described(const PluginFieldCollection& fields) {
    std::vector<std::string> items;
    for (int i = 0; i < fields.nbFields; ++i) {
        const PluginField& field = fields.fields[i];
        const bool is_text = field.type == PluginFieldType::kCHAR;
        const std::string value =
            is_text ? quoted(std::string(static_cast<const char*>(field.data), field.length - 1))
                    : std::to_string(*static_cast<const int32_t*>(field.data));
        items.push_back('[' + quoted(field.name) + ", " + value + ']');
    }
    return joined(items);
}

template <typename Capability>
Capability* capability(IPluginV3& plugin, PluginCapabilityType type) {
    return static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

IPluginV3OneBuild* build_of(IPluginV3& plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime* runtime_of(IPluginV3& plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

std::unique_ptr<IPluginV3> make(IPluginCreatorV3One& creator, std::vector<PluginField> fields,
                                TensorRTPhase phase = TensorRTPhase::kBUILD) {
    PluginFieldCollection collection;
    collection.nbFields = static_cast<int32_t>(fields.size());
    collection.fields = fields.data();
    logger.last.clear();
    return std::unique_ptr<IPluginV3>(creator.createPlugin("node", &collection, phase));
}

// The fields given, those serialized, and what is restored, cloned and attached from them.
std::string lives(IPluginCreatorV3One& creator) {
    std::vector<std::string> items;
    for (const char* interpolation : {"linear", "nearest"}) {
        for (const char* padding : {"border", "zeros"}) {
            for (const int32_t align_corners : {0, 1}) {
                const std::vector<PluginField> given{text("interpolation", interpolation),
                                                     text("padding", padding),
                                                     number("align_corners", align_corners)};
                PluginFieldCollection collection{3, given.data()};
                auto built = make(creator, given);
                const PluginFieldCollection& stored = *runtime_of(*built)->getFieldsToSerialize();
                auto restored = make(creator, {stored.fields, stored.fields + stored.nbFields},
                                     TensorRTPhase::kRUNTIME);
                std::unique_ptr<IPluginV3> cloned(restored->clone());
                restored.reset();
                std::unique_ptr<IPluginV3> attached(runtime_of(*cloned)->attachToContext(nullptr));
                cloned.reset();
                items.push_back(joined({described(collection),
                                        described(*runtime_of(*attached)->getFieldsToSerialize()),
                                        quoted(build_of(*attached)->getTimingCacheID())}));
            }
        }
    }
    return joined(items);
}

std::string refusals(IPluginCreatorV3One& creator) {
    const int32_t two = 2;
    const std::vector<PluginField> wrong[] = {{text("interpolation", "cubic")},
                                              {text("padding", "reflection")},
                                              {number("padding", two)},
                                              {number("align_corners", two)},
                                              {text("align_corners", "yes")},
                                              {text("mode", "linear")}};
    std::vector<std::string> items;
    for (const auto& fields : wrong) {
        items.push_back(make(creator, fields) ? "null" : quoted(logger.last));
    }
    return joined(items);
}

DynamicPluginTensorDesc tensor(DataType type, TensorFormat format) {
    DynamicPluginTensorDesc t{};
    t.desc.type = type;
    t.desc.format = format;
    return t;
}

// The combinations of types that are supported, all tensors linear, and how many others are.
std::string formats(IPluginV3OneBuild& plugin) {
    const std::vector<std::pair<DataType, const char*>> types = {{DataType::kFLOAT, "float"},
                                                                 {DataType::kHALF, "half"},
                                                                 {DataType::kBF16, "bf16"},
                                                                 {DataType::kINT8, "int8"},
                                                                 {DataType::kINT32, "int32"}};
    std::vector<std::string> linear;
    int others = 0;
    for (const auto format : {TensorFormat::kLINEAR, TensorFormat::kCHW2, TensorFormat::kHWC8,
                              TensorFormat::kCHW32, TensorFormat::kDHWC8}) {
        for (int odd = 0; odd < 3; ++odd) {
            for (const auto& volume : types) {
                for (const auto& displacement : types) {
                    for (const auto& warped : types) {
                        DynamicPluginTensorDesc all[] = {
                            tensor(volume.first, TensorFormat::kLINEAR),
                            tensor(displacement.first, TensorFormat::kLINEAR),
                            tensor(warped.first, TensorFormat::kLINEAR)};
                        all[odd].desc.format = format;
                        bool supported = true;
                        for (int i = 0; i < 3; ++i) {
                            supported = supported && plugin.supportsFormatCombination(i, all, 2, 1);
                        }
                        if (supported && format != TensorFormat::kLINEAR) {
                            ++others;
                        } else if (supported && odd == 0) {
                            linear.push_back(joined({quoted(volume.second),
                                                     quoted(displacement.second),
                                                     quoted(warped.second)}));
                        }
                    }
                }
            }
        }
    }
    return "{\"linear\": " + joined(linear) + ", \"others\": " + std::to_string(others) + '}';
}

struct Dimension final : IDimensionExpr, apiv::VDimensionExpr {
    Dimension(int64_t v) : value(v) { mImpl = this; }
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
};

struct Builder final : IExprBuilder {};

std::string output_shape(IPluginV3OneBuild& plugin) {
    const Dimension volume[5]{2, 4, 5, 6, 7}, u[5]{2, 3, 8, 9, 10};
    DimsExprs inputs[2]{}, output{};
    for (DimsExprs& input : inputs) {
        input.nbDims = 5;
    }
    for (int i = 0; i < 5; ++i) {
        inputs[0].d[i] = &volume[i];
        inputs[1].d[i] = &u[i];
    }
    Builder builder;
    if (plugin.getOutputShapes(inputs, 2, nullptr, 0, &output, 1, builder) != 0) {
        return "null";
    }
    std::vector<std::string> items;
    for (int i = 0; i < output.nbDims; ++i) {
        items.push_back(std::to_string(static_cast<const Dimension*>(output.d[i])->value));
    }
    return joined(items);
}

struct Case {
    const char* name;
    Dims volume, displacement;
};

// For each pair of shapes: what configuring says, what running says.
std::string shapes(IPluginV3& plugin) {
    const Case cases[] = {
        {"good", {5, {1, 1, 5, 6, 7}}, {5, {1, 3, 5, 6, 7}}},
        {"wildcards", {5, {-1, 1, -1, -1, -1}}, {5, {-1, 3, -1, -1, -1}}},
        {"other size", {5, {2, 4, 5, 6, 7}}, {5, {2, 3, 8, 9, 10}}},
        {"rank 4", {4, {1, 1, 6, 7}}, {4, {1, 2, 6, 7}}},
        {"two components", {5, {1, 1, 5, 6, 7}}, {5, {1, 2, 5, 6, 7}}},
        {"batches differ", {5, {2, 1, 5, 6, 7}}, {5, {1, 3, 5, 6, 7}}},
        {"flat", {5, {1, 1, 1, 6, 7}}, {5, {1, 3, 1, 6, 7}}},
        {"huge", {5, {1, 1, 2048, 2048, 2048}}, {5, {1, 3, 5, 6, 7}}},
        {"long axis", {5, {1, 1, (1LL << 32) + 5, 6, 7}}, {5, {1, 3, 5, 6, 7}}},
        {"many", {5, {70000, 1, 5, 6, 7}}, {5, {70000, 3, 5, 6, 7}}},
    };
    std::vector<std::string> items;
    for (const Case& c : cases) {
        DynamicPluginTensorDesc dynamic[2]{}, dynamic_out{};
        PluginTensorDesc fixed[2]{}, fixed_out{};
        dynamic[0].desc.dims = fixed[0].dims = c.volume;
        dynamic[1].desc.dims = fixed[1].dims = c.displacement;
        logger.last.clear();
        const int32_t configured = build_of(plugin)->configurePlugin(dynamic, 2, &dynamic_out, 1);
        const int32_t changed = runtime_of(plugin)->onShapeChange(fixed, 2, &fixed_out, 1);
        items.push_back(joined({quoted(c.name), std::to_string(configured), std::to_string(changed),
                                quoted(logger.last)}));
    }
    return joined(items);
}

}  // namespace

int main(int argc, char** argv) {
    void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (library == nullptr) {
        std::fprintf(stderr, "%s\n", argc == 2 ? dlerror() : "usage: plugin_probe LIBRARY");
        return 1;
    }
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    using SetLoggerFinder = void (*)(ILoggerFinder*);
    const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
    const auto set_finder = reinterpret_cast<SetLoggerFinder>(dlsym(library, "setLoggerFinder"));
    set_finder(&logger);
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = get_creators(count);
    auto& creator = *static_cast<IPluginCreatorV3One*>(creators[0]);
    auto plugin = make(creator, {});
    DataType out{}, in[] = {DataType::kHALF, DataType::kFLOAT};
    build_of(*plugin)->getOutputDataTypes(&out, 1, in, 2);
    const auto print = [](const char* key, const std::string& value, const char* end = ",\n") {
        std::printf("\"%s\": %s%s", key, value.c_str(), end);
    };
    std::printf("{");
    print("tensorrt", std::to_string(NV_TENSORRT_MAJOR) + '.' + std::to_string(NV_TENSORRT_MINOR));
    print("count", std::to_string(count));
    print("kind", quoted(creator.getInterfaceInfo().kind));
    print("name", quoted(creator.getPluginName()));
    print("version", quoted(creator.getPluginVersion()));
    print("namespace", quoted(creator.getPluginNamespace()));
    print("fields", described(*creator.getFieldNames()));
    print("defaults", described(*runtime_of(*plugin)->getFieldsToSerialize()));
    print("lives", lives(creator));
    print("refusals", refusals(creator));
    print("formats", formats(*build_of(*plugin)));
    print("half in, half out", out == DataType::kHALF ? "true" : "false");
    print("output shape", output_shape(*build_of(*plugin)));
    print("shapes", shapes(*plugin), "}\n");
}

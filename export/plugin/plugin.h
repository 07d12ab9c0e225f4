// GridSample3D as a TensorRT plugin (IPluginV3).

#pragma once

#include <NvInferRuntime.h>

#include "kernel.h"

#if NV_TENSORRT_MAJOR < 10
#error "IPluginV3 came with TensorRT 10"
#endif

namespace paramorph {

constexpr char kName[] = "GridSample3D";
constexpr char kVersion[] = "1";
// Where TensorRT's ONNX parser looks for the plugin of a node that names no `plugin_namespace`.
constexpr char kNamespace[] = "";

// The node's attributes, as fields of the creator and of the engine.
class Fields {
public:
    explicit Fields(const Options& options);

    const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

private:
    int32_t align_corners_;
    nvinfer1::PluginField fields_[3];
    nvinfer1::PluginFieldCollection collection_{};
};

// Inputs: volume (b, c, d, h, w), float32 or float16; displacement (b, 3, d, h, w), float32.
// Output: warped, of the volume's type and the displacement's size.
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    explicit Plugin(const Options& options);
    Plugin(const Plugin& other) : Plugin(other.options_) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }

    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count,
                               const nvinfer1::DataType* inputs,
                               int32_t input_count) const noexcept override;
    int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                            const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                            nvinfer1::DimsExprs* outputs, int32_t output_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position,
                                   const nvinfer1::DynamicPluginTensorDesc* tensors,
                                   int32_t input_count, int32_t output_count) noexcept override;
    int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                            int32_t output_count) noexcept override;
    const char* getTimingCacheID() noexcept override { return identity_; }
    const char* getMetadataString() noexcept override { return identity_; }

    int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::PluginTensorDesc* outputs,
                          int32_t output_count) noexcept override;
    int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs,
                    const nvinfer1::PluginTensorDesc* outputs, const void* const* input_data,
                    void* const* output_data, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

private:
    Options options_;
    Fields fields_;
    char identity_[32];
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::IPluginV3* createPlugin(const char* name,
                                      const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase phase) noexcept override;
    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;

    const char* getPluginName() const noexcept override { return kName; }
    const char* getPluginVersion() const noexcept override { return kVersion; }
    const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace paramorph

// What IPluginRegistry::loadLibrary looks for in a library of plugins.
#define PARAMORPH_EXPORT extern "C" __attribute__((visibility("default")))

PARAMORPH_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
PARAMORPH_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

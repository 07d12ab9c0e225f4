#include "bundle.h"

#include <openssl/evp.h>

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.h"

namespace paramorph {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kManifest[] = "manifest.json";
constexpr char kFormat[] = "paramorph-bundle";
constexpr int kFormatVersion = 2;
constexpr int kMostChannels = 1000;  // of features; the arithmetic of sizes stays far from its end

struct Malformed {
    std::string what;
};

[[noreturn]] void refuse_bundle(std::string message) {
    refuse(PARAMORPH_BUNDLE_ERROR, std::move(message));
}

std::string one_of(std::initializer_list<const char*> allowed, const json& value) {
    const auto text = value.get<std::string>();
    if (std::find(allowed.begin(), allowed.end(), text) == allowed.end()) {
        throw Malformed{"\"" + text + "\" where another value belongs"};
    }
    return text;
}

template <typename T>
std::array<T, 3> three(const json& values) {
    const auto fits = [](const json& value) {
        if constexpr (std::is_integral_v<T>) {
            // get<T>() would cut a fraction off, or the upper half of a large number.
            return value.is_number_integer() && value > 0 && value <= std::numeric_limits<T>::max();
        }
        return value.is_number() && value > 0;
    };
    if (!values.is_array() || values.size() != 3 ||
        !std::all_of(values.begin(), values.end(), fits)) {
        throw Malformed{values.dump() + " where three positive numbers belong"};
    }
    return values.get<std::array<T, 3>>();
}

int32_t channels(const json& value) {
    if (!value.is_number_integer() || value < 1 || value > kMostChannels) {
        throw Malformed{value.dump() + " where a number of channels belongs"};
    }
    return value.get<int32_t>();
}

double smoothing(const json& value) {
    if (!value.is_number() || !(value > 0.0)) {
        throw Malformed{value.dump() + " where a positive number belongs"};
    }
    return value.get<double>();
}

std::string orientation(const json& value) {
    const auto code = value.get<std::string>();
    const auto letters_of = [&code](const char* axis) {
        return std::count_if(code.begin(), code.end(),
                             [axis](char c) { return c == axis[0] || c == axis[1]; });
    };
    if (code.size() != 3 || letters_of("RL") != 1 || letters_of("AP") != 1 ||
        letters_of("SI") != 1) {
        throw Malformed{"\"" + code + "\" where an orientation such as \"RAS\" belongs"};
    }
    return code;
}

json read_manifest(const fs::path& folder) {
    const fs::path path = folder / kManifest;
    std::error_code ignored;
    if (!fs::is_regular_file(path, ignored)) {
        refuse_bundle(folder.string() + ": expected a bundle (a folder with " + kManifest +
                      "), found none; check the path.");
    }
    std::ifstream stream(path);
    json manifest = json::parse(stream, nullptr, /*allow_exceptions=*/false);
    if (manifest.is_discarded()) {
        refuse_bundle(path.string() +
                      ": expected JSON, got something else; export the bundle again.");
    }
    if (!manifest.is_object() || manifest.value("format", json()) != kFormat) {
        refuse_bundle(path.string() + ": expected the format \"" + kFormat +
                      "\", got another; check the path.");
    }
    if (const json version = manifest.value("format_version", json()); version != kFormatVersion) {
        refuse_bundle(path.string() + ": expected format version " +
                      std::to_string(kFormatVersion) + ", got " + version.dump() +
                      "; export the bundle again, or build the libparamorph that reads it.");
    }
    return manifest;
}

FileEntry file_entry(const json& name, const json& files) {
    const auto file = name.get<std::string>();
    const json& recorded = files.at(file);
    return {file, recorded.at("sha256").get<std::string>(),
            recorded.at("bytes").get<std::uintmax_t>()};
}

NetworkEntry network_entry(const json& entry, const json& files) {
    const std::string precision = one_of({"fp32", "fp16", "bf16"}, entry.at("precision"));
    const json device = precision == "fp32" ? "cpu" : "gpu";  // where older bundles do not say
    NetworkEntry network{file_entry(entry.at("file"), files),
                         precision,
                         three<int32_t>(entry.at("shape")),
                         one_of({"cpu", "gpu"}, entry.value("device", device)),
                         {}};
    if (const auto weights = entry.find("weights"); weights != entry.end() && !weights->is_null()) {
        network.weights = file_entry(*weights, files);
    }
    return network;
}

EngineEntry engine_entry(const json& entry, const json& files) {
    EngineEntry engine{file_entry(entry.at("file"), files),
                       one_of({"tensorrt", "tensorrt-rtx"}, entry.at("flavour")),
                       entry.at("version").get<std::string>(),
                       entry.at("compute_capability").get<std::string>(),
                       one_of({"fp32", "fp16", "bf16"}, entry.at("precision")),
                       three<int32_t>(entry.at("shape")),
                       {}};
    if (const auto plugin = entry.find("plugin"); plugin != entry.end() && !plugin->is_null()) {
        engine.plugin = file_entry(*plugin, files);
    }
    return engine;
}

Bundle bundle_from(const fs::path& folder, const json& manifest) {
    const json &grid = manifest.at("grid"), &intensity = manifest.at("intensity");
    const json& displacement = manifest.at("displacement");
    one_of({"voxel"}, displacement.at("unit"));
    one_of({"axis"}, displacement.at("channel_order"));
    one_of({"fixed-to-moving"}, displacement.at("direction"));
    Bundle bundle{folder,
                  manifest.at("name").get<std::string>(),
                  three<int32_t>(grid.at("shape")),
                  three<double>(grid.at("spacing_mm")),
                  orientation(grid.at("orientation")),
                  intensity.at("lower_percentile").get<double>(),
                  intensity.at("upper_percentile").get<double>(),
                  one_of({"exact", "reference"}, manifest.at("sampling").at("convention")),
                  false,
                  {},
                  {},
                  {},
                  0,
                  1};
    for (const json& output : manifest.value("outputs", json::array())) {
        bundle.has_warped = bundle.has_warped || output == "warped";
    }
    for (const json& entry : manifest.at("networks")) {
        bundle.networks.push_back(network_entry(entry, manifest.at("files")));
    }
    for (const json& entry : manifest.at("engines")) {
        bundle.engines.push_back(engine_entry(entry, manifest.at("files")));
    }
    if (const auto features = manifest.find("features");
        features != manifest.end() && !features->is_null()) {
        bundle.feature_channels = channels(features->at("channels"));
        bundle.smoothing = smoothing(features->value("smoothing", json(1.0)));
        for (const json& entry : features->at("networks")) {
            bundle.feature_networks.push_back(network_entry(entry, manifest.at("files")));
        }
    }
    return bundle;
}

// "[json.exception.out_of_range.403] key 'grid' not found" without its brackets.
std::string reason(const json::exception& error) {
    const std::string text = error.what();
    return text.substr(text.find("] ") == std::string::npos ? 0 : text.find("] ") + 2);
}

bool lies_inside(const fs::path& path, const fs::path& folder) {
    const fs::path inner = fs::weakly_canonical(path), outer = fs::canonical(folder);
    return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first ==
           outer.end();
}

std::string sha256(const std::vector<char>& data) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    if (EVP_Digest(data.data(), data.size(), digest, &length, EVP_sha256(), nullptr) != 1) {
        refuse(PARAMORPH_INTERNAL_ERROR, "libcrypto: expected a SHA-256, got none; check OpenSSL.");
    }
    std::string hex;
    for (unsigned int i = 0; i < length; ++i) {
        hex += "0123456789abcdef"[digest[i] >> 4];
        hex += "0123456789abcdef"[digest[i] & 15];
    }
    return hex;
}

}  // namespace

Bundle load_bundle(const fs::path& folder) {
    const json manifest = read_manifest(folder);
    std::string what;
    try {
        return bundle_from(folder, manifest);
    } catch (const json::exception& error) {
        what = reason(error);
    } catch (const Malformed& error) {
        what = error.what;
    }
    refuse_bundle((folder / kManifest).string() + ": expected the entries of format version " +
                  std::to_string(kFormatVersion) + ", got " + what + "; export the bundle again.");
}

std::vector<char> read_verified(const Bundle& bundle, const FileEntry& entry) {
    const fs::path path = bundle.folder / entry.file;
    if (!lies_inside(path, bundle.folder)) {
        refuse_bundle(entry.file +
                      ": expected a path inside the bundle, got one outside; refuse it.");
    }
    if (!fs::is_regular_file(path)) {
        refuse_bundle(path.string() +
                      ": expected this file of the bundle, found none; copy it again.");
    }
    if (const std::uintmax_t size = fs::file_size(path); size != entry.bytes) {
        refuse_bundle(path.string() + ": expected " + std::to_string(entry.bytes) + " bytes, got " +
                      std::to_string(size) + "; copy the bundle again.");
    }
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
        refuse_bundle(path.string() +
                      ": expected a readable file, got a refusal; check its permissions.");
    }
    std::vector<char> data(entry.bytes);
    stream.read(data.data(), static_cast<std::streamsize>(data.size()));
    data.resize(static_cast<std::size_t>(stream.gcount()));
    if (const std::string actual = sha256(data); actual != entry.sha256) {
        refuse_bundle(
            path.string() + ": expected SHA-256 " + entry.sha256.substr(0, 12) + "…, got " +
            actual.substr(0, 12) +
            "…: the file was altered; copy the bundle again from a source that you trust.");
    }
    return data;
}

std::size_t voxels(const Shape& shape) {
    std::size_t count = 1;
    for (const int32_t size : shape) {
        count *= static_cast<std::size_t>(size);
    }
    return count;
}

std::string text(const Shape& shape) {
    return "(" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ", " +
           std::to_string(shape[2]) + ")";
}

}  // namespace paramorph

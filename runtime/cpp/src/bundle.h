// A bundle's manifest and its engine files, verified; what paramorph_rt/bundle.py is in Python.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace paramorph {

using Shape = std::array<int32_t, 3>;

struct FileEntry {
    std::string file;  // within the bundle
    std::string sha256;
    std::uintmax_t bytes;
};

struct NetworkEntry : FileEntry {
    std::string precision;
    Shape shape;
    std::string device;  // "cpu" or "gpu", for which the graph was rewritten
    std::optional<FileEntry> weights;  // which the graph reads, if they are not inside it
};

struct EngineEntry : FileEntry {
    std::string flavour;
    std::string version;
    std::string compute_capability;
    std::string precision;
    Shape shape;
    std::optional<FileEntry> plugin;  // the library of GridSample3D, which it needs
};

struct Bundle {
    std::filesystem::path folder;
    std::string name;
    Shape shape;
    std::array<double, 3> spacing_mm;
    std::string orientation;
    double lower_percentile, upper_percentile;
    std::string sampling;
    bool has_warped;  // whether its networks give the warped volume too
    std::vector<NetworkEntry> networks;
    std::vector<EngineEntry> engines;
    std::vector<NetworkEntry> feature_networks;
    int32_t feature_channels;  // 0 without feature networks
    double smoothing;          // factor on feature_sigma; 1 without feature networks
};

// Throws PARAMORPH_BUNDLE_ERROR: no bundle there, an unknown format, a malformed entry.
Bundle load_bundle(const std::filesystem::path& folder);

// The bytes of a file, hashed as they are returned.
// Throws PARAMORPH_BUNDLE_ERROR: it is missing, outside the bundle, or was altered.
std::vector<char> read_verified(const Bundle& bundle, const FileEntry& entry);

std::size_t voxels(const Shape& shape);

// As Python prints it, such as "(96, 128, 96)".
std::string text(const Shape& shape);

}  // namespace paramorph

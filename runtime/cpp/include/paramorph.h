/* Deformable registration of two 3-D volumes by a ParaMorph bundle: its TensorRT engine on a GPU, or
 * its networks by ONNX Runtime on the CPU; and the refinement of a displacement on the pair itself, on
 * the CPU, which makes it much more accurate and smoother.
 *
 * Volumes are C-order float32 arrays (D, H, W): D, H, W are the axes i, j, k of the network grid,
 * so voxel (i, j, k) lies at index (i * H + j) * W + k. Both are on that grid, affinely aligned, in
 * [0, 1]; README.md says how they get there. The displacement is (3, D, H, W) in voxels, from fixed
 * to moving; channel c moves along axis c. With sampling "exact",
 *
 *     warped(p) = moving(p + displacement(p))
 *
 * Structures begin with struct_size, to be set to their sizeof, which tells the header that a program
 * was compiled with:
 *
 *     paramorph_options options = {0};
 *     options.struct_size = sizeof options;
 *
 * No function throws, prints or ends the program. Most return a status; when it is not
 * PARAMORPH_OK, paramorph_last_error() is a sentence that says what was expected, what came and
 * what to do.
 *
 * Threads: different engines may be used at the same time from different threads. Calls on one
 * engine wait for each other; only paramorph_close must come after all others have returned. The
 * calling thread's current CUDA context is left as it was found.
 */
#ifndef PARAMORPH_H
#define PARAMORPH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum paramorph_status {
    PARAMORPH_OK = 0,
    PARAMORPH_INVALID_ARGUMENT = 1,   /* the call itself is wrong */
    PARAMORPH_BUNDLE_ERROR = 2,       /* a bundle that is missing, altered, of an unknown format */
    PARAMORPH_NO_ENGINE = 3,          /* the bundle has none for this machine or this request */
    PARAMORPH_MISSING_DEPENDENCY = 4, /* the backend's library or driver is not on this machine */
    PARAMORPH_BACKEND_ERROR = 5,      /* the backend failed, or the result is not finite */
    PARAMORPH_OUT_OF_MEMORY = 6,      /* of the host; of the GPU it is a backend error */
    PARAMORPH_INTERNAL_ERROR = 7      /* ours */
} paramorph_status;

/* A network that is ready to run, with all the memory that it needs. */
typedef struct paramorph_engine paramorph_engine;

/* What to open; zeros are the registration network by TensorRT on the first GPU. */
typedef struct paramorph_options {
    uint32_t struct_size;  /* sizeof(paramorph_options) */
    int32_t device;        /* number of the GPU */
    int32_t shape[3];      /* D, H, W of the network; zeros: those of the bundle's grid */
    const char* precision; /* "fp32", "fp16", "bf16"; NULL: first in the manifest, fp32 on the CPU */
    const char* backend;   /* "tensorrt", or "onnxruntime" for the CPU; NULL: "tensorrt" */
    const char* library;   /* the backend's shared library; NULL: the loader finds it by name */
    int32_t threads;       /* on the CPU; 0: all cores */
    const char* network;   /* "registration", or "features" on the CPU; NULL: "registration" */
} paramorph_options;

/* What was opened; the text lives as long as the engine. */
typedef struct paramorph_info {
    uint32_t struct_size;           /* sizeof(paramorph_info), set by the caller */
    const char* name;               /* of the model */
    const char* file;               /* of the engine or network, within the bundle */
    const char* flavour;            /* "tensorrt", "tensorrt-rtx" or "onnxruntime" */
    const char* version;            /* of its library, such as "1.7.1.116" */
    const char* compute_capability; /* of the GPU, such as "8.6"; "" on the CPU */
    const char* device;             /* the GPU's name, or "CPU" */
    const char* precision;          /* of the convolutions and matrix products */
    const char* orientation;        /* closest anatomical directions of the axes, such as "RAS" */
    const char* sampling;           /* "exact", or "reference": (p + u) n / (n - 1) - 0.5 is read */
    int32_t shape[3];               /* D, H, W in voxels */
    int32_t has_warped;             /* 0: the engine gives the displacement alone */
    double spacing_mm[3];           /* that the network was trained at */
    double lower_percentile;        /* of the intensities above the minimum; becomes 0 */
    double upper_percentile;        /* becomes 1 */
    int64_t device_memory;          /* bytes: activations and buffers, without the weights */
    int32_t channels;               /* of the features; 0: it is a registration network */
    double smoothing;               /* that the features ask for: factor on feature_sigma */
} paramorph_info;

/* One resolution of a refinement, and what is done on it. */
typedef struct paramorph_level {
    double spacing_mm;    /* of its voxels; along an axis on which the images are coarser, theirs */
    int32_t iterations;   /* how many steps the field takes */
    double step;          /* length of a step's longest vector, in spacing_mm */
    double force_sigma;   /* of the Gaussian that smooths the forces, in spacing_mm: fluid */
    double field_sigma;   /* the same for the whole field after each step: elastic */
    double feature_sigma; /* in its place where features are compared; times their smoothing */
    double features;      /* weight of the features beside the local correlation; 0: not compared */
} paramorph_level;

/* A pair to refine a displacement on; zeros and NULL where a default is named. */
typedef struct paramorph_refinement {
    uint32_t struct_size;          /* sizeof(paramorph_refinement) */
    int32_t shape[3];              /* D, H, W of both images, which may lie on any one grid */
    double spacing_mm[3];          /* of their voxels */
    const float* moving;           /* (D, H, W), affinely aligned, in [0, 1] */
    const float* fixed;            /* (D, H, W), in [0, 1] */
    const float* counts;           /* (D, H, W): weight of each voxel's force; NULL: all count */
    const float* start;            /* (3, d, h, w) in voxels of its own grid; NULL: zeros */
    int32_t start_shape[3];        /* d, h, w; zeros: those of the images */
    const float* features;         /* (2, channels, d, h, w): of moving, of fixed; NULL: none */
    int32_t channels;              /* of the features */
    int32_t feature_shape[3];      /* d, h, w; zeros: those of the images */
    double smoothing;              /* info.smoothing of the features' model; 0: 1 */
    const paramorph_level* levels; /* coarse to fine; NULL: paramorph_usual_levels(7, …) */
    int32_t level_count;           /* of levels */
    int32_t threads;               /* 0: all cores */
} paramorph_refinement;

#define PARAMORPH_USUAL_LEVELS 5

/* Version of this library, such as "0.2.0". */
const char* paramorph_version(void);

/* The TensorRT whose headers it was compiled with, such as "tensorrt-rtx 1.7". */
const char* paramorph_built_for(void);

/* The sentence of this thread's last failed call; "" before there was one. Valid until the next. */
const char* paramorph_last_error(void);

/* Loads the engine of a bundle that fits this library, the TensorRT found, the GPU and the options,
 * or the network for the CPU. What is asked for is used or refused, never exchanged for another.
 *
 * The manifest's format version is checked, that the engine's file lies inside the bundle, that it
 * has the SHA-256 recorded, and that this very TensorRT version built it for this GPU. An engine is
 * code: open bundles from sources that you trust.
 *
 * bundle: its folder, as the C library opens paths.
 * options: NULL is all defaults.
 * engine: set to NULL on failure.
 */
paramorph_status paramorph_open(const char* bundle, const paramorph_options* options,
                                paramorph_engine** engine);

/* Waits for what was enqueued, then frees the engine and its memory. NULL is allowed. */
void paramorph_close(paramorph_engine* engine);

paramorph_status paramorph_describe(const paramorph_engine* engine, paramorph_info* info);

/* Registers volumes in host memory on the engine's own stream; returns when the result is there.
 *
 * warped: NULL if it is not wanted.
 * PARAMORPH_BACKEND_ERROR also if the displacement is not finite; the outputs then hold it.
 */
paramorph_status paramorph_register(paramorph_engine* engine, const float* moving,
                                    const float* fixed, float* displacement, float* warped);

/* A network's features of two volumes, on the CPU: channels that are alike where anatomy is, for
 * paramorph_refine. The engine was opened with options.network = "features".
 *
 * features: (2, info.channels, D, H, W), of the moving and of the fixed volume.
 * PARAMORPH_BACKEND_ERROR also if they are not finite.
 */
paramorph_status paramorph_features(paramorph_engine* engine, const float* moving,
                                    const float* fixed, float* features);

/* Refines a displacement on the pair itself, coarse to fine, on the CPU and without a bundle: by the
 * local correlation of both images, and by features if there are any. The same as in Python
 * (docs/refinement.md).
 *
 * Images, start and features have one field of view: the outer faces of their outermost voxels
 * coincide, and their axes; only the number of voxels differs. A level's grid is that field of view in
 * voxels of its spacing, but never finer than the images. Levels whose spacing is below 0.75 of the
 * images' finest are left out, as are levels of more than 24 million voxels, but never the first; so
 * images at the network's 1.5 mm are refined down to 1.5 mm, and images at 1 mm or finer down to the
 * 1 mm of the usual levels. The field on the finest level is interpolated linearly to the images' grid.
 * What is not done here: images are neither aligned nor brought onto that grid or into [0, 1].
 *
 * Without a model, start and features are NULL. With a bundle's features, start is NULL; else it is the
 * displacement of paramorph_register. (Of a bundle whose info.sampling is "reference" that has to be
 * turned into what it means before: u becomes (p + u) n / (n - 1) - 0.5 - p.)
 *
 * displacement: (3, D, H, W) on the images' grid, in its voxels, fixed to moving, channel = axis.
 * warped: (D, H, W), moving(p + displacement(p)), linear, at the border its values; NULL if it is not
 *     wanted.
 * PARAMORPH_BACKEND_ERROR if the displacement is not finite, as of images far beyond [0, 1].
 *
 * Several pairs may be refined at the same time. The number of threads changes no bit of the result.
 */
paramorph_status paramorph_refine(const paramorph_refinement* refinement, float* displacement,
                                  float* warped);

/* The usual levels of a refinement, coarse to fine: 6, 3, 1.5, 1 and 0.7 mm, with so many iterations
 * at 1.5 mm and the others in proportion.
 *
 * iterations: 7 is the default; more are more accurate, slower and rougher. 0 takes no step.
 * level_count: of `levels`: PARAMORPH_USUAL_LEVELS. Another count, as of a program that was compiled
 *     with the header of another version, is refused.
 */
paramorph_status paramorph_usual_levels(int32_t iterations, paramorph_level* levels,
                                        int32_t level_count);

/* As paramorph_register for volumes in memory of the engine's GPU, in the order of a stream; does not
 * wait. On the CPU it is refused.
 *
 * The work starts when everything enqueued on `stream` before has finished, and when earlier work
 * of the same engine has, on whichever stream. The result is there for what is enqueued on `stream`
 * afterwards; the host may read it after synchronising. Until then all arrays must stay as they
 * are. Values are not checked.
 *
 * moving, fixed, displacement, warped: aligned to 256 bytes, as cudaMalloc does; not overlapping.
 * stream: a cudaStream_t or CUstream of the engine's GPU (its primary context), or
 *     paramorph_stream(engine); NULL is CUDA's default stream. Not one that is being captured.
 */
paramorph_status paramorph_register_async(paramorph_engine* engine, const float* moving,
                                          const float* fixed, float* displacement, float* warped,
                                          void* stream);

/* The engine's own stream, a CUstream that synchronises with no other; NULL for no engine and on the
 * CPU.
 */
void* paramorph_stream(const paramorph_engine* engine);

#ifdef __cplusplus
}
#endif

#endif

/* Registers two raw float32 volumes:
 *
 *     register_raw BUNDLE MOVING FIXED DISPLACEMENT WARPED [BACKEND [LIBRARY]]
 *
 * BACKEND is "tensorrt" or "onnxruntime" (the CPU), LIBRARY its shared library.
 * All files hold C-order float32 in the byte order of the machine: the volumes (D, H, W), the
 * displacement (3, D, H, W). See ../README.md for how volumes come onto the network grid.
 *
 *     register_raw --refine D H W MM_D MM_H MM_W FINE_MOVING FINE_FIXED BUNDLE MOVING …
 *
 * takes the bundle's features of MOVING and FIXED instead of its field, and refines on FINE_MOVING and
 * FINE_FIXED: the same two images with the same field of view on the grid that is wanted, of D × H × W
 * voxels of MM_D × MM_H × MM_W millimetres. The results are on that grid. Features need the CPU.
 */
#include <paramorph.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the results are on, and without `refine` the network's own grid. */
typedef struct {
    int refine;
    int32_t shape[3];
    double spacing_mm[3];
    char** fine; /* paths of both images */
} request;

static float* read_volume(const char* path, size_t count) {
    float* values = malloc(count * sizeof *values);
    FILE* file = fopen(path, "rb");
    const int good = values != NULL && file != NULL &&
                     fread(values, sizeof *values, count, file) == count && fgetc(file) == EOF;
    if (file != NULL) {
        fclose(file);
    }
    if (!good) {
        fprintf(stderr,
                "%s: expected %zu float32 values, got another size or no file; write the volume on "
                "its grid.\n",
                path, count);
        free(values);
        return NULL;
    }
    return values;
}

static int write_values(const char* path, const float* values, size_t count) {
    FILE* file = fopen(path, "wb");
    int good = file != NULL && fwrite(values, sizeof *values, count, file) == count;
    if (file != NULL) {
        good = fclose(file) == 0 && good;
    }
    if (!good) {
        fprintf(stderr, "%s: expected to write %zu values, got a refusal; is the disk full?\n",
                path, count);
        remove(path);
    }
    return good;
}

static size_t voxels(const int32_t* shape) {
    return (size_t)shape[0] * (size_t)shape[1] * (size_t)shape[2];
}

static int succeeded(paramorph_status status) {
    if (status != PARAMORPH_OK) {
        fprintf(stderr, "%s\n", paramorph_last_error());
    }
    return status == PARAMORPH_OK;
}

static int refine(const request* wanted, const paramorph_info* info, const float* features,
                  float* displacement, float* warped) {
    const size_t count = voxels(wanted->shape);
    float* moving = read_volume(wanted->fine[0], count);
    float* fixed = read_volume(wanted->fine[1], count);
    paramorph_refinement refinement = {0};
    refinement.struct_size = sizeof refinement;
    memcpy(refinement.shape, wanted->shape, sizeof refinement.shape);
    memcpy(refinement.spacing_mm, wanted->spacing_mm, sizeof refinement.spacing_mm);
    refinement.moving = moving;
    refinement.fixed = fixed;
    refinement.features = features;
    refinement.channels = info->channels;
    refinement.smoothing = info->smoothing;
    memcpy(refinement.feature_shape, info->shape, sizeof refinement.feature_shape);
    const int good =
        moving && fixed && succeeded(paramorph_refine(&refinement, displacement, warped));
    free(moving);
    free(fixed);
    return good;
}

/* Features of the pair on the network grid, and the refinement by them on the grid that is wanted. */
static int register_finely(paramorph_engine* engine, const paramorph_info* info,
                           const request* wanted, const float* moving, const float* fixed,
                           float* displacement, float* warped) {
    const size_t count = 2 * (size_t)info->channels * voxels(info->shape);
    float* features = malloc(count * sizeof *features);
    const int good = features != NULL &&
                     succeeded(paramorph_features(engine, moving, fixed, features)) &&
                     refine(wanted, info, features, displacement, warped);
    free(features);
    return good;
}

static int register_files(paramorph_engine* engine, const request* wanted, char** paths) {
    paramorph_info info = {0};
    info.struct_size = sizeof info;
    if (!succeeded(paramorph_describe(engine, &info))) {
        return 0;
    }
    fprintf(stderr, "%s, %s on %s, %s %s: %d x %d x %d voxels of %g x %g x %g mm\n", info.name,
            info.precision, info.device, info.flavour, info.version, info.shape[0], info.shape[1],
            info.shape[2], info.spacing_mm[0], info.spacing_mm[1], info.spacing_mm[2]);

    const size_t count = voxels(wanted->refine ? wanted->shape : info.shape);
    float* moving = read_volume(paths[0], voxels(info.shape));
    float* fixed = read_volume(paths[1], voxels(info.shape));
    float* displacement = malloc(3 * count * sizeof *displacement);
    float* warped = malloc(count * sizeof *warped);
    int good = moving && fixed && displacement && warped;
    if (good && wanted->refine) {
        good = register_finely(engine, &info, wanted, moving, fixed, displacement, warped);
    } else if (good) {
        good = succeeded(paramorph_register(engine, moving, fixed, displacement, warped));
    }
    good = good && write_values(paths[2], displacement, 3 * count) &&
           write_values(paths[3], warped, count);
    free(moving);
    free(fixed);
    free(displacement);
    free(warped);
    return good;
}

/* The arguments after those of --refine, which go into `wanted`. */
static char** after_refine(char** argv, request* wanted) {
    wanted->refine = 1;
    for (int axis = 0; axis < 3; ++axis) {
        wanted->shape[axis] = (int32_t)strtol(argv[2 + axis], NULL, 10);
        wanted->spacing_mm[axis] = strtod(argv[5 + axis], NULL);
        if (wanted->shape[axis] < 1 || !(wanted->spacing_mm[axis] > 0)) {
            fprintf(stderr, "--refine: expected three sizes and three spacings, got \"%s\" and "
                            "\"%s\"; give positive numbers.\n", argv[2 + axis], argv[5 + axis]);
            exit(2);
        }
    }
    wanted->fine = argv + 8;
    return argv + 9;
}

int main(int argc, char** argv) {
    const char* program = argv[0];
    request wanted = {0};
    if (argc > 9 && strcmp(argv[1], "--refine") == 0) {
        argv = after_refine(argv, &wanted);
        argc -= 9;
    }
    if (argc < 6 || argc > 8) {
        fprintf(stderr,
                "usage: %s [--refine D H W MM_D MM_H MM_W FINE_MOVING FINE_FIXED] BUNDLE MOVING FIXED "
                "DISPLACEMENT WARPED [BACKEND [LIBRARY]]\n",
                program);
        return 2;
    }
    paramorph_options options = {0};
    options.struct_size = sizeof options;
    options.backend = argc > 6 ? argv[6] : NULL;
    options.library = argc > 7 ? argv[7] : NULL;
    options.network = wanted.refine ? "features" : NULL;
    paramorph_engine* engine = NULL;
    if (!succeeded(paramorph_open(argv[1], &options, &engine))) {
        return 1;
    }
    const int good = register_files(engine, &wanted, argv + 2);
    paramorph_close(engine);
    return good ? 0 : 1;
}

/* Registers two raw float32 volumes:
 *
 *     register_raw BUNDLE MOVING FIXED DISPLACEMENT WARPED [BACKEND [LIBRARY]]
 *
 * BACKEND is "tensorrt" or "onnxruntime" (the CPU), LIBRARY its shared library.
 * All files hold C-order float32 in the byte order of the machine: the volumes (D, H, W), the
 * displacement (3, D, H, W). See ../README.md for how volumes come onto the network grid.
 */
#include <paramorph.h>

#include <stdio.h>
#include <stdlib.h>

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
                "the network grid.\n",
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

static int register_files(paramorph_engine* engine, char** paths) {
    paramorph_info info;
    if (paramorph_describe(engine, &info) != PARAMORPH_OK) {
        fprintf(stderr, "%s\n", paramorph_last_error());
        return 0;
    }
    const size_t count = (size_t)info.shape[0] * (size_t)info.shape[1] * (size_t)info.shape[2];
    fprintf(stderr, "%s, %s on %s, %s %s: %d x %d x %d voxels of %g x %g x %g mm\n", info.name,
            info.precision, info.device, info.flavour, info.version, info.shape[0], info.shape[1],
            info.shape[2], info.spacing_mm[0], info.spacing_mm[1], info.spacing_mm[2]);

    float* moving = read_volume(paths[0], count);
    float* fixed = read_volume(paths[1], count);
    float* displacement = malloc(3 * count * sizeof *displacement);
    float* warped = malloc(count * sizeof *warped);
    int good = moving && fixed && displacement && warped;
    if (good && paramorph_register(engine, moving, fixed, displacement, warped) != PARAMORPH_OK) {
        fprintf(stderr, "%s\n", paramorph_last_error());
        good = 0;
    }
    good = good && write_values(paths[2], displacement, 3 * count) &&
           write_values(paths[3], warped, count);
    free(moving);
    free(fixed);
    free(displacement);
    free(warped);
    return good;
}

int main(int argc, char** argv) {
    if (argc < 6 || argc > 8) {
        fprintf(stderr, "usage: %s BUNDLE MOVING FIXED DISPLACEMENT WARPED [BACKEND [LIBRARY]]\n",
                argv[0]);
        return 2;
    }
    paramorph_options options = {0};
    options.backend = argc > 6 ? argv[6] : NULL;
    options.library = argc > 7 ? argv[7] : NULL;
    paramorph_engine* engine = NULL;
    if (paramorph_open(argv[1], &options, &engine) != PARAMORPH_OK) {
        fprintf(stderr, "%s\n", paramorph_last_error());
        return 1;
    }
    const int good = register_files(engine, argv + 2);
    paramorph_close(engine);
    return good ? 0 : 1;
}

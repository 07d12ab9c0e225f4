/* Every refusal of the C interface that a machine without a GPU reaches, and a refinement, for valgrind
 * and for the sanitizers: errors BUNDLES [TENSORRT]. Prints "STATUS SENTENCE" for each; a folder of
 * BUNDLES is opened by its name, in order. */
#include <paramorph.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

static void report(const char* what, paramorph_status status) {
    printf("%s\t%d\t%s\n", what, (int)status, status == PARAMORPH_OK ? "" : paramorph_last_error());
}

static int visible(const struct dirent* entry) { return entry->d_name[0] != '.'; }

/* Of made-up volumes, with all that a refinement may be given, each on a grid of its own. */
static paramorph_status refined(void) {
    enum { D = 9, H = 8, W = 11, CHANNELS = 2, COUNT = D * H * W, SMALL = 4 * 5 * 6 };
    static float moving[COUNT], fixed[COUNT], counts[COUNT], displacement[3 * COUNT], warped[COUNT];
    static float start[3 * SMALL], features[2 * CHANNELS * SMALL];
    for (int i = 0; i < COUNT; ++i) {
        moving[i] = (float)(i * 37 % 101) / 101;
        fixed[i] = (float)(i * 53 % 97) / 97;
        counts[i] = (float)(i % 2);
    }
    for (int i = 0; i < 3 * SMALL; ++i) {
        start[i] = (float)(i % 7) - 3;
        features[i] = (float)(i % 5) / 5;
    }
    paramorph_level levels[PARAMORPH_USUAL_LEVELS];
    paramorph_usual_levels(2, levels, PARAMORPH_USUAL_LEVELS);
    const paramorph_refinement refinement = {
        .struct_size = sizeof refinement,
        .shape = {D, H, W},
        .spacing_mm = {0.8, 1, 1.2},
        .moving = moving,
        .fixed = fixed,
        .counts = counts,
        .start = start,
        .start_shape = {4, 5, 6},
        .features = features,
        .channels = CHANNELS,
        .feature_shape = {6, 5, 4},
        .levels = levels,
        .level_count = PARAMORPH_USUAL_LEVELS,
        .threads = 3,
    };
    return paramorph_refine(&refinement, displacement, warped);
}

int main(int argc, char** argv) {
    if (argc < 2) {
        return 2;
    }
    paramorph_options options = {0};
    options.struct_size = sizeof options;
    options.library = argc > 2 ? argv[2] : NULL;
    float value = 0;
    paramorph_info info;
    paramorph_engine* engine = (paramorph_engine*)&value;

    printf("version\t0\t%s\n", paramorph_version());
    printf("before any\t0\t%s\n", paramorph_last_error());
    report("open NULL", paramorph_open(NULL, NULL, &engine));
    if (engine != NULL) {
        return 3;
    }
    report("open into NULL", paramorph_open(argv[1], NULL, NULL));
    report("describe NULL", paramorph_describe(NULL, &info));
    report("register NULL", paramorph_register(NULL, &value, &value, &value, NULL));
    report("features NULL", paramorph_features(NULL, &value, &value, &value));
    report("refine NULL", paramorph_refine(NULL, &value, NULL));
    report("levels NULL", paramorph_usual_levels(7, NULL, 0));
    report("async NULL", paramorph_register_async(NULL, &value, &value, &value, NULL, NULL));
    if (paramorph_stream(NULL) != NULL) {
        return 3;
    }
    paramorph_close(NULL);

    struct dirent** names;
    const int count = scandir(argv[1], &names, visible, alphasort);
    for (int i = 0; i < count; ++i) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], names[i]->d_name);
        const paramorph_status status = paramorph_open(path, &options, &engine);
        report(names[i]->d_name, status);
        paramorph_close(engine);
        free(names[i]);
    }
    free(names);
    // Last: once there were threads, glibc frees late what dlopen allocates, which valgrind calls lost.
    report("refined", refined());
    return 0;
}

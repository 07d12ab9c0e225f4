/* Every refusal of the C interface that a machine without a GPU reaches, for valgrind and for the
 * sanitizers: errors BUNDLES [TENSORRT]. Prints "STATUS SENTENCE" for each; a folder of BUNDLES is
 * opened by its name, in order. */
#include <paramorph.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

static void report(const char* what, paramorph_status status) {
    printf("%s\t%d\t%s\n", what, (int)status, status == PARAMORPH_OK ? "" : paramorph_last_error());
}

static int visible(const struct dirent* entry) { return entry->d_name[0] != '.'; }

int main(int argc, char** argv) {
    if (argc < 2) {
        return 2;
    }
    paramorph_options options = {0};
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
    return 0;
}

/* The passes of kernels.c, which says what each does. */
#ifndef PARAMORPH_KERNELS_H
#define PARAMORPH_KERNELS_H

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

EXPORT int sample(const float *volume, int channels, const int *shape, const float *shift,
                  float scale, int add, float *out, int start, int stop);

EXPORT int convolve_planes(const float *volume, const int *shape, const float *taps_h, int radius_h,
                           const float *taps_w, int radius_w, float *out, int start, int stop);

EXPORT int convolve_depth(const float *volume, const int *shape, const float *taps, int radius,
                          float *out, int start, int stop);

EXPORT int correlation_force(const float *warped, const float *fixed, const float *fixed_mean,
                             const float *fixed_variance, const int *shape, int r,
                             float least_product, float least_variance, const float *weights,
                             float *force, int start, int stop);

EXPORT int add_difference_force(const float *warped, const float *fixed, int channels,
                                const int *shape, const float *weights, float *force, int start,
                                int stop);

EXPORT float longest(const float *field, const int *shape, const float *weights, int start,
                     int stop);

EXPORT int rescale(const float *array, int size, int inner, int target, const int *first,
                   const int *count, const float *weights, int widest, float *out, int start,
                   int stop);

#ifdef __cplusplus
}
#endif

#undef EXPORT
#endif

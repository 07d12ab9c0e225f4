/* The passes over a volume of which one iteration of the refinement consists.
 *
 * Volumes are float32 in C order (d, h, w); fields have three planes of that shape, one per array
 * axis, in voxels. Every function works on the slices [start, stop) of one axis, so that the caller
 * spreads slabs over threads. Beyond a border lies the border. `graph.py` holds the same arithmetic
 * in ONNX operators, and tests hold the two together.
 *
 * Plain C99 without Python: the package (`extension.c`) and libparamorph are built from this file.
 */
#include "kernels.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* One library for all x86-64 processors: the loader takes the widest version that this one runs. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define PASS __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define PASS
#endif

typedef ptrdiff_t index_t;

static inline index_t inside(index_t i, index_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

/* Of a position: NaN becomes 0, so that no sample ever lies outside. */
static inline float bounded(float x, float last) {
    x = x > 0 ? x : 0;
    return x < last ? x : last;
}

/* out[c](p) = volume[c](p + scale shift(p)), plus scale shift[c](p) if `add` is set, which makes it
 * the composition of a field with a small step. Trilinear. Slices of axis 0.
 * Returns 0, or 1 if memory ran out. */
PASS int sample(const float *restrict volume, int channels, const int *restrict shape,
                const float *restrict shift, float scale, int add, float *restrict out, int start,
                int stop) {
    const index_t d = shape[0], h = shape[1], w = shape[2], n = d * h * w;
    const index_t next_d = d > 1 ? h * w : 0, next_h = h > 1 ? w : 0, next_w = w > 1;
    int *corner = malloc((size_t)w * sizeof(int));
    float *fraction = malloc((size_t)w * 3 * sizeof(float));
    if (!corner || !fraction) {
        free(corner);
        free(fraction);
        return 1;
    }
    float *f_d = fraction, *f_h = fraction + w, *f_w = fraction + 2 * w;
    for (index_t i = start; i < stop; i++)
        for (index_t j = 0; j < h; j++) {
            const index_t row = (i * h + j) * w;
            const float *s_d = shift + row, *s_h = s_d + n, *s_w = s_h + n;
            for (index_t k = 0; k < w; k++) {
                const float p_d = bounded((float)i + scale * s_d[k], (float)(d - 1));
                const float p_h = bounded((float)j + scale * s_h[k], (float)(h - 1));
                const float p_w = bounded((float)k + scale * s_w[k], (float)(w - 1));
                int c_d = (int)p_d, c_h = (int)p_h, c_w = (int)p_w;
                c_d -= (c_d == d - 1) & (d > 1);
                c_h -= (c_h == h - 1) & (h > 1);
                c_w -= (c_w == w - 1) & (w > 1);
                f_d[k] = p_d - (float)c_d;
                f_h[k] = p_h - (float)c_h;
                f_w[k] = p_w - (float)c_w;
                corner[k] = (c_d * (int)h + c_h) * (int)w + c_w;
            }
            for (int c = 0; c < channels; c++) {
                const float *source = volume + c * n;
                float *target = out + c * n + row;
                for (index_t k = 0; k < w; k++) {
                    const float *a = source + corner[k], *b = a + next_d;
                    const float a0 = a[0] + f_w[k] * (a[next_w] - a[0]);
                    const float a1 = a[next_h] + f_w[k] * (a[next_h + next_w] - a[next_h]);
                    const float b0 = b[0] + f_w[k] * (b[next_w] - b[0]);
                    const float b1 = b[next_h] + f_w[k] * (b[next_h + next_w] - b[next_h]);
                    const float a2 = a0 + f_h[k] * (a1 - a0), b2 = b0 + f_h[k] * (b1 - b0);
                    target[k] = a2 + f_d[k] * (b2 - a2);
                }
                if (add) {
                    const float *moved = shift + c * n + row;
                    for (index_t k = 0; k < w; k++) target[k] += scale * moved[k];
                }
            }
        }
    free(corner);
    free(fraction);
    return 0;
}

/* Convolution of one volume along axes 1 and 2 with symmetric kernels of 2 radius + 1 taps each.
 * Slices of axis 0. Returns 0, or 1 if memory ran out. */
PASS int convolve_planes(const float *restrict volume, const int *restrict shape,
                         const float *restrict taps_h, int radius_h, const float *restrict taps_w,
                         int radius_w, float *restrict out, int start, int stop) {
    const index_t h = shape[1], w = shape[2];
    float *padded = malloc((size_t)(w + 2 * radius_w) * sizeof(float));
    if (!padded) return 1;
    float *middle = padded + radius_w;
    for (index_t i = start; i < stop; i++) {
        const float *plane = volume + i * h * w;
        for (index_t j = 0; j < h; j++) {
            float *target = out + (i * h + j) * w;
            for (index_t k = 0; k < w; k++) middle[k] = 0;
            for (int t = -radius_h; t <= radius_h; t++) {
                const float tap = taps_h[t + radius_h];
                const float *source = plane + inside(j + t, h) * w;
                for (index_t k = 0; k < w; k++) middle[k] += tap * source[k];
            }
            for (int t = 1; t <= radius_w; t++) {
                middle[-t] = middle[0];
                middle[w - 1 + t] = middle[w - 1];
            }
            for (index_t k = 0; k < w; k++) target[k] = 0;
            for (int t = 0; t <= 2 * radius_w; t++) {
                const float tap = taps_w[t];
                for (index_t k = 0; k < w; k++) target[k] += tap * padded[k + t];
            }
        }
    }
    free(padded);
    return 0;
}

/* The same along axis 0. Slices of axis 1. */
PASS int convolve_depth(const float *restrict volume, const int *restrict shape,
                        const float *restrict taps, int radius, float *restrict out, int start,
                        int stop) {
    const index_t d = shape[0], h = shape[1], w = shape[2];
    for (index_t j = start; j < stop; j++)
        for (index_t i = 0; i < d; i++) {
            float *target = out + (i * h + j) * w;
            for (index_t k = 0; k < w; k++) target[k] = 0;
            for (int t = -radius; t <= radius; t++) {
                const float tap = taps[t + radius];
                const float *source = volume + (inside(i + t, d) * h + j) * w;
                for (index_t k = 0; k < w; k++) target[k] += tap * source[k];
            }
        }
    return 0;
}

/* Sums over a square of 2 r + 1 pixels of x, x², x y in one plane, into three planes. */
static inline void plane_sums(const float *restrict x, const float *restrict y, index_t h,
                              index_t w, int r, float *restrict sums, float *restrict rows) {
    const index_t stride = w + 2 * r;
    for (index_t j = 0; j < h; j++) {
        float *a = rows + r, *b = a + stride, *c = b + stride;
        for (index_t k = 0; k < w; k++) a[k] = b[k] = c[k] = 0;
        for (int t = -r; t <= r; t++) {
            const float *xr = x + inside(j + t, h) * w, *yr = y + inside(j + t, h) * w;
            for (index_t k = 0; k < w; k++) {
                a[k] += xr[k];
                b[k] += xr[k] * xr[k];
                c[k] += xr[k] * yr[k];
            }
        }
        for (int q = 0; q < 3; q++) {
            float *row = rows + q * stride, *target = sums + (q * h + j) * w;
            for (int t = 0; t < r; t++) {
                row[t] = row[r];
                row[r + w + t] = row[r + w - 1];
            }
            for (index_t k = 0; k < w; k++) target[k] = row[k];
            for (int t = 1; t <= 2 * r; t++)
                for (index_t k = 0; k < w; k++) target[k] += row[k + t];
        }
    }
}

/* Force that raises the squared local correlation of `warped` and `fixed` in cubes of 2 r + 1
 * voxels: its derivative by the intensity in the middle of the cube, times the gradient of `warped`,
 * times `weights` per axis. Slices of axis 0. Returns 0, or 1 if memory ran out. */
PASS int correlation_force(const float *restrict warped, const float *restrict fixed,
                           const float *restrict fixed_mean, const float *restrict fixed_variance,
                           const int *restrict shape, int r, float least_product,
                           float least_variance, const float *restrict weights,
                           float *restrict force, int start, int stop) {
    const index_t d = shape[0], h = shape[1], w = shape[2], plane = h * w, n = d * plane;
    const int size = 2 * r + 1;
    const float share = 1.0f / (float)(size * size * size);
    const size_t numbers = (size_t)(3 * plane * (size + 1) + 3 * (w + 2 * r));
    float *ring = malloc(numbers * sizeof(float));
    if (!ring) return 1;
    float *sums = ring + 3 * plane * size, *rows = sums + 3 * plane;
    for (index_t i = start - r; i < start + r; i++) {
        const index_t at = inside(i, d) * plane;
        plane_sums(warped + at, fixed + at, h, w, r, ring + ((i + size) % size) * 3 * plane, rows);
    }
    for (index_t i = start; i < stop; i++) {
        const index_t at = inside(i + r, d) * plane;
        plane_sums(warped + at, fixed + at, h, w, r, ring + ((i + r + size) % size) * 3 * plane,
                   rows);
        memcpy(sums, ring, (size_t)(3 * plane) * sizeof(float));
        for (int t = 1; t < size; t++) {
            const float *slice = ring + t * 3 * plane;
            for (index_t q = 0; q < 3 * plane; q++) sums[q] += slice[q];
        }
        const float *here = warped + i * plane;
        const float *above = warped + inside(i + 1, d) * plane;
        const float *below = warped + inside(i - 1, d) * plane;
        for (index_t j = 0; j < h; j++) {
            const float *next = here + inside(j + 1, h) * w, *last = here + inside(j - 1, h) * w;
            const float *row = here + j * w;
            const index_t q = j * w, p = i * plane + q;
            for (index_t k = 0; k < w; k++) {
                const float mean = sums[q + k] * share;
                const float spread = sums[plane + q + k] * share - mean * mean;
                const float variance = spread > 0 ? spread : 0;
                const float covariance = sums[2 * plane + q + k] * share - mean * fixed_mean[p + k];
                const float slope = covariance / (variance * fixed_variance[p + k] + least_product);
                const float fit = (covariance + least_variance) / (variance + least_variance);
                const float g =
                    slope * ((fixed[p + k] - fixed_mean[p + k]) - fit * (row[k] - mean));
                const float before = row[k > 0 ? k - 1 : 0], after = row[k < w - 1 ? k + 1 : k];
                force[p + k] = weights[0] * g * (above[q + k] - below[q + k]);
                force[n + p + k] = weights[1] * g * (next[k] - last[k]);
                force[2 * n + p + k] = weights[2] * g * (after - before);
            }
        }
    }
    free(ring);
    return 0;
}

/* force += the force that lowers the squared difference of two volumes of several channels, times
 * `weights` per axis. Slices of axis 0. */
PASS int add_difference_force(const float *restrict warped, const float *restrict fixed,
                              int channels, const int *restrict shape,
                              const float *restrict weights, float *restrict force, int start,
                              int stop) {
    const index_t d = shape[0], h = shape[1], w = shape[2], plane = h * w, n = d * plane;
    for (index_t i = start; i < stop; i++)
        for (index_t j = 0; j < h; j++) {
            float *target = force + i * plane + j * w;
            for (int c = 0; c < channels; c++) {
                const float *volume = warped + c * n, *row = volume + i * plane + j * w;
                const float *wanted = fixed + c * n + i * plane + j * w;
                const float *above = volume + inside(i + 1, d) * plane + j * w;
                const float *below = volume + inside(i - 1, d) * plane + j * w;
                const float *next = volume + i * plane + inside(j + 1, h) * w;
                const float *last = volume + i * plane + inside(j - 1, h) * w;
                for (index_t k = 0; k < w; k++) {
                    const float difference = wanted[k] - row[k];
                    const float before = row[k > 0 ? k - 1 : 0], after = row[k < w - 1 ? k + 1 : k];
                    target[k] += weights[0] * difference * (above[k] - below[k]);
                    target[n + k] += weights[1] * difference * (next[k] - last[k]);
                    target[2 * n + k] += weights[2] * difference * (after - before);
                }
            }
        }
    return 0;
}

/* Squared length of the longest vector of a field, whose axes count `weights`. Slices of axis 0. */
PASS float longest(const float *restrict field, const int *restrict shape,
                   const float *restrict weights, int start, int stop) {
    const index_t plane = (index_t)shape[1] * shape[2], n = shape[0] * plane;
    float most = 0;
    for (index_t i = start; i < stop; i++) {
        const float *a = field + i * plane, *b = a + n, *c = b + n;
        for (index_t q = 0; q < plane; q++) {
            const float x = weights[0] * a[q], y = weights[1] * b[q], z = weights[2] * c[q];
            const float length = x * x + y * y + z * z;
            most = length > most ? length : most;
        }
    }
    return most;
}

/* An array of (outer, size, inner) with `target` entries in place of `size`: entry t is the sum of
 * the `count[t]` entries from `first[t]` on, each times one of the weights in row t, of which a row
 * has room for `widest`. Slices of outer and target together. */
PASS int rescale(const float *restrict array, int size, int inner, int target,
                 const int *restrict first, const int *restrict count,
                 const float *restrict weights, int widest, float *restrict out, int start,
                 int stop) {
    const index_t n = inner;
    for (index_t row = start; row < stop; row++) {
        const index_t o = row / target, t = row % target;
        const float *source = array + (o * size + first[t]) * n, *weight = weights + t * widest;
        float *entry = out + row * n;
        if (n == 1) {
            float sum = 0;
            for (int j = 0; j < count[t]; j++) sum += weight[j] * source[j];
            *entry = sum;
            continue;
        }
        memset(entry, 0, (size_t)n * sizeof(float));
        for (int j = 0; j < count[t]; j++, source += n)
            for (index_t i = 0; i < n; i++) entry[i] += weight[j] * source[i];
    }
    return 0;
}

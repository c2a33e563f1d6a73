/* Batch norm fused with an optional addition of a shortcut and an optional ReLU, forward and backward, for
channels_last tensors: `rows` (images times positions) by `channels`.

    y = max(0, (x - mean) * scale + bias + shortcut)      scale = weight / sqrt(variance + eps)

Sums are accumulated in float within blocks of rows and in double over the blocks. The rows are divided into one part
per requested thread. The runtime may start fewer threads (OMP_THREAD_LIMIT, OMP_DYNAMIC), so a thread may process
several parts, and the result does not depend on it. All memory is allocated before the first thread starts. Functions
return 0 if there is not enough, else 1. The file includes itself once for each element type. */

#ifndef ELEMENT

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EACH(c, width) _Pragma("GCC ivdep") for (int64_t c = 0; c < (width); c++)
#define BLOCK 32
#define WIDE 128    /* fewest elements for which a loop over channels runs at full speed */
#define WORTH 16384 /* fewest elements that justify another thread */

typedef uint16_t bf16;

static inline float of_bf16(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline bf16 to_bf16(float value) { /* rounds to nearest, ties to even, like torch */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (bf16)rounded;
}

static inline float of_float(float value) { return value; }

typedef struct {
    int64_t rows, width; /* rows with few channels are merged, so that loops over channels are wide */
    int tile, parts;
} Shape;

static Shape shape_of(int64_t rows, int64_t channels, int64_t threads) {
    Shape s = {rows, channels, 1, 1};
    while (s.width < WIDE && s.rows % 2 == 0) s.rows /= 2, s.width *= 2, s.tile *= 2;
    int64_t worth = rows * channels / WORTH + 1;
    s.parts = (int)(worth < threads ? worth : threads);
    return s;
}

/* Memory of a call. */
typedef struct {
    double *parts; /* sums of each part: 2 * width */
    double *sums;  /* 2 * channels */
    float *blocks; /* sums within a block of each part: 2 * width */
    float *wide;   /* 5 rows of `width` */
    float *narrow; /* 2 rows of `channels` */
} Memory;

static int allocated(Memory *m, Shape s, int64_t channels) {
    size_t parts = (size_t)s.parts, width = (size_t)s.width;
    m->parts = calloc(parts * 2 * width + 2 * (size_t)channels, sizeof(double));
    m->blocks = malloc((parts * 2 * width + 5 * width + 2 * (size_t)channels) * sizeof(float));
    m->sums = m->parts + parts * 2 * width;
    m->wide = m->blocks + parts * 2 * width;
    m->narrow = m->wide + 5 * width;
    return m->parts && m->blocks;
}

static void released(Memory *m) { free(m->parts), free(m->blocks); }

/* Repeat `values` `tile` times, to `copy`. */
static float *tiled(const float *values, int64_t channels, int tile, float *copy) {
    for (int i = 0; i < tile; i++) memcpy(copy + i * channels, values, sizeof(float) * channels);
    return copy;
}

/* Sum two values per channel over all parts and tiles. */
static void gathered(const double *parts, Shape s, int64_t channels, double *first, double *second) {
    memset(first, 0, sizeof(double) * channels);
    memset(second, 0, sizeof(double) * channels);
    for (int t = 0; t < s.parts; t++)
        for (int64_t i = 0; i < s.width; i++) {
            first[i % channels] += parts[2 * s.width * t + i];
            second[i % channels] += parts[2 * s.width * t + s.width + i];
        }
}

enum { MEAN, INVERSE, SCALE, VARIANCE }; /* rows of `stats`, each of `channels` floats */

#define ELEMENT bf16
#define LOAD of_bf16
#define STORE to_bf16
#define NAME(name) name##_bf16
#include __FILE__
#undef ELEMENT
#undef LOAD
#undef STORE
#undef NAME
#define ELEMENT float
#define LOAD of_float
#define STORE of_float
#define NAME(name) name##_float
#include __FILE__

#else

/* `shortcut`, `weight` and `bias` may be NULL. `stats` is an output. */
int NAME(forward)(const ELEMENT *x, const ELEMENT *shortcut, int64_t rows, int64_t channels, const float *weight,
                  const float *bias, double eps, int relu, int64_t threads, ELEMENT *y, float *stats) {
    Shape s = shape_of(rows, channels, threads);
    Memory memory;
    if (!allocated(&memory, s, channels)) {
        released(&memory);
        return 0;
    }
    int64_t width = s.width;
    double *parts = memory.parts, *sum = memory.sums, *squares = sum + channels;
    float *first = memory.wide; /* subtracted first, to avoid cancellation in the variance */
    for (int64_t i = 0; i < width; i++) first[i] = LOAD(x[i % channels]);
#pragma omp parallel for num_threads(s.parts) schedule(static, 1)
    for (int t = 0; t < s.parts; t++) {
        int64_t begin = s.rows * t / s.parts, end = s.rows * (t + 1) / s.parts;
        double *total = parts + 2 * width * t;
        float *block = memory.blocks + 2 * width * t, *square = block + width;
        for (int64_t r = begin; r < end; r += BLOCK) {
            memset(block, 0, 2 * width * sizeof(float));
            for (int64_t i = r; i < end && i < r + BLOCK; i++) {
                const ELEMENT *row = x + i * width;
                EACH(c, width) {
                    float v = LOAD(row[c]) - first[c];
                    block[c] += v;
                    square[c] += v * v;
                }
            }
            EACH(c, 2 * width) total[c] += block[c];
        }
    }
    gathered(parts, s, channels, sum, squares);
    float *mean = stats + MEAN * channels, *scale = stats + SCALE * channels;
    for (int64_t c = 0; c < channels; c++) {
        double m = sum[c] / rows, v = squares[c] / rows - m * m;
        v = v < 0 ? 0 : v;
        mean[c] = (float)(m + first[c]);
        stats[INVERSE * channels + c] = (float)(1 / sqrt(v + eps));
        scale[c] = (float)((weight ? weight[c] : 1) / sqrt(v + eps));
        stats[VARIANCE * channels + c] = (float)v;
        sum[c] = (bias ? bias[c] : 0) - (m + first[c]) * scale[c];
    }
    float *shift = memory.narrow;
    for (int64_t c = 0; c < channels; c++) shift[c] = (float)sum[c];
    float *wide_scale = tiled(scale, channels, s.tile, memory.wide + width);
    float *wide_shift = tiled(shift, channels, s.tile, memory.wide + 2 * width);
    float floor = relu ? 0.0f : -INFINITY;
#pragma omp parallel for num_threads(s.parts) schedule(static, 1)
    for (int t = 0; t < s.parts; t++) {
        int64_t begin = s.rows * t / s.parts, end = s.rows * (t + 1) / s.parts;
        for (int64_t i = begin; i < end; i++) {
            const ELEMENT *row = x + i * width, *k = shortcut + i * width;
            ELEMENT *out = y + i * width;
            if (shortcut) {
                EACH(c, width) {
                    float v = LOAD(row[c]) * wide_scale[c] + wide_shift[c] + LOAD(k[c]);
                    out[c] = STORE(v < floor ? floor : v);
                }
            } else {
                EACH(c, width) {
                    float v = LOAD(row[c]) * wide_scale[c] + wide_shift[c];
                    out[c] = STORE(v < floor ? floor : v);
                }
            }
        }
    }
    released(&memory);
    return 1;
}

/* The gradient of the norm is g = dy where y > 0, or dy without ReLU. If `dshortcut` is not NULL, g is also written to
it as the gradient of `shortcut`; only then is `y` used. `dx` may be NULL. */
int NAME(backward)(const ELEMENT *dy, const ELEMENT *x, const ELEMENT *y, int64_t rows, int64_t channels,
                   const float *stats, const float *bias, int relu, int64_t threads, ELEMENT *dshortcut, ELEMENT *dx,
                   float *dweight, float *dbias) {
    Shape s = shape_of(rows, channels, threads);
    Memory memory;
    if (!allocated(&memory, s, channels)) {
        released(&memory);
        return 0;
    }
    int64_t width = s.width;
    double *parts = memory.parts, *sum = memory.sums, *products = sum + channels;
    float *turn = memory.narrow, *constant = turn + channels;
    const float *scales = stats + SCALE * channels, *means = stats + MEAN * channels;
    for (int64_t c = 0; c < channels; c++) turn[c] = bias ? bias[c] : 0;
    float *mean = tiled(means, channels, s.tile, memory.wide);
    float *scale = tiled(scales, channels, s.tile, memory.wide + width);
    float *offset = tiled(turn, channels, s.tile, memory.wide + 2 * width);
#pragma omp parallel for num_threads(s.parts) schedule(static, 1)
    for (int t = 0; t < s.parts; t++) {
        int64_t begin = s.rows * t / s.parts, end = s.rows * (t + 1) / s.parts;
        double *total = parts + 2 * width * t;
        float *block = memory.blocks + 2 * width * t, *product = block + width;
        for (int64_t r = begin; r < end; r += BLOCK) {
            memset(block, 0, 2 * width * sizeof(float));
            for (int64_t i = r; i < end && i < r + BLOCK; i++) {
                const ELEMENT *d = dy + i * width, *row = x + i * width, *out = y + i * width;
                ELEMENT *k = dshortcut + i * width;
                if (relu && dshortcut) {
                    EACH(c, width) {
                        float g = LOAD(out[c]) > 0 ? LOAD(d[c]) : 0;
                        k[c] = STORE(g);
                        block[c] += g;
                        product[c] += g * (LOAD(row[c]) - mean[c]);
                    }
                } else if (relu) {
                    EACH(c, width) {
                        float v = LOAD(row[c]) - mean[c];
                        float g = v * scale[c] + offset[c] > 0 ? LOAD(d[c]) : 0;
                        block[c] += g;
                        product[c] += g * v;
                    }
                } else {
                    EACH(c, width) {
                        float g = LOAD(d[c]);
                        block[c] += g;
                        product[c] += g * (LOAD(row[c]) - mean[c]);
                    }
                }
            }
            EACH(c, 2 * width) total[c] += block[c];
        }
    }
    gathered(parts, s, channels, sum, products);
    for (int64_t c = 0; c < channels; c++) {
        double inverse = stats[INVERSE * channels + c];
        dweight[c] = (float)(products[c] * inverse);
        dbias[c] = (float)sum[c];
        turn[c] = (float)(scales[c] * inverse * inverse * products[c] / rows);
        constant[c] = (float)(scales[c] * sum[c] / rows);
    }
    if (dx) {
        float *wide_turn = tiled(turn, channels, s.tile, memory.wide + 3 * width);
        float *wide_constant = tiled(constant, channels, s.tile, memory.wide + 4 * width);
        const ELEMENT *gradient = relu && dshortcut ? dshortcut : dy;
        int masked = relu && !dshortcut;
#pragma omp parallel for num_threads(s.parts) schedule(static, 1)
        for (int t = 0; t < s.parts; t++) {
            int64_t begin = s.rows * t / s.parts, end = s.rows * (t + 1) / s.parts;
            for (int64_t i = begin; i < end; i++) {
                const ELEMENT *d = gradient + i * width, *row = x + i * width;
                ELEMENT *out = dx + i * width;
                if (masked) {
                    EACH(c, width) {
                        float v = LOAD(row[c]) - mean[c];
                        float g = v * scale[c] + offset[c] > 0 ? LOAD(d[c]) : 0;
                        out[c] = STORE(scale[c] * g - wide_turn[c] * v - wide_constant[c]);
                    }
                } else {
                    EACH(c, width)
                    out[c] = STORE(scale[c] * LOAD(d[c]) - wide_turn[c] * (LOAD(row[c]) - mean[c]) - wide_constant[c]);
                }
            }
        }
    }
    released(&memory);
    return 1;
}

#endif

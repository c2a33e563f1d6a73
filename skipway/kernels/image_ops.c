/* Crops of images resized with antialiased bilinear resampling, equal to Pillow to the last bit, and normalization of
bytes, equal to torch to the last bit.

A crop is resampled horizontally to bytes, then vertically. An output pixel is a weighted sum of the input pixels from
`first` on, with fixed-point weights of 22 bits. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BITS 22 /* 31 bits less 8 for a byte and 1 for headroom */
#define HALF (1 << (BITS - 1))
#define CHUNK 48 /* elements per iteration, a multiple of every number of channels that Python passes */

typedef int32_t Four __attribute__((vector_size(16)));

typedef struct {
    int *first;       /* first input pixel of each output pixel */
    int32_t *weights; /* `taps` weights of each output pixel */
    double *exact;
    int taps;
} Filter;

static void aim(Filter *filter, int in, float begin, float end, int out) {
    double scale = (double)(end - begin) / out, wide = fmax(scale, 1), narrow = 1 / wide;
    filter->taps = 1;
    for (int pass = 0; pass < 2; pass++) { /* the first pass finds the largest number of taps */
        for (int i = 0; i < out; i++) {
            double center = begin + (i + 0.5) * scale, sum = 0;
            int first = (int)(center - wide + 0.5), last = (int)(center + wide + 0.5);
            first = first < 0 ? 0 : first;
            last = last > in ? in : last;
            if (!pass) {
                filter->taps = last - first > filter->taps ? last - first : filter->taps;
                continue;
            }
            for (int j = first; j < last; j++) {
                double distance = fabs((j - center + 0.5) * narrow);
                sum += filter->exact[j - first] = distance < 1 ? 1 - distance : 0;
            }
            /* All pixels have the same number of taps. Those near the end start earlier, with weights of 0. */
            int from = first + filter->taps > in ? in - filter->taps : first;
            int32_t *weights = filter->weights + i * filter->taps;
            memset(weights, 0, filter->taps * sizeof *weights);
            for (int j = first; j < last; j++) {
                double weight = sum != 0 ? filter->exact[j - first] / sum : filter->exact[j - first];
                weights[j - from] = (int32_t)(0.5 + weight * (1 << BITS));
            }
            filter->first[i] = from;
        }
    }
}

static int made(Filter *filter, int64_t in, int64_t out) {
    int64_t most = 2 * (int64_t)ceil(fmax((double)in / out, 1)) + 3;
    filter->first = malloc(out * sizeof *filter->first);
    filter->weights = malloc(out * most * sizeof *filter->weights);
    filter->exact = malloc(most * sizeof *filter->exact);
    return filter->first && filter->weights && filter->exact;
}

static void gone(Filter *filter) { free(filter->first), free(filter->weights), free(filter->exact); }

/* Resample a row of pixels, with the channels of each pixel in a vector. */
static inline void along(const Four *row, const Filter *filter, int taps, int channels, int out, int mirrored,
                         uint8_t *result) {
    for (int i = 0; i < out; i++) {
        const Four *from = row + filter->first[i];
        const int32_t *weights = filter->weights + i * taps;
        Four sum = {HALF, HALF, HALF, HALF};
        for (int j = 0; j < taps; j++) sum += from[j] * weights[j];
        sum >>= BITS;
        uint8_t *to = result + (mirrored ? out - 1 - i : i) * channels;
        for (int c = 0; c < channels; c++) to[c] = (uint8_t)sum[c];
    }
}

static void zoom(const uint8_t *image, int in, int channels, const float *box, int mirrored, int out, Filter *across,
                 Filter *down, Four *wide, uint8_t *between, int32_t *sums, uint8_t *result) {
    int width = out * channels;
    aim(across, in, box[0], box[2], out);
    aim(down, in, box[1], box[3], out);
    int top = down->first[0], bottom = down->first[out - 1] + down->taps;
    for (int y = top; y < bottom; y++) {
        const uint8_t *row = image + (int64_t)y * in * channels;
        uint8_t *to = between + (int64_t)y * width;
        for (int x = 0; x < in; x++)
            for (int c = 0; c < channels; c++) wide[x][c] = row[x * channels + c];
        if (channels == 3 && across->taps == 2) along(wide, across, 2, 3, out, mirrored, to);
        else if (channels == 3 && across->taps == 3) along(wide, across, 3, 3, out, mirrored, to);
        else along(wide, across, across->taps, channels, out, mirrored, to);
    }
    for (int y = 0; y < out; y++) {
        const uint8_t *from = between + (int64_t)down->first[y] * width;
        for (int x = 0; x < width; x++) sums[x] = HALF;
        for (int j = 0; j < down->taps; j++) {
            int32_t weight = down->weights[y * down->taps + j];
            for (int x = 0; x < width; x++) sums[x] += from[(int64_t)j * width + x] * weight;
        }
        uint8_t *to = result + (int64_t)y * width;
        for (int x = 0; x < width; x++) to[x] = (uint8_t)(sums[x] >> BITS);
    }
}

/* Crop box boxes[i] (left, top, right, bottom) from image rows[i] of `pixels` (*, in, in, channels), resize it, and flip
it if flips[i]: -> result (count, out, out, channels). Return 0 if memory allocation failed, else 1. */
int zoomed(const uint8_t *pixels, int64_t in, int64_t channels, const int64_t *rows, const float *boxes,
           const uint8_t *flips, int64_t count, int64_t out, int64_t threads, uint8_t *result) {
    int enough = 1;
#pragma omp parallel num_threads(threads)
    {
        Filter across, down;
        int whole = made(&across, in, out) & made(&down, in, out);
        Four *wide = aligned_alloc(sizeof *wide, in * sizeof *wide);
        uint8_t *between = malloc(in * out * channels);
        int32_t *sums = malloc(out * channels * sizeof *sums);
        if (!whole || !wide || !between || !sums) {
#pragma omp atomic write
            enough = 0;
        }
#pragma omp barrier /* all threads share the loop, or none */
        if (enough) {
            memset(wide, 0, in * sizeof *wide);
#pragma omp for schedule(dynamic)
            for (int64_t n = 0; n < count; n++)
                zoom(pixels + rows[n] * in * in * channels, in, channels, boxes + 4 * n, flips[n], out, &across, &down,
                     wide, between, sums, result + n * out * out * channels);
        }
        gone(&across), gone(&down), free(wide), free(between), free(sums);
    }
    return enough;
}

/* Compute bytes * factor + offset, with a factor and an offset per channel, for interleaved channels that divide CHUNK. */
void normalized(const uint8_t *bytes, int64_t count, int64_t channels, const float *factor, const float *offset,
                int64_t threads, float *result) {
    float factors[CHUNK], offsets[CHUNK];
    for (int i = 0; i < CHUNK; i++) factors[i] = factor[i % channels], offsets[i] = offset[i % channels];
    int64_t chunks = count / CHUNK;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < chunks; n++)
        for (int i = 0; i < CHUNK; i++) result[n * CHUNK + i] = bytes[n * CHUNK + i] * factors[i] + offsets[i];
    for (int64_t i = chunks * CHUNK; i < count; i++)
        result[i] = bytes[i] * factors[i % CHUNK] + offsets[i % CHUNK];
}

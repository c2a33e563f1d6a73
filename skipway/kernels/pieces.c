/* A linear layer on the pieces of numbers, whose inputs are multiplied by factors of ensemble members: forward and
backward.

    y[row] += sum over p of  gain * (piece[p] - mean[p]) * factors[member][p] * weight[:, p]

The pieces of a number are 1 below the piece that holds it and 0 above, so that their sum is an entry of a table of
cumulative sums, plus a fraction of the next one: two entries for each number instead of all its pieces. Row r has the
member r % members, and the numbers of row r / repeat. The table has an entry for each edge of the pieces: `edges` =
pieces + numbers with pieces. */

#include <stdint.h>
#include <string.h>

#define EACH(h, width) _Pragma("GCC ivdep") for (int64_t h = 0; h < (width); h++)
#define LANES 16

/* Sizes of a call. `columns` has 3 values for each of the `numbers`: its column in x, its first piece and its pieces.
Rows of `weight` and `factors` are `stride` apart and begin with the first piece. */
typedef struct {
    int64_t rows, repeat, x_stride, numbers, pieces, width, stride, members;
} Sizes;

/* Copy `from` (rows, columns) to `to` (columns, rows), in blocks whose cache lines stay in the first cache. Rows of an
array are `stride` apart. */
static void transpose(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float *to,
                      int64_t to_stride) {
    for (int64_t first = 0; first < columns; first += LANES) {
        int64_t end = first + LANES < columns ? first + LANES : columns;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t c = first; c < end; c++) to[c * to_stride + row] = from[row * from_stride + c];
    }
}

/* Return the last of the ascending `lower` edges up to a value, or the first. Without branches, which a processor would
predict wrongly half of the time. */
static int64_t place_of(float value, const float *lower, int64_t count) {
    int64_t first = 0;
    while (count > 1) {
        int64_t half = count / 2;
        first += lower[first + half] <= value ? half : 0;
        count -= half;
    }
    return first;
}

/* Compute the table (members, edges, width) of cumulative sums; `by_piece` has space for (pieces, width). */
static void fill(const int64_t *columns, const float *mean, float gain, const float *weight, const float *factors,
                 const Sizes *s, float *by_piece, float *table) {
    int64_t width = s->width;
    transpose(weight, s->stride, width, s->pieces, by_piece, width);
    for (int64_t m = 0; m < s->members; m++)
        for (int64_t j = 0; j < s->numbers; j++) {
            int64_t first = columns[3 * j + 1], count = columns[3 * j + 2];
            float *entry = table;
            memset(entry, 0, sizeof(float) * width);
            for (int64_t p = first; p < first + count; p++) {
                const float *w = by_piece + p * width;
                float factor = gain * factors[m * s->stride + p], center = factor * mean[p];
                EACH(h, width) entry[h] -= center * w[h];
            }
            for (int64_t p = first; p < first + count; p++, table += width) {
                const float *w = by_piece + p * width, *from = table;
                float factor = gain * factors[m * s->stride + p], *to = table + width;
                EACH(h, width) to[h] = from[h] + factor * w[h];
            }
            table += width;
        }
}

/* Add the outputs to y (rows, width); store the entry and the fraction of each row and number for the backward pass. */
void pieces_forward(const float *x, const int64_t *columns, const float *lower, const float *slope, const float *mean,
                    double gain, const float *weight, const float *factors, const int64_t *sizes, float *by_piece,
                    float *table, int64_t *places, float *fractions, float *y) {
    Sizes s;
    memcpy(&s, sizes, sizeof s);
    int64_t edges = s.pieces + s.numbers;
    fill(columns, mean, (float)gain, weight, factors, &s, by_piece, table);
    for (int64_t row = 0; row < s.rows; row++, y += s.width) {
        int64_t origin = row % s.members * edges;
        for (int64_t j = 0; j < s.numbers; j++) {
            float value = x[row / s.repeat * s.x_stride + columns[3 * j]];
            int64_t first = columns[3 * j + 1], piece = first + place_of(value, lower + first, columns[3 * j + 2]);
            float fraction = (value - lower[piece]) * slope[piece];
            fraction = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction; /* NaN stays NaN */
            int64_t place = origin + piece + j;
            const float *a = table + place * s.width, *b = a + s.width;
            EACH(h, s.width) y[h] += a[h] + fraction * (b[h] - a[h]);
            places[row * s.numbers + j] = place, fractions[row * s.numbers + j] = fraction;
        }
    }
}

static float sum_of(const float *values, int64_t count) { /* in LANES parts, which run at once */
    float parts[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) parts[lane] += values[i + lane];
    for (int lane = 0; lane < LANES; lane++) sum += parts[lane];
    for (; i < count; i++) sum += values[i];
    return sum;
}

/* Compute the gradients of weight and factors, at their places in arrays of the same strides. `by_piece` holds the
weights of the forward pass; `sums` has space for (pieces + 3, width), and `table` is overwritten. */
void pieces_backward(const float *dy, const int64_t *columns, const float *mean, double gain, const float *factors,
                     const int64_t *sizes, const int64_t *places, const float *fractions, const float *by_piece,
                     float *table, float *sums, float *dweight, float *dfactors) {
    Sizes s;
    memcpy(&s, sizes, sizeof s);
    int64_t width = s.width, edges = s.pieces + s.numbers;
    memset(table, 0, sizeof(float) * s.members * edges * width);
    memset(sums, 0, sizeof(float) * s.pieces * width);
    for (int64_t i = 0; i < s.rows * s.numbers; i++) {
        const float *g = dy + i / s.numbers * width;
        float fraction = fractions[i], *a = table + places[i] * width, *b = a + width;
        EACH(h, width) {
            float part = fraction * g[h];
            a[h] += g[h] - part;
            b[h] += part;
        }
    }
    float *total = sums + s.pieces * width, *above = total + width, *product = above + width;
    for (int64_t m = 0; m < s.members; m++)
        for (int64_t j = 0; j < s.numbers; j++) {
            int64_t first = columns[3 * j + 1], count = columns[3 * j + 2];
            const float *entry = table + (m * edges + first + j) * width;
            memset(total, 0, sizeof(float) * 2 * width);
            for (int64_t e = 0; e <= count; e++) EACH(h, width) total[h] += entry[e * width + h];
            for (int64_t p = first + count - 1; p >= first; p--) {
                const float *w = by_piece + p * width, *next = entry + (p - first + 1) * width;
                float factor = (float)gain * factors[m * s.stride + p], center = mean[p], *sum = sums + p * width;
                EACH(h, width) {
                    above[h] += next[h];
                    product[h] = above[h] - center * total[h];
                    sum[h] += factor * product[h];
                    product[h] *= w[h];
                }
                dfactors[m * s.stride + p] = (float)gain * sum_of(product, width);
            }
        }
    transpose(sums, width, s.pieces, width, dweight, s.stride);
}

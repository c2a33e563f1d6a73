/* Feed-forward networks in training: the first layer of a network for tables, and residual blocks.

Matrices are multiplied in tiles that stay in registers, and rows are processed in blocks that stay in the first caches.
The layers are so small that calls of a library would take as long as their products. */

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("tune=generic") /* for Zen processors, GCC avoids fused multiplications and additions */
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define VECTORS 4
#elif defined(__AVX__)
#define LANES 8
#define VECTORS 2
#else
#define LANES 4
#define VECTORS 4
#endif
#define HEIGHT 4
#define BLOCK 64
#define PARTS 16
#define EACH(i, count) _Pragma("GCC ivdep") for (int64_t i = 0; i < (count); i++)

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* A matrix: element (i, j) is at data[i * row + j * column]. */
typedef struct {
    const float *data;
    int64_t row, column;
} Matrix;

/* Compute `height` rows and `vectors` vectors of c += a b, for constants `height` and `vectors`. */
static inline __attribute__((always_inline)) void tile(int height, int vectors, int64_t depth, Matrix a, const float *b,
                                                       int64_t b_row, float *c, int64_t c_row) {
    Vector sums[HEIGHT][VECTORS];
    for (int i = 0; i < height; i++)
        for (int v = 0; v < vectors; v++) sums[i][v] = *(const Vector *)(c + i * c_row + v * LANES);
    for (int64_t k = 0; k < depth; k++, b += b_row)
        for (int i = 0; i < height; i++) {
            float factor = a.data[i * a.row + k * a.column];
            for (int v = 0; v < vectors; v++) sums[i][v] += factor * *(const Vector *)(b + v * LANES);
        }
    for (int i = 0; i < height; i++)
        for (int v = 0; v < vectors; v++) *(Vector *)(c + i * c_row + v * LANES) = sums[i][v];
}

/* Compute c (rows, columns) += a (rows, depth) b (depth, columns); rows of b and of c have no gaps. Columns after the
last multiple of LANES take much longer. */
static void add_product(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float *b, float *c) {
    int64_t j = 0;
    while (j + LANES <= columns) {
        int is_wide = j + VECTORS * LANES <= columns;
        for (int64_t i = 0; i < rows;) {
            int is_high = i + HEIGHT <= rows;
            Matrix part = {a.data + i * a.row, a.row, a.column};
            float *to = c + i * columns + j;
            if (is_high && is_wide)
                tile(HEIGHT, VECTORS, depth, part, b + j, columns, to, columns);
            else if (is_high)
                tile(HEIGHT, 1, depth, part, b + j, columns, to, columns);
            else if (is_wide)
                tile(1, VECTORS, depth, part, b + j, columns, to, columns);
            else
                tile(1, 1, depth, part, b + j, columns, to, columns);
            i += is_high ? HEIGHT : 1;
        }
        j += is_wide ? VECTORS * LANES : LANES;
    }
    for (; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) {
            float sum = 0;
            for (int64_t k = 0; k < depth; k++) sum += a.data[i * a.row + k * a.column] * b[k * columns + j];
            c[i * columns + j] += sum;
        }
}

/* Copy `from` (rows, columns) to `to` (columns, rows), in blocks whose cache lines stay in the first cache. Rows of an
array are `stride` apart. */
static void transpose(const float *from, int64_t from_stride, int64_t rows, int64_t columns, float *to,
                      int64_t to_stride) {
    for (int64_t first = 0; first < columns; first += PARTS) {
        int64_t end = first + PARTS < columns ? first + PARTS : columns;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t c = first; c < end; c++) to[c * to_stride + row] = from[row * from_stride + c];
    }
}

static float sum_of(const float *values, int64_t count) { /* in PARTS parts, which run at once */
    float parts[PARTS] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + PARTS <= count; i += PARTS)
        for (int lane = 0; lane < PARTS; lane++) parts[lane] += values[i + lane];
    for (int lane = 0; lane < PARTS; lane++) sum += parts[lane];
    for (; i < count; i++) sum += values[i];
    return sum;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first layer of a network for tables: y (rows, width) = bias + the sum over all inputs i of

    factors[member][i] * input[i] * weight[:, i]

The inputs are the numbers, the pieces gain * (piece - mean) of numbers, and the embeddings of categories. Row r has the
member r % members, and row r / repeat of x, which holds the numbers and the indices of the categories.

The pieces of a number are 1 below the piece that holds it and 0 above, so that their sum is an entry of a table of
cumulative sums, plus a fraction of the next one: two entries for each number instead of all its pieces. The table has
an entry for each edge of the pieces: `edges` = pieces + stepped. */

/* Sizes of a call: `numbers` of a row, of which `stepped` have pieces; `categories` of a row, whose embeddings are
`embedded` inputs. `columns` has 3 values for each number with pieces: its column in x, its first piece and its pieces.
`slots` has 2 for each category: its indices, and the size of an embedding. */
typedef struct {
    int64_t rows, repeat, x_stride, numbers, stepped, pieces, categories, embedded, width, members;
} Sizes;

static int64_t inputs_of(const Sizes *s) { return s->numbers + s->pieces + s->embedded; }

/* Inputs without pieces, with space up to a multiple of PARTS. */
static int64_t padded(const Sizes *s) { return (s->numbers + s->embedded + PARTS - 1) / PARTS * PARTS; }

/* An index that is not in the table is that of an unseen category, 0. */
static int64_t slot_of(float value, int64_t count) { return value >= 0 && value < (float)count ? (int64_t)value : 0; }

/* Copy the inputs without pieces of a row. */
static void gather(const float *x, const int64_t *slots, float *const *embeddings, const Sizes *s, float *raw) {
    memcpy(raw, x, sizeof(float) * s->numbers);
    raw += s->numbers;
    for (int64_t k = 0; k < s->categories; k++) {
        int64_t size = slots[2 * k + 1];
        const float *entry = embeddings[k] + slot_of(x[s->numbers + k], slots[2 * k]) * size;
        for (int64_t e = 0; e < size; e++) raw[e] = entry[e];
        raw += size;
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
    transpose(weight + s->numbers, inputs_of(s), width, s->pieces, by_piece, width);
    for (int64_t m = 0; m < s->members; m++)
        for (int64_t j = 0; j < s->stepped; j++) {
            int64_t first = columns[3 * j + 1], count = columns[3 * j + 2];
            const float *own = factors + m * inputs_of(s) + s->numbers;
            float *entry = table;
            memset(entry, 0, sizeof(float) * width);
            for (int64_t p = first; p < first + count; p++) {
                const float *w = by_piece + p * width;
                float factor = gain * own[p], center = factor * mean[p];
                EACH(h, width) entry[h] -= center * w[h];
            }
            for (int64_t p = first; p < first + count; p++, table += width) {
                const float *w = by_piece + p * width, *from = table;
                float factor = gain * own[p], *to = table + width;
                EACH(h, width) to[h] = from[h] + factor * w[h];
            }
            table += width;
        }
}

/* Stored for the backward pass: `by_piece` (pieces, width), `places` and `fractions` (rows, stepped), `inputs` (rows,
padded). `table` has space for (members, edges, width), `work` for (padded, width). */
void first_layer_forward(const float *x, const int64_t *columns, const float *lower, const float *slope,
                         const float *mean, double gain, const int64_t *slots, float *const *embeddings,
                         const float *weight, const float *bias, const float *factors, const int64_t *sizes,
                         float *by_piece, float *table, int64_t *places, float *fractions, float *inputs, float *work,
                         float *y) {
    Sizes s;
    memcpy(&s, sizes, sizeof s);
    int64_t edges = s.pieces + s.stepped, all = inputs_of(&s), wide = padded(&s), others = s.numbers + s.embedded;
    const float *last = weight + s.numbers + s.pieces;
    fill(columns, mean, (float)gain, weight, factors, &s, by_piece, table);
    transpose(weight, all, s.width, s.numbers, work, s.width);
    transpose(last, all, s.width, s.embedded, work + s.numbers * s.width, s.width);
    for (int64_t row = 0; row < s.rows; row++) {
        const float *own = factors + row % s.members * all, *own_last = own + s.pieces;
        float *in = inputs + row * wide;
        gather(x + row / s.repeat * s.x_stride, slots, embeddings, &s, in);
        EACH(i, s.numbers) in[i] *= own[i];
        EACH(i, s.embedded) in[s.numbers + i] *= own_last[s.numbers + i];
        memset(in + others, 0, sizeof(float) * (wide - others));
        memcpy(y + row * s.width, bias, sizeof(float) * s.width);
    }
    add_product(s.rows, s.width, others, (Matrix){inputs, wide, 1}, work, y);
    for (int64_t row = 0; row < s.rows; row++, y += s.width) {
        int64_t origin = row % s.members * edges;
        for (int64_t j = 0; j < s.stepped; j++) {
            float value = x[row / s.repeat * s.x_stride + columns[3 * j]];
            int64_t first = columns[3 * j + 1], piece = first + place_of(value, lower + first, columns[3 * j + 2]);
            float fraction = (value - lower[piece]) * slope[piece];
            fraction = fraction < 0 ? 0 : fraction > 1 ? 1 : fraction; /* NaN stays NaN */
            int64_t place = origin + piece + j;
            const float *a = table + place * s.width, *b = a + s.width;
            EACH(h, s.width) y[h] += a[h] + fraction * (b[h] - a[h]);
            places[row * s.stepped + j] = place, fractions[row * s.stepped + j] = fraction;
        }
    }
}

/* Compute the gradients of weight and factors that belong to pieces. `sums` has space for (pieces + 3, width). */
static void pieces_backward(const float *dy, const int64_t *columns, const float *mean, float gain,
                            const float *factors, const Sizes *s, const int64_t *places, const float *fractions,
                            const float *by_piece, float *table, float *sums, float *dweight, float *dfactors) {
    int64_t width = s->width, edges = s->pieces + s->stepped, all = inputs_of(s);
    memset(table, 0, sizeof(float) * s->members * edges * width);
    memset(sums, 0, sizeof(float) * s->pieces * width);
    for (int64_t i = 0; i < s->rows * s->stepped; i++) {
        const float *g = dy + i / s->stepped * width;
        float fraction = fractions[i], *a = table + places[i] * width, *b = a + width;
        EACH(h, width) {
            float part = fraction * g[h];
            a[h] += g[h] - part;
            b[h] += part;
        }
    }
    float *total = sums + s->pieces * width, *above = total + width, *product = above + width;
    for (int64_t m = 0; m < s->members; m++)
        for (int64_t j = 0; j < s->stepped; j++) {
            int64_t first = columns[3 * j + 1], count = columns[3 * j + 2], own = m * all + s->numbers;
            const float *entry = table + (m * edges + first + j) * width;
            memset(total, 0, sizeof(float) * 2 * width);
            for (int64_t e = 0; e <= count; e++) EACH(h, width) total[h] += entry[e * width + h];
            for (int64_t p = first + count - 1; p >= first; p--) {
                const float *w = by_piece + p * width, *next = entry + (p - first + 1) * width;
                float factor = gain * factors[own + p], center = mean[p], *sum = sums + p * width;
                EACH(h, width) {
                    above[h] += next[h];
                    product[h] = above[h] - center * total[h];
                    sum[h] += factor * product[h];
                    product[h] *= w[h];
                }
                dfactors[own + p] = gain * sum_of(product, width);
            }
        }
    transpose(sums, width, s->pieces, width, dweight + s->numbers, all);
}

/* Compute the gradients of weight, factors and embeddings that belong to the other inputs. `work` has space for
(2 padded, width), and (BLOCK + 1, padded). */
static void others_backward(const float *dy, const float *x, const int64_t *slots, float *const *embeddings,
                            const float *weight, const float *factors, const Sizes *s, const float *inputs, float *work,
                            float *dweight, float *dfactors, float *const *dembeddings) {
    int64_t width = s->width, all = inputs_of(s), wide = padded(s), others = s->numbers + s->embedded;
    float *of_weight = work, *own_weight = of_weight + wide * width, *part = own_weight + wide * width;
    float *raw = part + BLOCK * wide;
    memset(work, 0, sizeof(float) * 2 * wide * width);
    for (int64_t k = 0; k < s->categories; k++)
        memset(dembeddings[k], 0, sizeof(float) * slots[2 * k] * slots[2 * k + 1]);
    for (int64_t m = 0; m < s->members; m++) {
        memset(dfactors + m * all, 0, sizeof(float) * s->numbers);
        memset(dfactors + m * all + s->numbers + s->pieces, 0, sizeof(float) * s->embedded);
    }
    for (int64_t h = 0; h < width; h++) {
        memcpy(own_weight + h * wide, weight + h * all, sizeof(float) * s->numbers);
        memcpy(own_weight + h * wide + s->numbers, weight + h * all + s->numbers + s->pieces,
               sizeof(float) * s->embedded);
    }
    for (int64_t from = 0; from < s->rows; from += BLOCK) {
        int64_t count = least(BLOCK, s->rows - from);
        add_product(others, width, count, (Matrix){inputs + from * wide, 1, wide}, dy + from * width, of_weight);
        memset(part, 0, sizeof(float) * count * wide);
        add_product(count, wide, width, (Matrix){dy + from * width, width, 1}, own_weight, part);
        for (int64_t i = 0; i < count; i++) {
            const float *row = x + (from + i) / s->repeat * s->x_stride, *d = part + i * wide, *value = raw;
            int64_t member = (from + i) % s->members * all;
            const float *factor = factors + member + s->numbers + s->pieces;
            float *dfactor = dfactors + member;
            gather(row, slots, embeddings, s, raw);
            EACH(j, s->numbers) dfactor[j] += d[j] * value[j];
            dfactor += s->numbers + s->pieces, d += s->numbers, value += s->numbers;
            EACH(e, s->embedded) dfactor[e] += d[e] * value[e];
            for (int64_t k = 0; k < s->categories; k++) {
                int64_t size = slots[2 * k + 1];
                float *entry = dembeddings[k] + slot_of(row[s->numbers + k], slots[2 * k]) * size;
                for (int64_t e = 0; e < size; e++) entry[e] += d[e] * factor[e];
                d += size, factor += size;
            }
        }
    }
    transpose(of_weight, width, s->numbers, width, dweight, all);
    transpose(of_weight + s->numbers * width, width, s->embedded, width, dweight + s->numbers + s->pieces, all);
}

/* All gradients are overwritten, and so is `table`. */
void first_layer_backward(const float *dy, const float *x, const int64_t *columns, const float *mean, double gain,
                          const int64_t *slots, float *const *embeddings, const float *weight, const float *factors,
                          const int64_t *sizes, const float *by_piece, float *table, const int64_t *places,
                          const float *fractions, const float *inputs, float *sums, float *work, float *dweight,
                          float *dbias, float *dfactors, float *const *dembeddings) {
    Sizes s;
    memcpy(&s, sizes, sizeof s);
    pieces_backward(dy, columns, mean, (float)gain, factors, &s, places, fractions, by_piece, table, sums, dweight,
                    dfactors);
    others_backward(dy, x, slots, embeddings, weight, factors, &s, inputs, work, dweight, dfactors, dembeddings);
    memset(dbias, 0, sizeof(float) * s.width);
    for (int64_t row = 0; row < s.rows; row++) EACH(h, s.width) dbias[h] += dy[row * s.width + h];
}

/* Set mean, and 1 / sqrt(variance + eps); update the running statistics of the norm. */
static void measure(const float *x, int64_t rows, int64_t width, double eps, double momentum, float *mean, float *scale,
                    float *running_mean, float *running_variance) {
    memset(mean, 0, sizeof(float) * width);
    memset(scale, 0, sizeof(float) * width);
    for (int64_t row = 0; row < rows; row++) EACH(j, width) mean[j] += x[row * width + j];
    EACH(j, width) mean[j] /= (float)rows;
    for (int64_t row = 0; row < rows; row++) EACH(j, width) {
            float difference = x[row * width + j] - mean[j];
            scale[j] += difference * difference;
        }
    float share = (float)momentum;
    for (int64_t j = 0; j < width; j++) {
        running_mean[j] = (1 - share) * running_mean[j] + share * mean[j];
        running_variance[j] = (1 - share) * running_variance[j] + share * scale[j] / (float)(rows - 1);
        scale[j] = (float)(1 / sqrt(scale[j] / (double)rows + eps));
    }
}

/* A residual block: y = x + linear2(dropout(relu(linear1(batch_norm(x))))).

Shapes: x and y (rows, width), hidden activations (rows, hidden), weights as in torch (outputs, inputs). Both widths are
multiples of LANES. `sizes`: rows, width, hidden. `levels` are random numbers for dropout: activations with those below
`lowest` are dropped, others multiplied by `kept`; NULL for no dropout. `transposed` has space for both weights. Stored
for the backward pass: `stats` (2, width), `normed` (rows, width), `activations` (rows, hidden). */
void block_forward(const float *x, const float *gamma, const float *beta, const float *weight1, const float *bias1,
                   const float *weight2, const float *bias2, const int64_t *sizes, double eps, double momentum,
                   float *running_mean, float *running_variance, const int16_t *levels, int64_t lowest, double kept,
                   float *transposed, float *stats, float *normed, float *activations, float *y) {
    int64_t rows = sizes[0], width = sizes[1], hidden = sizes[2];
    float *mean = stats, *scale = stats + width, *first = transposed, *second = transposed + width * hidden;
    measure(x, rows, width, eps, momentum, mean, scale, running_mean, running_variance);
    transpose(weight1, width, hidden, width, first, hidden);
    transpose(weight2, hidden, width, hidden, second, width);
    for (int64_t from = 0; from < rows; from += BLOCK) {
        int64_t count = least(BLOCK, rows - from);
        const float *in = x + from * width;
        float *norm = normed + from * width, *active = activations + from * hidden, *out = y + from * width;
        for (int64_t row = 0; row < count; row++) {
            EACH(j, width) {
                int64_t at = row * width + j;
                norm[at] = (in[at] - mean[j]) * scale[j] * gamma[j] + beta[j];
                out[at] = bias2[j];
            }
            memcpy(active + row * hidden, bias1, sizeof(float) * hidden);
        }
        add_product(count, hidden, width, (Matrix){norm, width, 1}, first, active);
        EACH(i, count * hidden) active[i] = active[i] < 0 ? 0 : active[i]; /* NaN stays NaN */
        if (levels) {
            const int16_t *drawn = levels + from * hidden;
            EACH(i, count * hidden) active[i] *= drawn[i] < lowest ? 0 : (float)kept;
        }
        add_product(count, width, hidden, (Matrix){active, hidden, 1}, second, out);
        EACH(i, count * width) out[i] += in[i];
    }
}

/* `kept` is that of the forward pass, 1 without dropout; `dhidden` has space for (BLOCK, hidden). All gradients are
overwritten. */
void block_backward(const float *dy, const float *x, const float *gamma, const float *weight1, const float *weight2,
                    const int64_t *sizes, double kept, const float *stats, const float *normed,
                    const float *activations, float *dhidden, float *dx, float *dgamma, float *dbeta, float *dweight1,
                    float *dbias1, float *dweight2, float *dbias2) {
    int64_t rows = sizes[0], width = sizes[1], hidden = sizes[2];
    const float *mean = stats, *scale = stats + width;
    memset(dx, 0, sizeof(float) * rows * width);
    memset(dweight1, 0, sizeof(float) * hidden * width);
    memset(dweight2, 0, sizeof(float) * hidden * width);
    memset(dbias1, 0, sizeof(float) * hidden);
    memset(dbias2, 0, sizeof(float) * width);
    memset(dgamma, 0, sizeof(float) * width);
    memset(dbeta, 0, sizeof(float) * width);
    for (int64_t from = 0; from < rows; from += BLOCK) {
        int64_t count = least(BLOCK, rows - from);
        const float *in = x + from * width, *norm = normed + from * width, *active = activations + from * hidden;
        const float *dout = dy + from * width;
        float *dnorm = dx + from * width;
        memset(dhidden, 0, sizeof(float) * count * hidden);
        add_product(count, hidden, width, (Matrix){dout, width, 1}, weight2, dhidden);
        EACH(i, count * hidden) dhidden[i] = active[i] <= 0 ? 0 : dhidden[i] * (float)kept;
        add_product(width, hidden, count, (Matrix){dout, 1, width}, active, dweight2);
        add_product(hidden, width, count, (Matrix){dhidden, 1, hidden}, norm, dweight1);
        add_product(count, width, hidden, (Matrix){dhidden, hidden, 1}, weight1, dnorm);
        for (int64_t row = 0; row < count; row++) {
            EACH(j, hidden) dbias1[j] += dhidden[row * hidden + j];
            EACH(j, width) {
                int64_t at = row * width + j;
                dbias2[j] += dout[at];
                dbeta[j] += dnorm[at];
                dgamma[j] += dnorm[at] * (in[at] - mean[j]) * scale[j];
            }
        }
    }
    for (int64_t row = 0; row < rows; row++) EACH(j, width) {
            int64_t at = row * width + j;
            float normal = (x[at] - mean[j]) * scale[j], share = 1 / (float)rows;
            dx[at] = dy[at] + gamma[j] * scale[j] * (dx[at] - share * dbeta[j] - share * dgamma[j] * normal);
        }
}

/* What changed values of an int8 network become in its next layer, for many pairs (a fault, an image) at once.
   A change is a position (flat, in the order channel, row, column) and its new value. All sums wrap at 32 bits. */
#include <stdint.h>
#include <string.h>

#define LANES 16
typedef uint32_t Sums __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int32_t channels, height, width, kernel_height, kernel_width, stride, padding, outputs, lanes, out_height, out_width;
    int32_t channels_last;      /* how positions count: channels fastest, or columns */
    int32_t zero_point, output_zero_point, relu;
    const int32_t *weight;      /* [channels, kernel_height, kernel_width, lanes] */
    const int64_t *multiplier;  /* [lanes] */
    const int64_t *bits;        /* [lanes] how far the product is shifted to the right */
    const int64_t *half;        /* [lanes] 2 ** (bits - 1) */
} Layer;

static int place_of(const Layer *l, int position) {
    return l->channels_last ? position / l->channels : position % (l->height * l->width);
}

static int channel_of(const Layer *l, int position) {
    return l->channels_last ? position % l->channels : position / (l->height * l->width);
}

/* Elements (image, row, column) of A @ B, modulo 2 ** 32. A is [images, rows, depth]; B, transposed, is [images,
   columns, depth], or [columns, depth] for all images. */
void products(const int8_t *a, const int8_t *b, int64_t rows, int64_t columns, int64_t depth, int64_t b_images,
              int64_t count, const int64_t *image, const int64_t *row, const int64_t *column, int64_t *product) {
    for (int64_t e = 0; e < count; e++) {
        const int8_t *x = a + (image[e] * rows + row[e]) * depth;
        const int8_t *y = b + ((b_images > 1 ? image[e] * columns : 0) + column[e]) * depth;
        uint32_t sum = 0;
        for (int64_t k = 0; k < depth; k++) sum += (uint32_t)(x[k] * y[k]);
        product[e] = (int32_t)sum;
    }
}

/* A difference in one channel at some place of the input plane. */
typedef struct {
    int32_t channel;
    uint32_t difference;
} Change;

/* Adds what n differences at one place of the input do to the sums of the output positions in their reach, which are
   marked and listed: reached[0] .. reached[count - 1], of which `count` are there before. Gives back how many. */
static int reach(const Layer *l, int place, const Change *changes, int n, uint32_t *sums, int32_t *mark,
                 int32_t marked, int32_t *reached, int count) {
    const int taps = l->kernel_height * l->kernel_width;
    const int y = place / l->width + l->padding, x = place % l->width + l->padding;
    for (int ky = 0; ky < l->kernel_height; ky++) {
        const int dy = y - ky;
        if (dy < 0 || dy % l->stride || dy / l->stride >= l->out_height) continue;
        for (int kx = 0; kx < l->kernel_width; kx++) {
            const int dx = x - kx;
            if (dx < 0 || dx % l->stride || dx / l->stride >= l->out_width) continue;
            const int to = dy / l->stride * l->out_width + dx / l->stride;
            uint32_t *row = sums + (int64_t)to * l->lanes;
            if (mark[to] != marked) {
                mark[to] = marked;
                reached[count++] = to;
                memset(row, 0, 4 * l->lanes);
            }
            const uint32_t *weight = (const uint32_t *)l->weight + (int64_t)(ky * l->kernel_width + kx) * l->lanes;
            for (int o = 0; o < l->lanes; o += LANES) {
                Sums sum = *(Sums *)(row + o);
                for (int i = 0; i < n; i++) {
                    const uint32_t *w = weight + o + (int64_t)changes[i].channel * taps * l->lanes;
                    sum += *(const Sums *)w * changes[i].difference;
                }
                *(Sums *)(row + o) = sum;
            }
        }
    }
    return count;
}

static void requantize(const Layer *l, const uint32_t *restrict before, const uint32_t *restrict sums,
                       int8_t *restrict value) {
    const int64_t zero = l->output_zero_point, low = l->relu ? zero : -128;
    for (int o = 0; o < l->lanes; o += LANES) {
        const int64_t *restrict multiplier = l->multiplier + o, *restrict bits = l->bits + o, *restrict half = l->half + o;
        for (int i = 0; i < LANES; i++) {
            const int64_t product = (int32_t)(before[o + i] + sums[o + i]) * multiplier[i];
            int64_t y = zero + ((product + half[i] + (product >> 63)) >> bits[i]);
            y = y < low ? low : y;
            value[o + i] = (int8_t)(y > 127 ? 127 : y);
        }
    }
}

/* Fault-free accumulators [positions, lanes], which must hold the biases, and results of one input. */
void fault_free(const Layer *l, const int8_t *input, uint32_t *accumulators, int8_t *results, int32_t *mark) {
    const int plane = l->height * l->width, positions = l->out_height * l->out_width;
    Change changes[l->channels];
    uint32_t nothing[l->lanes];
    memset(nothing, 0, sizeof nothing);
    for (int p = 0; p < positions; p++) mark[p] = 0;
    for (int place = 0; place < plane; place++) {
        for (int c = 0; c < l->channels; c++) {
            const int8_t word = input[l->channels_last ? place * l->channels + c : c * plane + place];
            changes[c] = (Change){c, (uint32_t)(word - l->zero_point)};
        }
        reach(l, place, changes, l->channels, accumulators, mark, 0, 0, 0);
    }
    for (int p = 0; p < positions; p++)
        requantize(l, accumulators + (int64_t)p * l->lanes, nothing, results + (int64_t)p * l->lanes);
}

/* Changes of the outputs from changes of the inputs. Pair p has the changes first[p] .. first[p + 1] - 1.
   `golden` is [images, positions, lanes], requantised `accumulators`. `mark` must hold no number of a pair.
   Begins with pair `begin` and ends before a pair that might not fit into `capacity`; gives back that pair. */
int64_t layer_changes(const Layer *l, int64_t begin, int64_t pairs, const int64_t *image, const int64_t *first,
                      const int32_t *position, const int8_t *value, const int8_t *inputs, const uint32_t *accumulators,
                      const int8_t *golden, uint32_t *sums, int32_t *mark, int32_t *reached, int64_t *out_first,
                      int32_t *out_position, int8_t *out_value, int64_t capacity) {
    const int elements = l->channels * l->height * l->width, positions = l->out_height * l->out_width;
    int64_t out = 0, pair = begin;
    int8_t after[l->lanes];
    Change changes[l->channels];
    for (; pair < pairs && out + (int64_t)positions * l->outputs <= capacity; pair++) {
        const int8_t *before = inputs + image[pair] * elements;
        int count = 0;
        for (int64_t e = first[pair]; e < first[pair + 1];) {
            const int place = place_of(l, position[e]);
            int n = 0;
            do {
                const uint32_t difference = (uint32_t)(value[e] - before[position[e]]);
                changes[n++] = (Change){channel_of(l, position[e]), difference};
            } while (++e < first[pair + 1] && n < l->channels && place_of(l, position[e]) == place);
            count = reach(l, place, changes, n, sums, mark, (int32_t)pair, reached, count);
        }
        for (int r = 0; r < count; r++) {
            const int64_t at = reached[r], row = (image[pair] * positions + at) * l->lanes;
            requantize(l, accumulators + row, sums + at * l->lanes, after);
            for (int o = 0; o < l->outputs; o++) { /* without branches: which outputs change cannot be foreseen */
                out_position[out] = l->channels_last ? (int32_t)at * l->outputs + o : o * positions + (int32_t)at;
                out_value[out] = after[o];
                out += after[o] != golden[row + o];
            }
        }
        out_first[pair + 1] = out;
    }
    return pair;
}

/* Changes of table[a][b], element by element, from changes of a and of b. Inputs and outputs are [images, elements].
   `mark` [elements] must be 0, `scratch` is [elements]. The output must have room for all changes of a and b. */
void element_changes(const int8_t *table, int64_t elements, int64_t pairs, const int64_t *image, const int64_t *first_a,
                     const int32_t *position_a, const int8_t *value_a, const int64_t *first_b,
                     const int32_t *position_b, const int8_t *value_b, const int8_t *golden_a, const int8_t *golden_b,
                     const int8_t *golden, uint8_t *mark, int8_t *scratch, int64_t *out_first, int32_t *out_position,
                     int8_t *out_value) {
    int64_t out = 0;
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int64_t start = image[pair] * elements;
        for (int64_t e = first_b[pair]; e < first_b[pair + 1]; e++) {
            mark[position_b[e]] = 1;
            scratch[position_b[e]] = value_b[e];
        }
        for (int64_t e = first_a[pair]; e < first_a[pair + 1]; e++) {
            const int32_t at = position_a[e];
            const int8_t b = mark[at] ? scratch[at] : golden_b[start + at];
            const int8_t y = table[(value_a[e] + 128) * 256 + b + 128];
            mark[at] = 0;
            out_position[out] = at;
            out_value[out] = y;
            out += y != golden[start + at];
        }
        for (int64_t e = first_b[pair]; e < first_b[pair + 1]; e++) {
            const int32_t at = position_b[e];
            if (!mark[at]) continue;
            const int8_t y = table[(golden_a[start + at] + 128) * 256 + value_b[e] + 128];
            mark[at] = 0;
            out_position[out] = at;
            out_value[out] = y;
            out += y != golden[start + at];
        }
        out_first[pair + 1] = out;
    }
}

/* Changes of a with those of b in the place of what b says; b may restore golden values, which are left out.
   `mark` [elements] must be 0. */
void override_changes(int64_t elements, int64_t pairs, const int64_t *image, const int64_t *first_a,
                      const int32_t *position_a, const int8_t *value_a, const int64_t *first_b,
                      const int32_t *position_b, const int8_t *value_b, const int8_t *golden, uint8_t *mark,
                      int64_t *out_first, int32_t *out_position, int8_t *out_value) {
    int64_t out = 0;
    for (int64_t pair = 0; pair < pairs; pair++) {
        const int8_t *before = golden + image[pair] * elements;
        for (int64_t e = first_b[pair]; e < first_b[pair + 1]; e++) {
            mark[position_b[e]] = 1;
            if (value_b[e] != before[position_b[e]]) {
                out_position[out] = position_b[e];
                out_value[out++] = value_b[e];
            }
        }
        for (int64_t e = first_a[pair]; e < first_a[pair + 1]; e++)
            if (!mark[position_a[e]]) {
                out_position[out] = position_a[e];
                out_value[out++] = value_a[e];
            }
        for (int64_t e = first_b[pair]; e < first_b[pair + 1]; e++) mark[position_b[e]] = 0;
        out_first[pair + 1] = out;
    }
}

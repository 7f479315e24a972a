/* A matrix's codes are whole numbers. With an input of whole numbers too, a group's products are added up exactly, in one
   instruction for two columns, and scaled once: half the instructions of floats, and no conversion of codes. 16 bits of
   an input are 128 times as fine as bfloat16, far finer than what the codes themselves stand for. Since whole numbers
   are added without rounding and groups in one order, a row's result does not depend on the rows beside it. */

#include "codes.h"
#include "output.h"
#include "pool.h"

#include <math.h>

enum {
    TILE = LANES == 16 ? 6 : 2, /* rows at a time whose sums fit the registers */
    LARGEST = 32767,
};

/* --- rounding ------------------------------------------------------------------------------------------------------- */

typedef struct {
    const float *x;
    int64_t x_row;
    Rounded *to;
} Rounding;

static void round_rows(void *item, int64_t first, int64_t last) {
    const Rounding *job = item;
    const Rounded *to = job->to;
    int group = to->group;
    for (int64_t row = first; row < last; row++) {
        for (int64_t number = 0; number < to->groups; number++) {
            const float *x = job->x + row * job->x_row + number * group;
            int16_t *codes = to->codes + row * to->columns + number * group;
            Floats largest = {0}, total = {0}, endless = {0}; /* endless: NaN where something is not a finite number */
            for (int i = 0; i < group; i += LANES) {
                Floats values = load(x + i);
                largest = chosen(values > largest, values, largest);
                largest = chosen(-values > largest, -values, largest);
                total += values;
                endless += values * 0;
            }
            float most = most_of(largest), inverse = 0; /* less would leave float32 */
            int finite = sum_of(endless) == 0;
            if (finite && most > 1e-30f) inverse = LARGEST / most;
            Ints code_total = {0};
            for (int i = 0; i < group; i += LANES) {
                Ints rounded = inverse == 0 ? (Ints){0} : whole_of(load(x + i) * inverse);
                code_total += rounded;
                store_shorts(codes + i, rounded);
            }
            int64_t place = row * to->groups + number;
            to->scales[place] = finite ? most / LARGEST : NAN;
            to->sums[place] = sum_of(total);
            to->code_sums[place] = sum_of_ints(code_total);
        }
    }
}

Rounded loradesk_round(const float *x, int64_t x_row, int64_t rows, int64_t columns, int group, int threads) {
    Rounded to = {.columns = columns, .groups = columns / group, .group = group};
    size_t numbers = (size_t)(rows * to.groups);
    to.scales = room_for(3 * numbers + (size_t)(rows * columns + 1) / 2);
    to.sums = to.scales + numbers;
    to.code_sums = (int32_t *)(to.sums + numbers);
    to.codes = (int16_t *)(to.code_sums + numbers);
    Rounding job = {x, x_row, &to};
    loradesk_run(round_rows, &job, rows, 1 + rows / (threads * 4), rows * columns < WORTH_SHARING ? 1 : threads);
    return to;
}

void loradesk_leave_rounded(Rounded *rounded) { leave_room(rounded->scales); }

/* --- products ------------------------------------------------------------------------------------------------------- */

/* The codes of two neighbouring columns, of the words that hold 8 (HALF_BYTES) or 4 (BYTES) of them. */
INLINE Pairs pair_of(Ints words, int pair, int kind) {
    if (kind == HALF_BYTES) return (Pairs)(words >> (4 * pair) & 0x000f000f);
    return pair ? (Pairs)words >> 8 : (Pairs)words << 8 >> 8;
}

INLINE void tile_of(const Rounded *x, int64_t start, const Matrix *matrix, const uint8_t *at, int64_t output, float *y,
                    int64_t y_row, int adds, int count, int kind, int group) {
    /* several sums of a few rows: a processor begins the next one before it has the last */
    int chains = count == 1 ? 4 : count <= 3 ? 2 : 1;
    const int16_t *codes = x->codes + start * x->columns + matrix->input;
    const float *row_scales = x->scales + start * x->groups;
    int pairs = kind == HALF_BYTES ? 4 : 2, scale_bytes = matrix->scale_bytes, lowest = kind == HALF_BYTES ? matrix->lowest : 0;
    int64_t groups = matrix->columns / group;
    Floats totals[TILE][VECTORS];
    for (int row = 0; row < count; row++)
        for (int vector = 0; vector < VECTORS; vector++) totals[row][vector] = (Floats){0};
    for (int64_t number = 0; number < groups; number++) {
        const uint8_t *scales = at, *words = at + ROWS * scale_bytes * (1 + matrix->has_zero);
        fetch_ahead(at, group_bytes(matrix));
        Ints sums[TILE][VECTORS][4];
        for (int row = 0; row < count; row++) {
            Ints below = (Ints){0} + lowest * x->code_sums[(start + row) * x->groups + number];
            for (int vector = 0; vector < VECTORS; vector++)
                for (int chain = 0; chain < chains; chain++) sums[row][vector][chain] = chain ? (Ints){0} : below;
        }
        for (int column = 0; column < group; column += 2 * pairs, words += 4 * ROWS)
            for (int pair = 0; pair < pairs; pair++) {
                Pairs weights[VECTORS];
                for (int vector = 0; vector < VECTORS; vector++)
                    weights[vector] = pair_of(words_at(words + 4 * LANES * vector), pair, kind);
                for (int row = 0; row < count; row++) {
                    Pairs both = pair_at(codes + row * x->columns + column + 2 * pair);
                    int chain = (column / 2 + pair) % chains;
                    for (int vector = 0; vector < VECTORS; vector++)
                        sums[row][vector][chain] = add_products(sums[row][vector][chain], weights[vector], both);
                }
            }
        for (int vector = 0; vector < VECTORS; vector++) {
            Floats scale = scales_at(scales, scale_bytes, vector);
            for (int row = 0; row < count; row++) {
                Ints sum = sums[row][vector][0];
                for (int chain = 1; chain < chains; chain++) sum += sums[row][vector][chain];
                totals[row][vector] += __builtin_convertvector(sum, Floats) * (scale * row_scales[row * x->groups + number]);
            }
        }
        if (matrix->has_zero)
            for (int vector = 0; vector < VECTORS; vector++) {
                Floats zero = scales_at(scales + ROWS * scale_bytes, scale_bytes, vector);
                for (int row = 0; row < count; row++)
                    totals[row][vector] += zero * x->sums[(start + row) * x->groups + number];
            }
        codes += group;
        at += group_bytes(matrix);
    }
    for (int row = 0; row < count; row++)
        put_outputs(totals[row], matrix, output, y + (start + row) * y_row, adds);
}

/* With constants, so that the sums stay in registers. */
INLINE void some_rows(const Rounded *x, int64_t start, const Matrix *matrix, const uint8_t *at, int64_t output, float *y,
                      int64_t y_row, int adds, int count) {
#define BY_GROUP(kind, group) tile_of(x, start, matrix, at, output, y, y_row, adds, count, kind, group)
    if (matrix->kind == HALF_BYTES && matrix->group == 32)
        BY_GROUP(HALF_BYTES, 32);
    else if (matrix->kind == HALF_BYTES)
        BY_GROUP(HALF_BYTES, 16);
    else if (matrix->group == 32)
        BY_GROUP(BYTES, 32);
    else
        BY_GROUP(BYTES, 16);
}

void loradesk_codes_times(const Rounded *x, int64_t first, int64_t last, const Matrix *matrix, const uint8_t *at,
                          int64_t output, float *y, int64_t y_row, int adds) {
    for (int64_t start = first; start < last; start += TILE) {
        switch (last - start) {
#define ROWS_OF(count) some_rows(x, start, matrix, at, output, y, y_row, adds, count)
        case 1: ROWS_OF(1); break;
#if LANES == 16
        case 2: ROWS_OF(2); break;
        case 3: ROWS_OF(3); break;
        case 4: ROWS_OF(4); break;
        case 5: ROWS_OF(5); break;
#endif
        default: ROWS_OF(TILE);
        }
    }
}

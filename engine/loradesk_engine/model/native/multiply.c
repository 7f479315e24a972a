/* Products of rows with matrices. Those with codes are in codes.c; the others are made floats, and summed so.

   For a few rows, numbers become floats in registers and are multiplied at once; a group's sums times the scale are
   added to the output. What is read from memory is what the matrix holds. For many rows a chunk becomes floats in the
   second cache first. */

#include "calls.h"
#include "codes.h"
#include "output.h"
#include "pool.h"

enum {
    FEW = LANES == 16 ? 4 : 2,  /* rows at a time whose sums fit the registers */
    MANY = 12,                  /* rows from which a chunk is made floats first; below, no row depends on the others */
    TILE = LANES == 16 ? 8 : 2, /* rows at a time then */
};

typedef struct {
    const Matrix *matrices;
    const float *x;
    const Rounded *rounded; /* the same x, if a matrix has codes */
    float *y;
    int64_t x_row, y_row, rows;
    int adds; /* whether to add to what is in y */
} Product;

/* `count` rows times one chunk. Each row's sums are taken in the same order whatever their number. */
INLINE void few_rows(const Product *product, const Matrix *matrix, const uint8_t *at, int64_t start, int64_t first,
                     int count, int kind) {
    const float *x = product->x + start * product->x_row + matrix->input;
    int group = matrix->group, scale_bytes = matrix->scale_bytes;
    int64_t groups = matrix->columns / group;
    Numbers numbers = numbers_of(matrix);
    Floats totals[FEW][VECTORS];
    for (int row = 0; row < count; row++)
        for (int vector = 0; vector < VECTORS; vector++) totals[row][vector] = (Floats){0};
    for (int64_t number = 0; number < groups; number++, x += group) {
        const uint8_t *codes = at + ROWS * scale_bytes;
        Floats even[FEW][VECTORS], odd[FEW][VECTORS]; /* two sums each: a processor adds faster than one after the other */
        for (int row = 0; row < count; row++)
            for (int vector = 0; vector < VECTORS; vector++) even[row][vector] = odd[row][vector] = (Floats){0};
        int i = 0;
        for (; i + 2 <= group; i += 2, codes += 2 * column_bytes(kind)) {
            Floats first_column[VECTORS], second_column[VECTORS];
            column_at(codes, kind, &numbers, first_column);
            column_at(codes + column_bytes(kind), kind, &numbers, second_column);
            for (int row = 0; row < count; row++)
                for (int vector = 0; vector < VECTORS; vector++) {
                    even[row][vector] += first_column[vector] * x[row * product->x_row + i];
                    odd[row][vector] += second_column[vector] * x[row * product->x_row + i + 1];
                }
        }
        if (i < group) {
            Floats column[VECTORS];
            column_at(codes, kind, &numbers, column);
            for (int row = 0; row < count; row++)
                for (int vector = 0; vector < VECTORS; vector++)
                    even[row][vector] += column[vector] * x[row * product->x_row + i];
        }
        for (int vector = 0; vector < VECTORS; vector++) {
            Floats scale = scale_bytes ? scales_at(at, scale_bytes, vector) : all_of(1);
            for (int row = 0; row < count; row++)
                totals[row][vector] += (even[row][vector] + odd[row][vector]) * scale;
        }
        at += group_bytes(matrix);
    }
    for (int row = 0; row < count; row++)
        put_outputs(totals[row], matrix, first, product->y + (start + row) * product->y_row, product->adds);
}

/* For each kind, with the kind a constant. */
#define BY_KIND(call) \
    switch (matrix->kind) { \
    case FLOAT32: call(FLOAT32); break; \
    case BFLOAT16: call(BFLOAT16); break; \
    case FLOAT16: call(FLOAT16); break; \
    case TABLED: call(TABLED); break; \
    }

static void by_few(const Product *product, const Matrix *matrix, const uint8_t *at, int64_t first) {
    for (int64_t start = 0; start < product->rows; start += FEW) {
        switch (product->rows - start) { /* constants, so that the sums stay in registers */
#define ONE(kind) few_rows(product, matrix, at, start, first, 1, kind)
        case 1: BY_KIND(ONE) break;
#if LANES == 16
#define TWO(kind) few_rows(product, matrix, at, start, first, 2, kind)
        case 2: BY_KIND(TWO) break;
#define THREE(kind) few_rows(product, matrix, at, start, first, 3, kind)
        case 3: BY_KIND(THREE) break;
#endif
#define MOST(kind) few_rows(product, matrix, at, start, first, FEW, kind)
        default: BY_KIND(MOST)
        }
    }
}

/* A chunk as floats, [columns, 32]. */
INLINE void floats_of(const Matrix *matrix, const uint8_t *at, int kind, float *to) {
    int group = matrix->group, scale_bytes = matrix->scale_bytes;
    Numbers numbers = numbers_of(matrix);
    for (int64_t begin = 0; begin < matrix->columns; begin += group, at += group_bytes(matrix)) {
        const uint8_t *codes = at + ROWS * scale_bytes;
        Floats scale[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++)
            scale[vector] = scale_bytes ? scales_at(at, scale_bytes, vector) : all_of(1);
        for (int i = 0; i < group; i++, codes += column_bytes(kind), to += ROWS) {
            Floats values[VECTORS];
            column_at(codes, kind, &numbers, values);
            for (int vector = 0; vector < VECTORS; vector++) store(to + LANES * vector, values[vector] * scale[vector]);
        }
    }
}

INLINE void tile_of_rows(const Product *product, const Matrix *matrix, const float *floats, int64_t start, int64_t first,
                         int count) {
    const float *x = product->x + start * product->x_row + matrix->input;
    Floats totals[TILE][VECTORS];
    for (int row = 0; row < count; row++)
        for (int vector = 0; vector < VECTORS; vector++) totals[row][vector] = (Floats){0};
    for (int64_t at = 0; at < matrix->columns; at++, floats += ROWS) {
        Floats weights[VECTORS];
        for (int vector = 0; vector < VECTORS; vector++) weights[vector] = load(floats + LANES * vector);
        for (int row = 0; row < count; row++)
            for (int vector = 0; vector < VECTORS; vector++)
                totals[row][vector] += weights[vector] * x[row * product->x_row + at];
    }
    for (int row = 0; row < count; row++)
        put_outputs(totals[row], matrix, first, product->y + (start + row) * product->y_row, product->adds);
}

static void by_tiles(const Product *product, const Matrix *matrix, const uint8_t *at, int64_t first, float *room) {
    const float *floats = (const float *)at;
#define MAKE_FLOATS(kind) floats_of(matrix, at, kind, room)
    if (matrix->kind != FLOAT32) {
        BY_KIND(MAKE_FLOATS)
        floats = room;
    }
    int64_t start = 0;
    for (; start + TILE <= product->rows; start += TILE) tile_of_rows(product, matrix, floats, start, first, TILE);
    for (; start + TILE / 2 <= product->rows; start += TILE / 2)
        tile_of_rows(product, matrix, floats, start, first, TILE / 2);
    for (; start < product->rows; start++) tile_of_rows(product, matrix, floats, start, first, 1);
}

static void some_chunks(void *job, int64_t first, int64_t last) {
    const Product *product = job;
    float *room = NULL;
    int64_t widest = 0, before = 0; /* before: chunks of the matrices before */
    for (const Matrix *matrix = product->matrices; before < last; matrix++) {
        int64_t chunks = (matrix->rows + ROWS - 1) / ROWS;
        if (product->rows >= MANY && matrix->columns > widest && !has_codes(matrix)) {
            leave_room(room);
            widest = matrix->columns;
            room = room_for(ROWS * (size_t)widest);
        }
        for (int64_t chunk = first > before ? first - before : 0; chunk < chunks && before + chunk < last; chunk++) {
            const uint8_t *at = matrix->data + chunk * chunk_bytes(matrix);
            if (has_codes(matrix))
                loradesk_codes_times(product->rounded, 0, product->rows, matrix, at, chunk * ROWS, product->y,
                                     product->y_row, product->adds);
            else if (room)
                by_tiles(product, matrix, at, chunk * ROWS, room);
            else
                by_few(product, matrix, at, chunk * ROWS);
        }
        before += chunks;
    }
    leave_room(room);
}

static void multiply(const Matrix *matrices, int count, const float *x, int64_t x_row, int64_t rows, float *y,
                     int64_t y_row, int adds, int threads) {
    int64_t chunks = 0, work = 0;
    const Matrix *codes = NULL;
    for (int number = 0; number < count; number++) {
        chunks += (matrices[number].rows + ROWS - 1) / ROWS;
        work += matrices[number].rows * matrices[number].columns * rows;
        if (has_codes(&matrices[number])) codes = &matrices[number];
    }
    Product product = {matrices, x, NULL, y, x_row, y_row, rows, adds};
    Rounded rounded;
    if (codes) {
        rounded = loradesk_round(x, x_row, rows, codes->columns, codes->group, threads);
        product.rounded = &rounded;
    }
    loradesk_run(some_chunks, &product, chunks, 1 + chunks / (threads * 16), work < WORTH_SHARING ? 1 : threads);
    if (codes) loradesk_leave_rounded(&rounded);
}

void loradesk_multiply(const Matrix *matrices, int count, const float *x, int64_t x_row, int64_t rows, float *y,
                       int64_t y_row, int threads) {
    multiply(matrices, count, x, x_row, rows, y, y_row, 0, threads);
}

void loradesk_adapt(const float *x, int64_t x_row, int64_t rows, const Matrix *a, const float *factors,
                    int64_t factors_row, const Matrix *b, int count, float *inner, float *y, int64_t y_row, int threads) {
    multiply(a, 1, x, x_row, rows, inner, a->rows, 0, threads);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t rank = 0; rank < a->rows; rank++) inner[row * a->rows + rank] *= factors[row * factors_row + rank];
    multiply(b, count, inner, a->rows, rows, y, y_row, 1, threads);
}

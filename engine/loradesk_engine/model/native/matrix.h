/* How a matrix is held: 32 rows side by side, so that a product has its outputs in the lanes of a vector and needs no
   sums across lanes, and so that the scales of 32 rows are turned into floats at once.

   A chunk is 32 rows (the last one filled up with zeros). It holds its groups of columns one after the other, each:
       scale  32 numbers, float16 or float32; none for plain numbers
       zero   the same, if the type has zeros
       codes  BYTES: for each 4 columns a word of 32 bits by row, its bytes 0, 2, 1 and 3 their signed codes
              HALF_BYTES: for each 8 columns a word by row; half byte i holds column 2i, half byte 4 + i column 2i + 1
              TABLED: for each column 16 bytes with row r in the lower half and row r + 16 in the upper
              plain numbers: 32 of them for each column
   An element is code * scale + zero; HALF_BYTES count from `lowest`, TABLED are places in a table of 16 numbers. Words are
   laid out so that a shift and a mask give the codes of two neighbouring columns in the halves of each word, which is
   what processors multiply and add up in one instruction. Plain numbers are one group. */

#ifndef LORADESK_MATRIX_H
#define LORADESK_MATRIX_H

#include "vector.h"

enum { ROWS = 32, VECTORS = ROWS / LANES };

typedef enum { BYTES, HALF_BYTES, FLOAT32, BFLOAT16, FLOAT16, TABLED } Kind; /* TABLED: half bytes with a table */

typedef struct {
    const uint8_t *data;
    const float *table; /* of 16 numbers, for TABLED */
    int64_t rows, columns;
    int64_t input, output; /* the first column of x that it is multiplied with, and of y that it gives */
    int32_t kind;
    int32_t group; /* columns that share a scale */
    int32_t lowest;
    int32_t has_zero;
    int32_t scale_bytes; /* 2: float16, 4: float32, 0: no scales */
    int32_t unused;      /* fills up to eight bytes */
} Matrix;

INLINE int64_t column_bytes(int kind) {
    return kind == HALF_BYTES || kind == TABLED ? ROWS / 2 : kind == BYTES ? ROWS : kind == FLOAT32 ? 4 * ROWS : 2 * ROWS;
}

INLINE int64_t group_bytes(const Matrix *matrix) {
    return (int64_t)ROWS * matrix->scale_bytes * (1 + matrix->has_zero) +
           (int64_t)matrix->group * column_bytes(matrix->kind);
}

INLINE int64_t chunk_bytes(const Matrix *matrix) { return matrix->columns / matrix->group * group_bytes(matrix); }

INLINE Floats scales_at(const uint8_t *from, int scale_bytes, int vector) {
    if (scale_bytes == 2) return halves_at(from + 2 * LANES * vector);
    Floats values;
    memcpy(&values, from + 4 * LANES * vector, sizeof values);
    return values;
}

INLINE int has_codes(const Matrix *matrix) { return matrix->kind == BYTES || matrix->kind == HALF_BYTES; }

/* What the 16 codes of TABLED stand for. */
typedef struct {
    float of[16];
} Numbers;

INLINE Numbers numbers_of(const Matrix *matrix) {
    Numbers numbers = {{0}};
    if (matrix->table) memcpy(numbers.of, matrix->table, sizeof numbers.of);
    return numbers;
}

/* The numbers of codes, of which only the lowest four bits count. */
INLINE Floats looked_up(Ints codes, const Numbers *numbers) {
#if LANES == 16
    return (Floats)_mm512_permutexvar_ps((__m512i)codes, _mm512_loadu_ps(numbers->of));
#elif LANES == 8 /* in each half of the table, then by the fourth bit, which is made the sign */
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(numbers->of), (__m256i)codes);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(numbers->of + 8), (__m256i)codes);
    return (Floats)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)codes, 28)));
#else
    Floats values = {0};
    for (int lane = 0; lane < LANES; lane++) values[lane] = numbers->of[codes[lane] & 15];
    return values;
#endif
}

/* The numbers of a column, 32 of them, of a matrix that is multiplied as floats. */
INLINE void column_at(const uint8_t *from, int kind, const Numbers *numbers, Floats *to) {
    if (kind != TABLED) {
        for (int vector = 0; vector < VECTORS; vector++) {
            if (kind == FLOAT32) memcpy(&to[vector], from + 4 * LANES * vector, sizeof(Floats));
            if (kind == BFLOAT16) to[vector] = bfloats_at(from + 2 * LANES * vector);
            if (kind == FLOAT16) to[vector] = halves_at(from + 2 * LANES * vector);
        }
        return;
    }
    for (int vector = 0; vector < VECTORS / 2; vector++) {
        Ints codes = bytes_at(from + LANES * vector);
        to[vector] = looked_up(codes, numbers);
        to[VECTORS / 2 + vector] = looked_up(codes >> 4, numbers);
    }
}

#endif

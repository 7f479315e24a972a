/* Products of quantized matrices with rows that are rounded to 16 bits. */

#ifndef LORADESK_CODES_H
#define LORADESK_CODES_H

#include "matrix.h"

/* Rows of an input in groups of columns: x = code * scale, at most 1/65,534 of the group's largest number off. A group with
   something that is not a finite number has NaN for its scale. */
typedef struct {
    int16_t *codes;     /* [rows, columns] */
    float *scales;      /* [rows, groups] */
    float *sums;        /* [rows, groups], of x as it was */
    int32_t *code_sums; /* [rows, groups] */
    int64_t columns, groups;
    int group;
} Rounded;

/* Room for them is made here. x: its rows are so many numbers apart. */
Rounded loradesk_round(const float *x, int64_t x_row, int64_t rows, int64_t columns, int group, int threads);

void loradesk_leave_rounded(Rounded *rounded);

/* Rows first to last - 1 times the chunk at `at`, whose first row is `output`: y = the products, or y + them. */
void loradesk_codes_times(const Rounded *x, int64_t first, int64_t last, const Matrix *matrix, const uint8_t *at,
                          int64_t output, float *y, int64_t y_row, int adds);

#endif

/* What a pass calls, layer by layer. */

#ifndef LORADESK_CALLS_H
#define LORADESK_CALLS_H

#include "matrix.h"

/* Rows that continue one sequence, as in batch.py. */
typedef struct {
    int64_t slot, start, length, past;
} Segment;

/* y[rows, outputs] = x times the matrices. Those with codes read the same columns of x in groups of the same size. */
void loradesk_multiply(const Matrix *matrices, int count, const float *x, int64_t x_row, int64_t rows, float *y,
                       int64_t y_row, int threads);

/* y += (x a' * factors) b': the adapters of the linears that read one x.

   a: one matrix, [ranks, columns of x]; factors: for each rank, of a row each or, with factors_row 0, the same for all;
   b: those of the linears, whose `input` is their first rank; inner: room for [rows, ranks]. */
void loradesk_adapt(const float *x, int64_t x_row, int64_t rows, const Matrix *a, const float *factors,
                    int64_t factors_row, const Matrix *b, int count, float *inner, float *y, int64_t y_row, int threads);

/* hidden += change, and out = hidden / rms(hidden) * weight, for `rows` contiguous rows of `size`. */
void loradesk_add_rms_norm(float *hidden, const float *change, const float *weight, float eps, float *out, int64_t rows,
                           int64_t size, int threads);

/* y += bias, for `rows` contiguous rows of `size`. */
void loradesk_add_bias(float *y, const float *bias, int64_t rows, int64_t size);

/* out = silu(gate) * up. both: [rows, 2 * size], gate first. */
void loradesk_silu_product(const float *both, int64_t both_row, float *out, int64_t rows, int64_t size, int threads);

/* Rotate, write keys and values into the cache, attend causally over all that each segment's slot holds.

   q [rows, heads, dim], k and v [rows, kv_heads, dim], not rotated yet, with their rows so many numbers apart; cos, sin
   [positions, rotary]; keys, values: one layer of the cache. window 0: all; limit 0: no soft cap. out: contiguous. */
void loradesk_attend(const float *q, int64_t q_row, const float *k, int64_t k_row, const float *v, int64_t v_row,
                     const float *cos, const float *sin, int64_t rotary, float *keys, float *values, int64_t slot_size,
                     int64_t head_size, const Segment *segments, int count, int64_t heads, int64_t kv_heads, int64_t dim,
                     float scale, int64_t window, float limit, float *out, int threads);

#endif

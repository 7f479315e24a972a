/* What a pass does between its products, in float32: norms and the MLP's gate; attention is in attention.c.
   Each in one call, where torch takes several, and a call into torch takes longer than the work of one token. */

#include "calls.h"
#include "pool.h"

#include <math.h>

typedef struct {
    float *hidden, *out;
    const float *change, *weight;
    int64_t size;
    float eps;
} Norm;

static void norm_rows(void *item, int64_t first, int64_t last) {
    const Norm *job = item;
    int64_t size = job->size;
    const float *weight = job->weight;
    for (int64_t row = first; row < last; row++) {
        float *hidden = job->hidden + row * size, *out = job->out + row * size;
        const float *change = job->change + row * size;
        Floats squares = {0};
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES) {
            Floats sum = load(hidden + at) + load(change + at);
            store(hidden + at, sum);
            squares += sum * sum;
        }
        float total = sum_of(squares);
        for (; at < size; at++) {
            hidden[at] += change[at];
            total += hidden[at] * hidden[at];
        }
        float factor = 1.0f / sqrtf(total / (float)size + job->eps);
        for (at = 0; at + LANES <= size; at += LANES) store(out + at, load(hidden + at) * factor * load(weight + at));
        for (; at < size; at++) out[at] = hidden[at] * factor * weight[at];
    }
}

void loradesk_add_rms_norm(float *hidden, const float *change, const float *weight, float eps, float *out, int64_t rows,
                           int64_t size, int threads) {
    Norm job = {hidden, out, change, weight, size, eps};
    loradesk_run(norm_rows, &job, rows, 1 + rows / (threads * 4), rows * size < WORTH_SHARING ? 1 : threads);
}

void loradesk_add_bias(float *y, const float *bias, int64_t rows, int64_t size) {
    for (int64_t row = 0; row < rows; row++, y += size)
        for (int64_t at = 0; at < size; at++) y[at] += bias[at];
}

typedef struct {
    const float *both;
    float *out;
    int64_t both_row, size;
} Gate;

static void gate_rows(void *item, int64_t first, int64_t last) {
    const Gate *job = item;
    int64_t size = job->size;
    for (int64_t row = first; row < last; row++) {
        const float *both = job->both + row * job->both_row;
        float *out = job->out + row * size;
        int64_t at = 0;
        for (; at + LANES <= size; at += LANES) {
            Floats gate = load(both + at);
            store(out + at, gate / (1.0f + exp_of(-gate)) * load(both + size + at));
        }
        for (; at < size; at++) out[at] = both[at] / (1.0f + expf(-both[at])) * both[size + at];
    }
}

void loradesk_silu_product(const float *both, int64_t both_row, float *out, int64_t rows, int64_t size, int threads) {
    Gate job = {both, out, both_row, size};
    loradesk_run(gate_rows, &job, rows, 1 + rows / (threads * 4), rows * size < WORTH_SHARING ? 1 : threads);
}

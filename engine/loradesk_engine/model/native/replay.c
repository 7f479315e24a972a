/* The calls of a pass, recorded once, made again in one call: from Python each of them takes several microseconds, as much
   as many of them work. */

#include "calls.h"

enum Function { MULTIPLY, ADAPT, ADD_RMS_NORM, SILU_PRODUCT, ATTEND, ADD_BIAS }; /* as in recording.py */

/* Arguments in their order: numbers and addresses; floats by their bits. */
typedef struct {
    int64_t function, arguments[24];
} Call;

INLINE float float_of(int64_t bits) {
    uint32_t low = (uint32_t)bits;
    float value;
    memcpy(&value, &low, sizeof value);
    return value;
}

#define FLOATS(i) ((float *)(intptr_t)a[i])
#define MATRICES(i) ((const Matrix *)(intptr_t)a[i])

void loradesk_replay(const Call *calls, int64_t count) {
    for (const Call *call = calls; call < calls + count; call++) {
        const int64_t *a = call->arguments;
        switch ((enum Function)call->function) {
        case MULTIPLY:
            loradesk_multiply(MATRICES(0), (int)a[1], FLOATS(2), a[3], a[4], FLOATS(5), a[6], (int)a[7]);
            break;
        case ADAPT:
            loradesk_adapt(FLOATS(0), a[1], a[2], MATRICES(3), FLOATS(4), a[5], MATRICES(6), (int)a[7], FLOATS(8),
                           FLOATS(9), a[10], (int)a[11]);
            break;
        case ADD_RMS_NORM:
            loradesk_add_rms_norm(FLOATS(0), FLOATS(1), FLOATS(2), float_of(a[3]), FLOATS(4), a[5], a[6], (int)a[7]);
            break;
        case SILU_PRODUCT:
            loradesk_silu_product(FLOATS(0), a[1], FLOATS(2), a[3], a[4], (int)a[5]);
            break;
        case ATTEND:
            loradesk_attend(FLOATS(0), a[1], FLOATS(2), a[3], FLOATS(4), a[5], FLOATS(6), FLOATS(7), a[8], FLOATS(9),
                            FLOATS(10), a[11], a[12], (const Segment *)(intptr_t)a[13], (int)a[14], a[15], a[16], a[17],
                            float_of(a[18]), a[19], float_of(a[20]), FLOATS(21), (int)a[22]);
            break;
        case ADD_BIAS:
            loradesk_add_bias(FLOATS(0), FLOATS(1), a[2], a[3]);
            break;
        }
    }
}

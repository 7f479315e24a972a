/* GGUF's quantized blocks to codes and scales: an element is code * scale + zero. The layouts are those of ggml's block
   structs (ggml-common.h). Codes are signed bytes; scales and zeros are one for each group. */

#ifndef LORADESK_BLOCKS_H
#define LORADESK_BLOCKS_H

#include "vector.h"

typedef struct {
    int8_t codes[256];
    float scale[16], zero[16];
} Block;

INLINE void nibbles(const uint8_t *from, int lowest, int8_t *to) {
    for (int i = 0; i < 16; i++) to[i] = (int8_t)((from[i] & 15) + lowest);
    for (int i = 0; i < 16; i++) to[16 + i] = (int8_t)((from[i] >> 4) + lowest);
}

INLINE void fifth_bits(const uint8_t *from, int lowest, int8_t *to) {
    for (int i = 0; i < 32; i++) to[i] = (int8_t)(to[i] + ((from[i / 8] >> i % 8 & 1) << 4) + lowest);
}

INLINE void q4_0(const uint8_t *from, Block *to) {
    to->scale[0] = half_at(from), to->zero[0] = 0;
    nibbles(from + 2, -8, to->codes);
}

INLINE void q4_1(const uint8_t *from, Block *to) {
    to->scale[0] = half_at(from), to->zero[0] = half_at(from + 2);
    nibbles(from + 4, 0, to->codes);
}

INLINE void q5_0(const uint8_t *from, Block *to) {
    to->scale[0] = half_at(from), to->zero[0] = 0;
    nibbles(from + 6, 0, to->codes);
    fifth_bits(from + 2, -16, to->codes);
}

INLINE void q5_1(const uint8_t *from, Block *to) {
    to->scale[0] = half_at(from), to->zero[0] = half_at(from + 2);
    nibbles(from + 8, 0, to->codes);
    fifth_bits(from + 4, 0, to->codes);
}

INLINE void q8_0(const uint8_t *from, Block *to) {
    to->scale[0] = half_at(from), to->zero[0] = 0;
    memcpy(to->codes, from + 2, 32);
}

INLINE void iq4_nl(const uint8_t *from, Block *to) {
    static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    to->scale[0] = half_at(from), to->zero[0] = 0;
    for (int i = 0; i < 16; i++) to->codes[i] = values[from[2 + i] & 15];
    for (int i = 0; i < 16; i++) to->codes[16 + i] = values[from[2 + i] >> 4];
}

INLINE void q2_k(const uint8_t *from, Block *to) {
    float scale = half_at(from + 80), smallest = half_at(from + 82);
    for (int group = 0; group < 16; group++) {
        const uint8_t *codes = from + 16 + group / 8 * 32 + group % 2 * 16;
        int shift = group % 8 / 2 * 2;
        to->scale[group] = scale * (float)(from[group] & 15);
        to->zero[group] = -(smallest * (float)(from[group] >> 4));
        for (int i = 0; i < 16; i++) to->codes[16 * group + i] = (int8_t)(codes[i] >> shift & 3);
    }
}

INLINE void q3_k(const uint8_t *from, Block *to) {
    const uint8_t *packed = from + 96;
    float scale = half_at(from + 108);
    for (int group = 0; group < 16; group++) {
        int four = packed[group % 8] >> (group / 8 * 4) & 15, two = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        const uint8_t *codes = from + 32 + group / 8 * 32 + group % 2 * 16, *bits = from + group % 2 * 16;
        int shift = group % 8 / 2 * 2, bit = group / 2;
        to->scale[group] = scale * (float)((four | two << 4) - 32), to->zero[group] = 0;
        for (int i = 0; i < 16; i++)
            to->codes[16 * group + i] = (int8_t)((codes[i] >> shift & 3) + ((bits[i] >> bit & 1) << 2) - 4);
    }
}

/* Scales and zeros of the eight groups of Q4_K and Q5_K, six bits each. */
INLINE void k_scales(const uint8_t *from, Block *to) {
    const uint8_t *packed = from + 4;
    float scale = half_at(from), smallest = half_at(from + 2);
    for (int group = 0; group < 8; group++) {
        int factor, offset;
        if (group < 4) {
            factor = packed[group] & 63;
            offset = packed[group + 4] & 63;
        } else {
            factor = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
            offset = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
        }
        to->scale[group] = scale * (float)factor;
        to->zero[group] = -(smallest * (float)offset);
    }
}

INLINE void q4_k(const uint8_t *from, Block *to) {
    k_scales(from, to);
    for (int group = 0; group < 8; group++)
        for (int i = 0; i < 32; i++)
            to->codes[32 * group + i] = (int8_t)(from[16 + group / 2 * 32 + i] >> (group % 2 * 4) & 15);
}

INLINE void q5_k(const uint8_t *from, Block *to) {
    k_scales(from, to);
    for (int group = 0; group < 8; group++)
        for (int i = 0; i < 32; i++)
            to->codes[32 * group + i] = (int8_t)((from[48 + group / 2 * 32 + i] >> (group % 2 * 4) & 15) |
                                                 (from[16 + i] >> group & 1) << 4);
}

INLINE void q6_k(const uint8_t *from, Block *to) {
    float scale = half_at(from + 208);
    for (int group = 0; group < 16; group++) {
        int part = group / 8, quarter = group % 8 / 2, half = group % 2 * 16;
        const uint8_t *four = from + 64 * part + quarter % 2 * 32 + half, *two = from + 128 + 32 * part + half;
        int shift = quarter / 2 * 4;
        to->scale[group] = scale * (float)(int8_t)from[192 + group], to->zero[group] = 0;
        for (int i = 0; i < 16; i++)
            to->codes[16 * group + i] = (int8_t)(((four[i] >> shift & 15) | (two[i] >> 2 * quarter & 3) << 4) - 32);
    }
}

/* 64 weights of bitsandbytes' 4-bit types: their scale (float32), then two codes a byte, the first in the upper half. */
INLINE void four_bit(const uint8_t *from, Block *to) {
    memcpy(to->scale, from, 4), to->zero[0] = 0;
    for (int i = 0; i < 32; i++) {
        to->codes[2 * i] = (int8_t)(from[4 + i] >> 4);
        to->codes[2 * i + 1] = (int8_t)(from[4 + i] & 15);
    }
}

/* Every type: GGUF's number of it (bitsandbytes' has one of ours), the function, the elements of a block, its bytes. */
#define EVERY_TYPE(DO) \
    DO(2, q4_0, 32, 18) DO(3, q4_1, 32, 20) DO(6, q5_0, 32, 22) DO(7, q5_1, 32, 24) DO(8, q8_0, 32, 34) \
    DO(10, q2_k, 256, 84) DO(11, q3_k, 256, 110) DO(12, q4_k, 256, 144) DO(13, q5_k, 256, 176) \
    DO(14, q6_k, 256, 210) DO(20, iq4_nl, 32, 18) DO(100, four_bit, 64, 36)

#endif

/* Vectors of floats, as wide as the processor that the file is compiled for has them. GCC and Clang. */

#ifndef LORADESK_VECTOR_H
#define LORADESK_VECTOR_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(_WIN32)
#include <malloc.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

/* Before a loop of many turns, each with products of some vectors: Clang unrolls by itself. */
#if defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
typedef int16_t Pairs __attribute__((vector_size(4 * LANES))); /* two numbers of 16 bits in each word */
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES)));

INLINE Floats load(const float *from) {
    Floats values;
    memcpy(&values, from, sizeof values);
    return values;
}

INLINE void store(float *to, Floats values) { memcpy(to, &values, sizeof values); }

INLINE Floats all_of(float value) { return value - (Floats){0}; }

/* The first where `mask` is set, else the second. */
INLINE Floats chosen(Ints mask, Floats first, Floats second) {
    Ints first_bits, second_bits, bits;
    memcpy(&first_bits, &first, sizeof first);
    memcpy(&second_bits, &second, sizeof second);
    bits = (mask & first_bits) | (~mask & second_bits);
    memcpy(&first, &bits, sizeof bits);
    return first;
}

/* The larger of two; the second where one is not a number. */
INLINE Floats larger(Floats a, Floats b) {
#if LANES == 16
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return chosen(a > b, a, b);
#endif
}

/* The smaller of two; the second where one is not a number. */
INLINE Floats smaller(Floats a, Floats b) { return -larger(-a, -b); }

INLINE float sum_of(Floats values) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)values);
#elif LANES == 8
    __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)values), _mm256_extractf128_ps((__m256)values, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    return (values[0] + values[2]) + (values[1] + values[3]);
#endif
}

/* The sums of four vectors' lanes, which one vector at a time would take three times as many steps. */
INLINE void store_four_sums(float *to, const Floats *values) {
#if LANES == 16
    __m512 a = (__m512)values[0], b = (__m512)values[1], c = (__m512)values[2], d = (__m512)values[3];
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd),
                                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(abcd), 1)));
#elif LANES == 8
    __m256 half = _mm256_hadd_ps(_mm256_hadd_ps((__m256)values[0], (__m256)values[1]),
                                 _mm256_hadd_ps((__m256)values[2], (__m256)values[3]));
#endif
#if LANES > 4
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = sum_of(values[i]);
#endif
}

INLINE float most_of(Floats values) {
    float most = values[0];
#if LANES == 16
    most = _mm512_reduce_max_ps((__m512)values);
#else
    for (int lane = 1; lane < LANES; lane++) most = values[lane] > most ? values[lane] : most;
#endif
    return most;
}

INLINE int32_t sum_of_ints(Ints values) {
#if LANES == 16
    return _mm512_reduce_add_epi32((__m512i)values);
#else
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
#endif
}

/* The nearest whole numbers of what is below 2^22. */
INLINE Ints whole_of(Floats values) {
    Floats shifted = values + 12582912.0f; /* 1.5 * 2^23: the last bit counts ones */
    Ints bits;
    memcpy(&bits, &shifted, sizeof shifted);
    return bits - 0x4b400000;
}

INLINE void store_shorts(int16_t *to, Ints values) {
#if LANES == 16
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)values));
#else
    for (int lane = 0; lane < LANES; lane++) to[lane] = (int16_t)values[lane];
#endif
}

/* GCC takes apart what widens by more than twice, so the instructions are named where there are any. */
INLINE Ints bytes_at(const uint8_t *from) {
#if LANES == 16
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif LANES == 8
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Ints);
#endif
}

INLINE Ints words_at(const void *from) {
    Ints words;
    memcpy(&words, from, sizeof words);
    return words;
}

/* The same two numbers in every word. */
INLINE Pairs pair_at(const int16_t *from) {
    int32_t word;
    memcpy(&word, from, sizeof word);
    return (Pairs)((Ints){0} + word);
}

/* sums + the product of the first numbers + that of the second ones, word by word. */
INLINE Ints add_products(Ints sums, Pairs a, Pairs b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif LANES == 16
    return sums + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif LANES == 8
    return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    Ints first = ((Ints)a << 16 >> 16) * ((Ints)b << 16 >> 16), second = ((Ints)a >> 16) * ((Ints)b >> 16);
    return sums + first + second;
#endif
}

/* float16 numbers. Not by the compiler's own type: GCC before 12 has none on x86. */
INLINE Floats halves_at(const uint8_t *from) {
#if LANES == 16
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif LANES == 8
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    Shorts shorts;
    memcpy(&shorts, from, sizeof shorts);
    Ints halves = __builtin_convertvector(shorts, Ints), rest = (halves & 0x7fff) << 13, bits;
    Floats values;
    memcpy(&values, &rest, sizeof rest);
    values *= 0x1p112f; /* exponents of float16 count from elsewhere; this makes numbers of its subnormal ones too */
    memcpy(&bits, &values, sizeof values);
    bits |= ((rest >= 0x0f800000) & 0x7f800000) | (halves & 0x8000) << 16; /* what is endless, and signs */
    memcpy(&values, &bits, sizeof bits);
    return values;
#endif
}

INLINE float half_at(const uint8_t *from) {
#if LANES > 4
    uint16_t half;
    memcpy(&half, from, sizeof half);
    return _cvtsh_ss(half);
#else
    uint8_t lanes[2 * LANES] = {0};
    memcpy(lanes, from, 2);
    return halves_at(lanes)[0];
#endif
}

/* A float that is known to be a float16 number, as one. */
INLINE void put_half(uint8_t *to, float value) {
#if LANES > 4
    uint16_t half = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    float small = value * 0x1p-112f; /* the same bits behind the exponent's, which count from elsewhere */
    uint32_t bits;
    memcpy(&bits, &small, sizeof bits);
    uint16_t half = (uint16_t)((bits >> 13 & 0x7fff) | (bits >> 16 & 0x8000));
#endif
    memcpy(to, &half, sizeof half);
}

/* bfloat16 numbers: the upper halves of float32 ones. */
INLINE Floats bfloats_at(const uint8_t *from) {
    Ints bits = {0};
#if LANES == 16
    bits = (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)) << 16;
#elif LANES == 8
    bits = (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)) << 16;
#else
    for (int lane = 0; lane < LANES; lane++) {
        uint16_t half;
        memcpy(&half, from + 2 * lane, sizeof half);
        bits[lane] = (int32_t)((uint32_t)half << 16);
    }
#endif
    Floats values;
    memcpy(&values, &bits, sizeof values);
    return values;
}

/* e to the power of each, to two units in the last place: 2^n times a polynomial of the rest (as in Cephes' expf). From -87
   down it may be 0, and is from -104; from 88 on it may be endless, and is from 89. */
INLINE Floats exp_of(Floats x) {
#if LANES == 16
    Floats within = smaller(all_of(89.0f), larger(all_of(-104.0f), x));
    Floats whole = (Floats)_mm512_roundscale_ps((__m512)(within * 1.44269504088896341f), 8);
#else
    Floats within = smaller(all_of(88.0f), larger(all_of(-87.0f), x));
    Floats whole = within * 1.44269504088896341f + 12582912.0f - 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
#endif
    Floats rest = within - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats power = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * (rest * rest) + rest + 1.0f;
#if LANES == 16
    return (Floats)_mm512_scalef_ps((__m512)power, (__m512)whole);
#else
    Ints scale = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Floats two_to_whole;
    memcpy(&two_to_whole, &scale, sizeof scale);
    return chosen(x < -87.0f, all_of(0), chosen(x > 88.0f, all_of(__builtin_inff()), power * two_to_whole));
#endif
}

/* The hyperbolic tangent, to a few units in the last place. Near 0 a polynomial (as in Cephes' tanhf), since what is
   subtracted from 1 has lost its digits there. */
INLINE Floats tanh_of(Floats x) {
    Floats size = larger(x, -x), square = x * x;
    Floats far = 1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f);
    Floats near = square * -5.70498872745e-3f + 2.06390887954e-2f;
    near = near * square - 5.37397155531e-2f;
    near = near * square + 1.33314422036e-1f;
    near = near * square - 3.33332819422e-1f;
    near = near * square * x + x;
    return chosen(size < 0.625f, near, chosen(x < 0.0f, -far, far));
}

/* Ask for memory that is read soon. Processors see by themselves that it is read in order, but not far enough ahead where
   much is computed for each byte: asked for, 4 rows take no longer than one. */
INLINE void fetch_ahead(const uint8_t *from, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(from + 8192 + byte);
}

/* Room for `count` floats from the start of a cache line on, where vectors are stored fastest. */
INLINE float *room_for(size_t count) {
    size_t bytes = (sizeof(float) * count + 64) / 64 * 64; /* never none, which a system may have no place for */
#if defined(_WIN32)
    float *room = _aligned_malloc(bytes, 64);
#else
    float *room = aligned_alloc(64, bytes);
#endif
    if (!room) abort(); /* a few kilobytes: nothing goes on without them */
    return room;
}

INLINE void leave_room(float *room) {
#if defined(_WIN32)
    _aligned_free(room);
#else
    free(room);
#endif
}

/* The product of two rows of `count` numbers. */
INLINE float dot(const float *a, const float *b, int64_t count) {
    Floats even = {0}, odd = {0};
    int64_t at = 0;
    for (; at + 2 * LANES <= count; at += 2 * LANES) {
        even += load(a + at) * load(b + at);
        odd += load(a + at + LANES) * load(b + at + LANES);
    }
    float sum = sum_of(even + odd);
    for (; at < count; at++) sum += a[at] * b[at];
    return sum;
}

#endif

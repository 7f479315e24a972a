/* Quantized matrices from a GGUF file's blocks to the form in which they are multiplied, and rows of them to floats. */

#include "blocks.h"
#include "matrix.h"
#include "pool.h"

typedef struct {
    const uint8_t *blocks;
    int64_t row_bytes;
    const Matrix *matrix;
    uint8_t *to;
    int type;
} Packing;

INLINE void put_scale(uint8_t *to, float value, int scale_bytes) {
    if (scale_bytes == 4)
        memcpy(to, &value, 4);
    else
        put_half(to, value);
}

INLINE float scale_at(const uint8_t *from, int scale_bytes) {
    if (scale_bytes == 2) return half_at(from);
    float value;
    memcpy(&value, from, 4);
    return value;
}

enum { MOST_IN_GROUP = 64 }; /* columns; those of bitsandbytes' types */

/* The words of matrix.h: of 8 codes that count from `lowest`, and of 4. */
INLINE uint32_t word_of_halves(const int8_t *codes, int lowest) {
    uint8_t places[8];
    for (int i = 0; i < 8; i++) places[i] = (uint8_t)(codes[i] - lowest);
    uint64_t bytes;
    memcpy(&bytes, places, 8);
    uint64_t even = bytes & 0x000f000f000f000fu, odd = bytes >> 8 & 0x000f000f000f000fu;
    even = (even | even >> 12) & 0x000000ff000000ffu; /* columns 0 and 2, 4 and 6 */
    odd = (odd | odd >> 12) & 0x000000ff000000ffu;
    return (uint32_t)((even | even >> 24) & 0xffff) | (uint32_t)((odd | odd >> 24) & 0xffff) << 16;
}

INLINE uint32_t word_of_bytes(const int8_t *codes) {
    uint8_t bytes[4] = {(uint8_t)codes[0], (uint8_t)codes[2], (uint8_t)codes[1], (uint8_t)codes[3]};
    uint32_t word;
    memcpy(&word, bytes, 4);
    return word;
}

/* Some rows of a block's worth of columns into their chunk. */
INLINE void put(const Block *rows, int count, int size, const Matrix *matrix, uint8_t *to) {
    int group = matrix->group, scale_bytes = matrix->scale_bytes;
    for (int first = 0; first < size; first += group, to += group_bytes(matrix)) {
        uint8_t *codes = to;
        for (int row = 0; row < ROWS; row++)
            put_scale(codes + row * scale_bytes, row < count ? rows[row].scale[first / group] : 0, scale_bytes);
        codes += ROWS * scale_bytes;
        if (matrix->has_zero) {
            for (int row = 0; row < ROWS; row++)
                put_scale(codes + row * scale_bytes, row < count ? rows[row].zero[first / group] : 0, scale_bytes);
            codes += ROWS * scale_bytes;
        }
        if (matrix->kind == TABLED) {
            uint8_t both[ROWS / 2][MOST_IN_GROUP]; /* first joined along the rows, which a compiler does many at a time */
            for (int row = 0; row < ROWS / 2; row++)
                for (int column = 0; column < group; column++) {
                    int low = rows[row].codes[first + column], high = rows[row + ROWS / 2].codes[first + column];
                    both[row][column] = (uint8_t)((low & 15) | high << 4);
                }
            for (int column = 0; column < group; column++)
                for (int row = 0; row < ROWS / 2; row++) codes[column * (ROWS / 2) + row] = both[row][column];
            continue;
        }
        int in_word = matrix->kind == HALF_BYTES ? 8 : 4;
        for (int column = 0; column < group; column += in_word, codes += 4 * ROWS)
            for (int row = 0; row < ROWS; row++) {
                const int8_t *from = rows[row].codes + first + column;
                uint32_t word = in_word == 8 ? word_of_halves(from, matrix->lowest) : word_of_bytes(from);
                memcpy(codes + 4 * row, &word, 4);
            }
    }
}

static void pack_chunks(void *job, int64_t first, int64_t last) {
    const Packing *packing = job;
    const Matrix *matrix = packing->matrix;
    Block rows[ROWS];
    memset(rows, 0, sizeof rows);
    for (int64_t chunk = first; chunk < last; chunk++) {
        const uint8_t *blocks = packing->blocks + chunk * ROWS * packing->row_bytes;
        int64_t left = matrix->rows - chunk * ROWS;
        int count = left < ROWS ? (int)left : ROWS;
        uint8_t *to = packing->to + chunk * chunk_bytes(matrix);
        switch (packing->type) {
#define PACK(number, decode, size, bytes) \
    case number: \
        for (int64_t at = 0; at < matrix->columns; at += size, blocks += bytes) { \
            for (int row = 0; row < count; row++) decode(blocks + row * packing->row_bytes, &rows[row]); \
            put(rows, count, size, matrix, to); \
            to += size / matrix->group * group_bytes(matrix); \
        } \
        break;
            EVERY_TYPE(PACK)
        }
    }
}

/* Put a GGUF matrix into `to`, which has room for all chunks. `matrix` says its form. */
void loradesk_pack(const uint8_t *blocks, int type, int64_t row_bytes, const Matrix *matrix, uint8_t *to, int threads) {
    Packing packing = {blocks, row_bytes, matrix, to, type};
    loradesk_run(pack_chunks, &packing, (matrix->rows + ROWS - 1) / ROWS, 1, threads);
}

static void pack_plain_chunks(void *job, int64_t first, int64_t last) {
    const Packing *packing = job;
    const Matrix *matrix = packing->matrix;
    int64_t size = column_bytes(matrix->kind) / ROWS;
    for (int64_t chunk = first; chunk < last; chunk++) {
        uint8_t *to = packing->to + chunk * chunk_bytes(matrix);
        for (int lane = 0; lane < ROWS; lane++) {
            int64_t row = chunk * ROWS + lane;
            const uint8_t *from = packing->blocks + row * packing->row_bytes;
            for (int64_t column = 0; column < matrix->columns; column++) {
                uint8_t *place = to + (column * ROWS + lane) * size;
                if (row >= matrix->rows)
                    memset(place, 0, (size_t)size);
                else if (size == 2)
                    memcpy(place, from + 2 * column, 2);
                else
                    memcpy(place, from + 4 * column, 4);
            }
        }
    }
}

/* Put a matrix of plain numbers, a row so many bytes after the other, into `to`. */
void loradesk_pack_plain(const uint8_t *numbers, int64_t row_bytes, const Matrix *matrix, uint8_t *to, int threads) {
    Packing packing = {numbers, row_bytes, matrix, to, 0};
    loradesk_run(pack_plain_chunks, &packing, (matrix->rows + ROWS - 1) / ROWS, 1,
        matrix->rows * matrix->columns < WORTH_SHARING ? 1 : threads);
}

INLINE float plain_at(const uint8_t *numbers, int kind, int64_t place) {
    float value;
    if (kind == FLOAT16) return half_at(numbers + 2 * place);
    if (kind == FLOAT32) {
        memcpy(&value, numbers + 4 * place, 4);
        return value;
    }
    uint32_t bits = 0;
    memcpy((uint8_t *)&bits + 2, numbers + 2 * place, 2); /* little endian, as all that we run on */
    memcpy(&value, &bits, 4);
    return value;
}

/* What the code of a column in a group stands for, before it is scaled. */
INLINE float number_at(const uint8_t *codes, const Matrix *matrix, int lane, int column) {
    if (matrix->kind == TABLED) {
        int both = codes[column * (ROWS / 2) + lane % (ROWS / 2)];
        return matrix->table[lane < ROWS / 2 ? both & 15 : both >> 4];
    }
    if (matrix->kind == HALF_BYTES) {
        uint32_t word;
        memcpy(&word, codes + (column / 8 * ROWS + lane) * 4, 4);
        int place = column % 8;
        return (float)((int)(word >> (place / 2 + place % 2 * 4) * 4 & 15) + matrix->lowest);
    }
    static const int places[4] = {0, 2, 1, 3};
    return (float)(int8_t)codes[(column / 4 * ROWS + lane) * 4 + places[column % 4]];
}

/* Rows of a matrix as floats, [count, columns]: those that `wanted` names. */
void loradesk_rows(const Matrix *matrix, const int64_t *wanted, int64_t count, float *to) {
    int scale_bytes = matrix->scale_bytes;
    for (int64_t number = 0; number < count; number++) {
        const uint8_t *at = matrix->data + wanted[number] / ROWS * chunk_bytes(matrix);
        int lane = (int)(wanted[number] % ROWS);
        if (!scale_bytes) {
            for (int64_t column = 0; column < matrix->columns; column++)
                *to++ = plain_at(at, matrix->kind, column * ROWS + lane);
            continue;
        }
        for (int64_t first = 0; first < matrix->columns; first += matrix->group, at += group_bytes(matrix)) {
            const uint8_t *codes = at + ROWS * scale_bytes * (1 + matrix->has_zero);
            float scale = scale_at(at + lane * scale_bytes, scale_bytes);
            float zero = matrix->has_zero ? scale_at(at + (ROWS + lane) * scale_bytes, scale_bytes) : 0;
            for (int column = 0; column < matrix->group; column++) {
                *to++ = number_at(codes, matrix, lane, column) * scale + zero;
            }
        }
    }
}

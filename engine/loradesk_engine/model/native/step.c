/* What a pass does between its products, in float32: norms, the MLP's gate, attention. Each in one call, where
   torch takes several, and a call into torch takes longer than the work of one token. */

#include "pool.h"
#include "vector.h"

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

/* hidden += change, and out = hidden / rms(hidden) * weight, for `rows` contiguous rows of `size`. */
void loradesk_add_rms_norm(float *hidden, const float *change, const float *weight, float eps, float *out, int64_t rows,
                           int64_t size, int threads) {
    Norm job = {hidden, out, change, weight, size, eps};
    loradesk_run(norm_rows, &job, rows, 1 + rows / (threads * 4), rows * size < WORTH_SHARING ? 1 : threads);
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
            /* exp_of stops at its largest number, which a gate far below zero would still be divided by */
            Floats power = chosen(gate < -88.0f, all_of(INFINITY), exp_of(-gate));
            store(out + at, gate / (1.0f + power) * load(both + size + at));
        }
        for (; at < size; at++) out[at] = both[at] / (1.0f + expf(-both[at])) * both[size + at];
    }
}

/* out = silu(gate) * up. both: [rows, 2 * size], gate first. */
void loradesk_silu_product(const float *both, int64_t both_row, float *out, int64_t rows, int64_t size, int threads) {
    Gate job = {both, out, both_row, size};
    loradesk_run(gate_rows, &job, rows, 1 + rows / (threads * 4), rows * size < WORTH_SHARING ? 1 : threads);
}

/* Rows that continue one sequence, as in batch.py. */
typedef struct {
    int64_t slot, start, length, past;
} Segment;

typedef struct {
    const float *q, *k, *v, *cos, *sin;
    float *keys, *values, *out;
    const Segment *segments;
    int64_t q_row, k_row, v_row, slot_size, head_size; /* of the cache: numbers between slots, between heads */
    int64_t heads, kv_heads, dim, rotary, window;
    float scale, limit;
} Attention;

/* The first `rotary` numbers of a head turned; the signs of the first half's sines are in the table. */
INLINE void rotate(const Attention *job, const float *from, int64_t position, float *to) {
    const float *cos = job->cos + position * job->rotary, *sin = job->sin + position * job->rotary;
    int64_t half = job->rotary / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = from[i], second = from[half + i];
        to[i] = first * cos[i] + second * sin[i];
        to[half + i] = second * cos[half + i] + first * sin[half + i];
    }
    for (int64_t i = job->rotary; i < job->dim; i++) to[i] = from[i];
}

/* Queries rotated into the output, where they wait; keys rotated and values into the cache. */
static void rotate_rows(void *item, int64_t begin, int64_t end) {
    const Attention *job = item;
    int64_t dim = job->dim;
    for (const Segment *segment = job->segments; segment->start < end; segment++) {
        int64_t last = segment->start + segment->length < end ? segment->start + segment->length : end;
        for (int64_t row = begin > segment->start ? begin : segment->start; row < last; row++) {
            int64_t position = segment->past + row - segment->start;
            for (int64_t head = 0; head < job->heads; head++)
                rotate(job, job->q + row * job->q_row + head * dim, position, job->out + (row * job->heads + head) * dim);
            for (int64_t head = 0; head < job->kv_heads; head++) {
                int64_t place = segment->slot * job->slot_size + head * job->head_size + position * dim;
                rotate(job, job->k + row * job->k_row + head * dim, position, job->keys + place);
                memcpy(job->values + place, job->v + row * job->v_row + head * dim, sizeof(float) * (size_t)dim);
            }
        }
        if (last == end) return;
    }
}

/* One head of one row over `count` keys. q becomes what it attends to; scores: room for `count`. */
INLINE void attend_one(const Attention *job, float *q, const float *keys, const float *values, int64_t count,
                       float *scores) {
    int64_t dim = job->dim;
    float most = -INFINITY;
    for (int64_t at = 0; at < count; at++) {
        float score = dot(q, keys + at * dim, dim) * job->scale;
        if (job->limit > 0) score = job->limit * tanhf(score / job->limit);
        scores[at] = score;
        most = score > most || isnan(score) ? score : most;
    }
    Floats sums = {0};
    int64_t at = 0;
    for (; at + LANES <= count; at += LANES) {
        Floats weights = exp_of(load(scores + at) - most);
        store(scores + at, weights);
        sums += weights;
    }
    float sum = sum_of(sums);
    for (; at < count; at++) sum += scores[at] = expf(scores[at] - most);
    float factor = 1.0f / sum;
    int64_t first = 0;
    for (; first + 4 * LANES <= dim; first += 4 * LANES) {
        Floats totals[4] = {{0}, {0}, {0}, {0}};
        for (at = 0; at < count; at++)
            for (int part = 0; part < 4; part++)
                totals[part] += scores[at] * load(values + at * dim + first + part * LANES);
        for (int part = 0; part < 4; part++) store(q + first + part * LANES, totals[part] * factor);
    }
    for (; first < dim; first++) {
        float total = 0;
        for (at = 0; at < count; at++) total += scores[at] * values[at * dim + first];
        q[first] = total * factor;
    }
}

enum {
    TOGETHER = LANES == 16 ? 3 : 1, /* heads that read the same keys, at a time: their sums fit the registers */
    SOME_KEYS = 128,                /* at a time: they, their values and the scores stay in the second cache */
};

/* Up to LANES rows that follow each other, a row to a lane, and some heads of them that read the same keys. */
typedef struct {
    const float *keys, *values;
    float *turned, *totals, *scores; /* [dim, heads, LANES] twice, [SOME_KEYS, heads, LANES] */
    int64_t first, position; /* of the keys from `keys` on: how many are done, and which is the first row's own */
    Floats most[TOGETHER], sum[TOGETHER], fade[TOGETHER];
} Lanes;

/* Scores of the next `count` keys, and by how much what was summed before fades beside them. */
INLINE void score_keys(const Attention *job, Lanes *lanes, int heads, int count) {
    int64_t dim = job->dim;
    enum { ALONE = 8, SHARED = 4 };
    int step = heads == 1 ? ALONE : SHARED;
    Floats most[TOGETHER];
    Ints positions = {0};
    for (int lane = 0; lane < LANES; lane++) positions[lane] = (int32_t)lanes->position + lane;
    for (int head = 0; head < heads; head++) most[head] = lanes->most[head];
    /* most keys are seen by all rows */
    int all_see = lanes->first + count - 1 <= lanes->position &&
                  (job->window <= 0 || lanes->first > lanes->position + LANES - 1 - job->window);
    for (int at = 0; at < count; at += step) {
        const float *key[ALONE];
        Floats score[TOGETHER][ALONE];
        for (int part = 0; part < step; part++) {
            key[part] = lanes->keys + (lanes->first + (at + part < count ? at + part : at)) * dim;
            for (int head = 0; head < heads; head++) score[head][part] = (Floats){0};
        }
        for (int64_t i = 0; i < dim; i++) {
            Floats query[TOGETHER];
            for (int head = 0; head < heads; head++) query[head] = load(lanes->turned + (i * heads + head) * LANES);
            for (int part = 0; part < step; part++)
                for (int head = 0; head < heads; head++) score[head][part] += query[head] * key[part][i];
        }
        for (int part = 0; part < step && at + part < count; part++)
            for (int head = 0; head < heads; head++) {
                Floats found = score[head][part];
                if (job->limit > 0)
                    for (int lane = 0; lane < LANES; lane++) found[lane] = job->limit * tanhf(found[lane] / job->limit);
                if (!all_see) {
                    Ints key_at = (Ints){0} + (int32_t)(lanes->first + at + part);
                    Ints hidden = key_at > positions;
                    if (job->window > 0) hidden |= key_at <= positions - (int32_t)job->window;
                    found = chosen(hidden, all_of(-INFINITY), found);
                }
                store(lanes->scores + ((at + part) * heads + head) * LANES, found);
                most[head] = chosen(found > most[head], found, most[head]);
            }
    }
    for (int head = 0; head < heads; head++) {
        lanes->fade[head] = chosen(lanes->most[head] < -3e38f, all_of(0), exp_of(lanes->most[head] - most[head]));
        lanes->most[head] = most[head];
        Floats sum = lanes->sum[head] * lanes->fade[head];
        for (int at = 0; at < count; at++) {
            float *place = lanes->scores + (at * heads + head) * LANES;
            Floats found = load(place), weight = chosen(found < -3e38f, all_of(0), exp_of(found - most[head]));
            store(place, weight);
            sum += weight;
        }
        lanes->sum[head] = sum;
    }
}

/* Values of these keys by their weights, for `width` of the numbers of a head from `first` on. */
INLINE void add_values(const Attention *job, Lanes *lanes, int heads, int count, int64_t first, int width) {
    Floats totals[TOGETHER][8];
    for (int part = 0; part < width; part++)
        for (int head = 0; head < heads; head++)
            totals[head][part] = load(lanes->totals + ((first + part) * heads + head) * LANES) * lanes->fade[head];
    const float *value = lanes->values + lanes->first * job->dim + first;
    for (int at = 0; at < count; at++, value += job->dim) {
        Floats weight[TOGETHER];
        for (int head = 0; head < heads; head++) weight[head] = load(lanes->scores + (at * heads + head) * LANES);
        for (int part = 0; part < width; part++)
            for (int head = 0; head < heads; head++) totals[head][part] += weight[head] * value[part];
    }
    for (int part = 0; part < width; part++)
        for (int head = 0; head < heads; head++)
            store(lanes->totals + ((first + part) * heads + head) * LANES, totals[head][part]);
}

/* q and what replaces it: the first of `rows` rows, q_row apart, and of `heads` heads. The first row is at `position`;
   keys and values are those from position `begin` on. */
INLINE void attend_lanes(const Attention *job, float *q, int64_t q_row, int rows, int heads, const float *keys,
                         const float *values, int64_t position, int64_t begin, float *room) {
    int64_t dim = job->dim, count = position + rows - begin;
    Lanes lanes = {.keys = keys, .values = values, .position = position - begin};
    lanes.turned = room, lanes.totals = room + dim * heads * LANES, lanes.scores = room + 2 * dim * heads * LANES;
    memset(lanes.totals, 0, sizeof(float) * (size_t)(dim * heads * LANES));
    for (int head = 0; head < heads; head++) {
        lanes.most[head] = all_of(-INFINITY), lanes.sum[head] = (Floats){0};
        for (int lane = 0; lane < LANES; lane++) {
            const float *row = q + (lane < rows ? lane : rows - 1) * q_row + head * dim;
            for (int64_t i = 0; i < dim; i++) lanes.turned[(i * heads + head) * LANES + lane] = row[i] * job->scale;
        }
    }
    for (; lanes.first < count; lanes.first += SOME_KEYS) {
        int some = count - lanes.first < SOME_KEYS ? (int)(count - lanes.first) : SOME_KEYS;
        score_keys(job, &lanes, heads, some);
        int64_t first = 0;
        for (; heads == 1 && first + 8 <= dim; first += 8) add_values(job, &lanes, heads, some, first, 8);
        for (; first + 4 <= dim; first += 4) add_values(job, &lanes, heads, some, first, 4);
        for (; first < dim; first++) add_values(job, &lanes, heads, some, first, 1);
    }
    for (int head = 0; head < heads; head++)
        for (int lane = 0; lane < rows; lane++) {
            float factor = 1.0f / lanes.sum[head][lane], *row = q + lane * q_row + head * dim;
            for (int64_t i = 0; i < dim; i++) row[i] = lanes.totals[(i * heads + head) * LANES + lane] * factor;
        }
}

/* Items are blocks of up to LANES rows of one segment, each for the heads that read the same keys. */
static void some_heads(void *item, int64_t first, int64_t last) {
    const Attention *job = item;
    int64_t dim = job->dim, group = job->heads / job->kv_heads, q_row = job->heads * dim, before = 0;
    float *room = NULL;
    int64_t size = 0;
    for (const Segment *segment = job->segments; before < last; segment++) {
        int64_t items = (segment->length + LANES - 1) / LANES * job->kv_heads;
        for (int64_t number = first > before ? first - before : 0; number < items && before + number < last; number++) {
            int64_t start = number / job->kv_heads * LANES, kv_head = number % job->kv_heads;
            int rows = (int)(segment->length - start < LANES ? segment->length - start : LANES);
            int64_t position = segment->past + start;
            int64_t begin = job->window > 0 && position >= job->window ? position - job->window + 1 : 0;
            int64_t needed = rows == 1 ? position + LANES : (2 * dim + SOME_KEYS) * TOGETHER * LANES;
            if (needed > size) {
                leave_room(room);
                size = needed;
                room = room_for((size_t)size);
            }
            int64_t place = segment->slot * job->slot_size + kv_head * job->head_size + begin * dim;
            const float *keys = job->keys + place, *values = job->values + place;
            float *q = job->out + ((segment->start + start) * job->heads + kv_head * group) * dim;
            int64_t left = group;
            for (; rows == 1 && left > 0; left--, q += dim)
                attend_one(job, q, keys, values, position + 1 - begin, room);
            for (; left >= TOGETHER; left -= TOGETHER, q += TOGETHER * dim)
                attend_lanes(job, q, q_row, rows, TOGETHER, keys, values, position, begin, room);
            for (; left > 0; left--, q += dim)
                attend_lanes(job, q, q_row, rows, 1, keys, values, position, begin, room);
        }
        before += items;
    }
    leave_room(room);
}

/* Rotate, write keys and values into the cache, attend causally over all that each segment's slot holds.

   q [rows, heads, dim], k and v [rows, kv_heads, dim], not rotated yet, with their rows so many numbers apart; cos, sin
   [positions, rotary]; keys, values: one layer of the cache. window 0: all; limit 0: no soft cap. out: contiguous. */
void loradesk_attend(const float *q, int64_t q_row, const float *k, int64_t k_row, const float *v, int64_t v_row,
                     const float *cos, const float *sin, int64_t rotary, float *keys, float *values, int64_t slot_size,
                     int64_t head_size, const Segment *segments, int count, int64_t heads, int64_t kv_heads, int64_t dim,
                     float scale, int64_t window, float limit, float *out, int threads) {
    Attention job = {.q = q, .k = k, .v = v, .cos = cos, .sin = sin, .keys = keys, .values = values, .out = out,
                     .segments = segments, .q_row = q_row, .k_row = k_row, .v_row = v_row, .slot_size = slot_size,
                     .head_size = head_size, .heads = heads, .kv_heads = kv_heads, .dim = dim, .rotary = rotary,
                     .window = window, .scale = scale, .limit = limit};
    int64_t rows = 0, items = 0, seen = 0;
    for (int number = 0; number < count; number++) {
        rows += segments[number].length;
        items += (segments[number].length + LANES - 1) / LANES * kv_heads;
        seen += segments[number].length * (segments[number].past + segments[number].length);
    }
    loradesk_run(rotate_rows, &job, rows, 1 + rows / (threads * 4), rows * heads * dim < WORTH_SHARING ? 1 : threads);
    loradesk_run(some_heads, &job, items, 1, seen * heads * dim < WORTH_SHARING ? 1 : threads);
}

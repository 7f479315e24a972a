/* Causal attention over the cache, in float32, in one call a layer. */

#include "calls.h"
#include "pool.h"

#include <math.h>

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

/* Queries are taken in two ways. Few of them that read the same keys: key by key, a product of two rows each. Many: a query
   to a lane of a vector, be it of another row or of another head. */
enum {
    FEW = LANES == 16 ? 4 : 2,      /* queries of a row at a time, whose sums fit the registers */
    PART = 256,                     /* keys of a task of few queries: there are more tasks than heads, for more threads */
    TOGETHER = LANES == 16 ? 3 : 1, /* vectors of queries at a time: their sums fit the registers */
    SOME_KEYS = 128,                /* for them at a time: they, their values and the scores stay in the second cache */
};

#define LOWEST (-3e38f) /* of the scores so far, where there are none; what is hidden is below it, and its weight 0 */

/* Some rows that follow each other, and the heads of them that read the same keys. */
typedef struct {
    float *q;                      /* of the first row and head; attention replaces it */
    const float *keys, *values;    /* from the first position on that any row sees */
    int64_t position, first, last; /* of the first row, and of the task's keys, counted from there */
    int rows, parts;               /* parts: tasks that share these rows, this one first; 0 where another is first */
    float *part;                   /* few queries: [rows, heads, dim + 2]: sums of values, highest score, sum of weights */
} Task;

/* Where a task's query lies, counted row by row and head by head of each; its result takes its place. */
INLINE float *query_at(const Attention *job, const Task *task, int64_t query) {
    int64_t group = job->heads / job->kv_heads;
    return task->q + (query / group * job->heads + query % group) * job->dim;
}

INLINE Floats capped(const Attention *job, Floats scores) {
    return job->limit > 0 ? job->limit * tanh_of(scores / job->limit) : scores;
}

/* Some heads of one row over `count` keys, at most PART. part: [heads, dim + 2]; scores: room for [heads, PART]. */
INLINE void attend_keys(const Attention *job, const float *q, int heads, const float *keys, const float *values,
                        int count, float *scores, float *part) {
    int64_t dim = job->dim;
    for (int at = 0; at < count; at += 4) {
        const float *key[4];
        Floats sums[FEW][4];
        for (int i = 0; i < 4; i++) {
            key[i] = keys + (at + i < count ? at + i : at) * dim;
            for (int head = 0; head < heads; head++) sums[head][i] = (Floats){0};
        }
        /* a long cache comes from memory, and what is read in order is not fetched far enough ahead by itself */
        for (int64_t byte = 0; byte < 16 * dim; byte += 64) {
            __builtin_prefetch((const char *)(keys + at * dim) + 8192 + byte);
            __builtin_prefetch((const char *)(values + at * dim) + byte);
        }
        int64_t place = 0;
        for (; place + LANES <= dim; place += LANES)
            for (int i = 0; i < 4; i++)
                for (int head = 0; head < heads; head++)
                    sums[head][i] += load(q + head * dim + place) * load(key[i] + place);
        for (int head = 0; head < heads; head++) store_four_sums(scores + head * PART + at, sums[head]);
        for (; place < dim; place++)
            for (int i = 0; i < 4; i++)
                for (int head = 0; head < heads; head++)
                    scores[head * PART + at + i] += q[head * dim + place] * key[i][place];
    }
    for (int head = 0; head < heads; head++) {
        float *found = scores + head * PART, *own = part + head * (dim + 2);
        int at = 0;
        for (; at < count; at += LANES) store(found + at, capped(job, load(found + at) * job->scale));
        for (int hidden = count; hidden < at; hidden++) found[hidden] = -INFINITY;
        Floats most = all_of(LOWEST), sum = {0};
        for (at = 0; at < count; at += LANES) most = larger(load(found + at), most);
        own[dim] = most_of(most);
        for (at = 0; at < count; at += LANES) {
            Floats weights = exp_of(load(found + at) - own[dim]);
            store(found + at, weights);
            sum += weights;
        }
        own[dim + 1] = sum_of(sum);
    }
    int64_t place = 0;
    for (; place + 4 * LANES <= dim; place += 4 * LANES) {
        Floats totals[FEW][4] = {{{0}}};
        for (int at = 0; at < count; at++)
            for (int i = 0; i < 4; i++)
                for (int head = 0; head < heads; head++)
                    totals[head][i] += scores[head * PART + at] * load(values + at * dim + place + i * LANES);
        for (int i = 0; i < 4; i++)
            for (int head = 0; head < heads; head++) store(part + head * (dim + 2) + place + i * LANES, totals[head][i]);
    }
    for (; place + LANES <= dim; place += LANES) {
        Floats totals[FEW] = {{0}};
        for (int at = 0; at < count; at++)
            for (int head = 0; head < heads; head++)
                totals[head] += scores[head * PART + at] * load(values + at * dim + place);
        for (int head = 0; head < heads; head++) store(part + head * (dim + 2) + place, totals[head]);
    }
    for (; place < dim; place++)
        for (int head = 0; head < heads; head++) {
            float total = 0;
            for (int at = 0; at < count; at++) total += scores[head * PART + at] * values[at * dim + place];
            part[head * (dim + 2) + place] = total;
        }
}

/* Few queries over the task's keys, into `part`. */
static void attend_few(const Attention *job, const Task *task, float *room) {
    int64_t dim = job->dim, group = job->heads / job->kv_heads;
    for (int row = 0; row < task->rows; row++) {
        int64_t last = task->position + row + 1, first = job->window > 0 && last > job->window ? last - job->window : 0;
        first = first > task->first ? first : task->first, last = last < task->last ? last : task->last;
        int count = last > first ? (int)(last - first) : 0;
        const float *keys = task->keys + first * dim, *values = task->values + first * dim;
        const float *q = task->q + row * job->heads * dim;
        float *part = task->part + row * group * (dim + 2);
        int64_t left = group;
        for (; left >= FEW; left -= FEW, q += FEW * dim, part += FEW * (dim + 2))
            attend_keys(job, q, FEW, keys, values, count, room, part);
        if (left == 3) attend_keys(job, q, FEW < 3 ? FEW : 3, keys, values, count, room, part);
        if (left == 2) attend_keys(job, q, 2, keys, values, count, room, part);
        if (left == 1) attend_keys(job, q, 1, keys, values, count, room, part);
    }
}

/* What the tasks that share these rows found becomes one. */
static void join_parts(const Attention *job, const Task *task) {
    int64_t dim = job->dim, group = job->heads / job->kv_heads;
    for (int64_t query = 0; query < task->rows * group; query++) {
        float *out = query_at(job, task, query), most = LOWEST, sum = 0;
        for (int i = 0; i < task->parts; i++) {
            float found = task[i].part[query * (dim + 2) + dim];
            most = found > most ? found : most;
        }
        memset(out, 0, sizeof(float) * (size_t)dim);
        for (int i = 0; i < task->parts; i++) {
            const float *part = task[i].part + query * (dim + 2);
            float factor = expf(part[dim] - most);
            sum += factor * part[dim + 1];
            for (int64_t place = 0; place < dim; place++) out[place] += factor * part[place];
        }
        for (int64_t place = 0; place < dim; place++) out[place] /= sum;
    }
}

/* Up to TOGETHER vectors of queries over the keys of a task. */
typedef struct {
    const float *keys, *values;
    float *turned, *totals, *scores; /* [dim, vectors, LANES] twice, [SOME_KEYS, vectors, LANES] */
    int64_t first, lowest, highest; /* of the keys: how many are done, and which are the first and the last row's own */
    Ints positions[TOGETHER];
    Floats most[TOGETHER], sum[TOGETHER], fade[TOGETHER];
} Lanes;

/* Scores of the next `count` keys, and by how much what was summed before fades beside them. */
INLINE void score_keys(const Attention *job, Lanes *lanes, int vectors, int count) {
    int64_t dim = job->dim;
    enum { STEP = 8 }; /* keys at a time */
    Floats most[TOGETHER];
    for (int i = 0; i < vectors; i++) most[i] = lanes->most[i];
    /* most keys are seen by all rows */
    int all_see = lanes->first + count - 1 <= lanes->lowest &&
                  (job->window <= 0 || lanes->first > lanes->highest - job->window);
    for (int at = 0; at < count; at += STEP) {
        const float *key[STEP];
        Floats score[TOGETHER][STEP];
        for (int part = 0; part < STEP; part++) {
            key[part] = lanes->keys + (lanes->first + (at + part < count ? at + part : at)) * dim;
            for (int i = 0; i < vectors; i++) score[i][part] = (Floats){0};
        }
        UNROLLED
        for (int64_t place = 0; place < dim; place++) {
            Floats query[TOGETHER];
            for (int i = 0; i < vectors; i++) query[i] = load(lanes->turned + (place * vectors + i) * LANES);
            for (int part = 0; part < STEP; part++)
                for (int i = 0; i < vectors; i++) score[i][part] += query[i] * key[part][place];
        }
        for (int part = 0; part < STEP && at + part < count; part++)
            for (int i = 0; i < vectors; i++) {
                Floats found = capped(job, score[i][part]);
                if (!all_see) {
                    Ints key_at = (Ints){0} + (int32_t)(lanes->first + at + part);
                    Ints hidden = key_at > lanes->positions[i];
                    if (job->window > 0) hidden |= key_at <= lanes->positions[i] - (int32_t)job->window;
                    found = chosen(hidden, all_of(-INFINITY), found);
                }
                store(lanes->scores + ((at + part) * vectors + i) * LANES, found);
                most[i] = larger(found, most[i]);
            }
    }
    for (int i = 0; i < vectors; i++) {
        lanes->fade[i] = exp_of(lanes->most[i] - most[i]);
        lanes->most[i] = most[i];
        Floats sum = lanes->sum[i] * lanes->fade[i];
        for (int at = 0; at < count; at++) {
            float *place = lanes->scores + (at * vectors + i) * LANES;
            Floats weight = exp_of(load(place) - most[i]);
            store(place, weight);
            sum += weight;
        }
        lanes->sum[i] = sum;
    }
}

/* Values of these keys by their weights, for `width` of the numbers of a head from `first` on. */
INLINE void add_values(const Attention *job, Lanes *lanes, int vectors, int count, int64_t first, int width) {
    Floats totals[TOGETHER][8];
    for (int part = 0; part < width; part++)
        for (int i = 0; i < vectors; i++)
            totals[i][part] = load(lanes->totals + ((first + part) * vectors + i) * LANES) * lanes->fade[i];
    const float *value = lanes->values + lanes->first * job->dim + first;
    UNROLLED
    for (int at = 0; at < count; at++, value += job->dim) {
        Floats weight[TOGETHER];
        for (int i = 0; i < vectors; i++) weight[i] = load(lanes->scores + (at * vectors + i) * LANES);
        for (int part = 0; part < width; part++)
            for (int i = 0; i < vectors; i++) totals[i][part] += weight[i] * value[part];
    }
    for (int part = 0; part < width; part++)
        for (int i = 0; i < vectors; i++)
            store(lanes->totals + ((first + part) * vectors + i) * LANES, totals[i][part]);
}

/* The task's queries from number `first` on, row by row and head by head of each, as many as the vectors hold. */
INLINE void attend_lanes(const Attention *job, const Task *task, int first, int vectors, float *room) {
    int64_t dim = job->dim, group = job->heads / job->kv_heads;
    int queries = (int)(task->rows * group) - first, filled = vectors * LANES;
    filled = queries < filled ? queries : filled;
    Lanes lanes = {.keys = task->keys, .values = task->values};
    lanes.lowest = task->position + first / group, lanes.highest = task->position + (first + filled - 1) / group;
    lanes.turned = room, lanes.totals = room + dim * vectors * LANES, lanes.scores = room + 2 * dim * vectors * LANES;
    memset(lanes.totals, 0, sizeof(float) * (size_t)(dim * vectors * LANES));
    for (int at = 0; at < vectors * LANES; at++) {
        int query = first + (at < filled ? at : filled - 1); /* lanes that are left over do what the last one does */
        const float *q = query_at(job, task, query);
        for (int64_t place = 0; place < dim; place++)
            lanes.turned[place * vectors * LANES + at] = q[place] * job->scale;
        lanes.positions[at / LANES][at % LANES] = (int32_t)(task->position + query / group);
    }
    for (int i = 0; i < vectors; i++) lanes.most[i] = all_of(LOWEST), lanes.sum[i] = (Floats){0};
    int64_t last = lanes.highest + 1;
    for (; lanes.first < last; lanes.first += SOME_KEYS) {
        int count = last - lanes.first < SOME_KEYS ? (int)(last - lanes.first) : SOME_KEYS;
        score_keys(job, &lanes, vectors, count);
        int64_t place = 0;
        for (; vectors == 1 && place + 8 <= dim; place += 8) add_values(job, &lanes, vectors, count, place, 8);
        for (; place + 4 <= dim; place += 4) add_values(job, &lanes, vectors, count, place, 4);
        for (; place < dim; place++) add_values(job, &lanes, vectors, count, place, 1);
    }
    for (int at = 0; at < filled; at++) {
        float *out = query_at(job, task, first + at);
        float factor = 1.0f / lanes.sum[at / LANES][at % LANES];
        for (int64_t place = 0; place < dim; place++) out[place] = lanes.totals[place * vectors * LANES + at] * factor;
    }
}

static void attend_many(const Attention *job, const Task *task, float *room) {
    int queries = task->rows * (int)(job->heads / job->kv_heads), first = 0;
    for (; queries - first > (TOGETHER - 1) * LANES; first += TOGETHER * LANES)
        attend_lanes(job, task, first, TOGETHER, room);
    if (TOGETHER > 2 && queries - first > LANES) attend_lanes(job, task, first, TOGETHER > 2 ? 2 : 1, room);
    else if (queries > first) attend_lanes(job, task, first, 1, room);
}

/* Whether so many queries take longer in the lanes of vectors, because too many of these would be left over. */
INLINE int are_few(int64_t queries) { return 4 * queries <= 3 * LANES * ((queries + LANES - 1) / LANES); }

typedef struct {
    const Attention *attention;
    const Task *tasks;
} Tasks;

static void some_tasks(void *item, int64_t first, int64_t last) {
    const Tasks *all = item;
    const Attention *job = all->attention;
    int64_t many = (2 * job->dim + SOME_KEYS) * TOGETHER * LANES;
    float *room = room_for((size_t)(many > FEW * PART ? many : FEW * PART));
    for (const Task *task = all->tasks + first; task < all->tasks + last; task++) {
        if (task->part) attend_few(job, task, room);
        else attend_many(job, task, room);
        if (task->part && task->parts == 1) join_parts(job, task);
    }
    leave_room(room);
}

static void some_joins(void *item, int64_t first, int64_t last) {
    const Tasks *all = item;
    for (const Task *task = all->tasks + first; task < all->tasks + last; task++)
        if (task->parts > 1) join_parts(all->attention, task);
}

/* The tasks of all segments, where `tasks` and `parts` have the room, else only how much they take. parts: floats. */
static int64_t lay_out(const Attention *job, int count, Task *tasks, float *parts, int64_t *floats) {
    int64_t dim = job->dim, group = job->heads / job->kv_heads, number = 0;
    *floats = 0;
    for (const Segment *segment = job->segments; segment < job->segments + count; segment++)
        for (int64_t start = 0; start < segment->length; start += LANES) {
            int rows = (int)(segment->length - start < LANES ? segment->length - start : LANES);
            int64_t position = segment->past + start;
            int64_t begin = job->window > 0 && position >= job->window ? position - job->window + 1 : 0;
            int64_t keys = position + rows - begin, size = rows * group * (dim + 2);
            int is_few = are_few(rows * group);
            int of_these = is_few ? (int)((keys + PART - 1) / PART) : 1;
            for (int64_t head = 0; head < job->kv_heads; head++)
                for (int part = 0; part < of_these; part++, number++, *floats += is_few ? size : 0) {
                    if (!tasks) continue;
                    int64_t place = segment->slot * job->slot_size + head * job->head_size + begin * dim;
                    tasks[number] = (Task){
                        .q = job->out + ((segment->start + start) * job->heads + head * group) * dim,
                        .keys = job->keys + place, .values = job->values + place, .position = position - begin,
                        .first = (int64_t)part * PART, .last = part + 1 < of_these ? (part + 1) * (int64_t)PART : keys,
                        .rows = rows, .parts = part ? 0 : of_these, .part = is_few ? parts + *floats : NULL,
                    };
                }
        }
    return number;
}

void loradesk_attend(const float *q, int64_t q_row, const float *k, int64_t k_row, const float *v, int64_t v_row,
                     const float *cos, const float *sin, int64_t rotary, float *keys, float *values, int64_t slot_size,
                     int64_t head_size, const Segment *segments, int count, int64_t heads, int64_t kv_heads, int64_t dim,
                     float scale, int64_t window, float limit, float *out, int threads) {
    Attention job = {.q = q, .k = k, .v = v, .cos = cos, .sin = sin, .keys = keys, .values = values, .out = out,
                     .segments = segments, .q_row = q_row, .k_row = k_row, .v_row = v_row, .slot_size = slot_size,
                     .head_size = head_size, .heads = heads, .kv_heads = kv_heads, .dim = dim, .rotary = rotary,
                     .window = window, .scale = scale, .limit = limit};
    int64_t rows = 0, seen = 0, floats;
    for (int number = 0; number < count; number++) {
        rows += segments[number].length;
        seen += segments[number].length * (segments[number].past + segments[number].length);
    }
    int shared = seen * heads * dim < WORTH_SHARING ? 1 : threads;
    int64_t number = lay_out(&job, count, NULL, NULL, &floats);
    float *parts = room_for((size_t)floats);
    Task *tasks = (Task *)room_for((size_t)number * sizeof(Task) / sizeof(float));
    lay_out(&job, count, tasks, parts, &floats);
    Tasks all = {&job, tasks};
    loradesk_run(rotate_rows, &job, rows, 1 + rows / (threads * 4), rows * heads * dim < WORTH_SHARING ? 1 : threads);
    loradesk_run(some_tasks, &all, number, 1, shared);
    int has_parts = 0;
    for (int64_t i = 0; i < number && !has_parts; i++) has_parts = tasks[i].parts > 1;
    if (has_parts) loradesk_run(some_joins, &all, number, 1 + number / (threads * 4), floats < WORTH_SHARING ? 1 : threads);
    leave_room((float *)tasks);
    leave_room(parts);
}

/* A step of decoding as a tape: what a decoder does with one token of each of n rows, from the embedding to the last
   norm, written down once and run in one call and one parallel region. Between two operations threads meet at a
   barrier, which takes a tenth of what a call from Python does.
*/
#include <omp.h>

#include "common.h"

enum { NORM = 0, LINEAR = 1, ATTEND = 2, ACTIVATE = 3, ADD = 4 };

/* Attention of new tokens over lanes: q, k and v stand in rows of the step's x, `apart` numbers from row to row. Keys and
   values of a lane are (places, key heads, size), float32 or (half) bfloat16. */
typedef struct {
    long heads, kv_heads, size, turning, window; /* window 0: none */
    int interleaved, norm_last, half;
    float scale, softcap, eps;
    long q, k, v; /* where they begin in a row */
    const float *q_norm, *k_norm, *sinks; /* each may be NULL */
    void *keys, *values;
    const float *cos, *sin; /* (n, turning) */
} Heads;

/* kind: NORM 0 rms, 1 layer; LINEAR 1 to add to y; ACTIVATE the function. x and y (n, apart of theirs). */
typedef struct {
    int op, kind;
    long width, x_apart, y_apart;
    float eps;
    const float *x, *up, *w, *b;
    float *y;
    const Matrix *matrix;
    const Heads *heads;
} Step;

static void prepared(const Heads *h, float *head, const float *norm, const float *cos, const float *sin) {
    if (norm && !h->norm_last) rms_row(head, norm, head, h->size, h->eps);
    if (h->turning) turn_head(head, cos, sin, head, h->size, h->turning, h->interleaved);
    if (norm && h->norm_last) rms_row(head, norm, head, h->size, h->eps);
}

/* `size` numbers to the places from `at` on, rounded to the nearest where they are kept in bfloat16. */
static void keep(int half, const float *x, void *to, long at, long size) {
    if (!half) {
        memcpy((float *)to + at, x, sizeof(float) * size);
        return;
    }
    for (long i = 0; i < size; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        ((uint16_t *)to)[at + i] = x[i] != x[i] ? 0x7fc0 : (uint16_t)rounded;
    }
}

/* held: tokens of each row before this one. start: the place of each row's first token. score: room of this thread. */
static void attend_for(const Step *step, long n, const long *held, const long *start, float *score) {
    const Heads *h = step->heads;
    const long group = h->heads / h->kv_heads, step_size = h->kv_heads * h->size;
#pragma omp for schedule(static)
    for (long each = 0; each < n * h->kv_heads; each++) {
        const long row = each / h->kv_heads, head = each % h->kv_heads;
        float *x = (float *)step->x + row * step->x_apart;
        float *q = x + h->q + head * group * h->size, *k = x + h->k + head * h->size;
        const float *v = x + h->v + head * h->size;
        const float *cos = h->cos + row * h->turning, *sin = h->sin + row * h->turning;
        for (long g = 0; g < group; g++) prepared(h, q + g * h->size, h->q_norm, cos, sin);
        prepared(h, k, h->k_norm, cos, sin);
        const long first = h->window && held[row] + 1 > h->window ? held[row] + 1 - h->window : 0;
        const long from = (start[row] + first) * step_size + head * h->size;
        const long now = (start[row] + held[row]) * step_size + head * h->size;
        keep(h->half, k, h->keys, now, h->size);
        keep(h->half, v, h->values, now, h->size);
        const Keys keys = {held[row] + 1 - first, h->size, step_size, step_size, h->scale, h->softcap, h->half};
        const long bytes = h->half ? sizeof(uint16_t) : sizeof(float);
        attend_head(q, (char *)h->keys + bytes * from, (char *)h->values + bytes * from, NULL,
                    step->y + row * step->y_apart + head * group * h->size, score, group, &keys,
                    h->sinks ? h->sinks + head * group : NULL);
    }
}

static void run_for(const Step *step, long n, const long *held, const long *start, void *memory, float *score) {
    switch (step->op) {
    case NORM:
#pragma omp for schedule(static)
        for (long row = 0; row < n; row++) {
            const float *x = step->x + row * step->x_apart;
            float *y = step->y + row * step->y_apart;
            if (step->kind)
                layer_row(x, step->w, step->b, y, step->width, step->eps);
            else
                rms_row(x, step->w, y, step->width, step->eps);
        }
        break;
    case LINEAR: {
        const Matrix *m = step->matrix;
        const Target to = {step->y, step->y_apart, step->kind};
        if (m->kind == FLOAT32 || m->kind == BFLOAT16) {
            floats_for(m, step->x, to, n);
        } else {
            const long group = m->kind == INT4 ? m->group : m->in;
            const Rows rows = rows_in(memory, n, m->in, group);
            quantise_for(rows, step->x, n, m->in, group);
            integers_for(m, rows, to, n);
        }
        break;
    }
    case ATTEND: attend_for(step, n, held, start, score); break;
    case ACTIVATE: activate_for(step->kind, step->x, step->up, step->y, n, step->width, step->x_apart); break;
    case ADD:
#pragma omp for schedule(static)
        for (long i = 0; i < n * step->width; i++) step->y[i] += step->x[i];
    }
}

/* Run `count` steps for n rows in `threads` threads. Returns 1 when there is no memory, before anything is done. */
int run_tape(const Step *steps, long count, long n, const long *held, const long *start, long threads) {
    size_t bytes = 0, longest = 0;
    for (long row = 0; row < n; row++) longest = (size_t)held[row] > longest ? (size_t)held[row] : longest;
    for (long i = 0; i < count; i++) {
        const Matrix *m = steps[i].op == LINEAR ? steps[i].matrix : NULL;
        const size_t wanted = m ? rows_bytes(n, m->in, m->kind == INT4 ? m->group : m->in) : 0;
        bytes = wanted > bytes ? wanted : bytes;
    }
    const size_t own = 4 * (longest + 32); /* scores of four queries */
    void *memory = room(0, bytes);
    float *scores = room(2, sizeof(float) * own * threads);
    if (!memory || !scores) return 1;
#pragma omp parallel num_threads(threads)
    for (long i = 0; i < count; i++) run_for(steps + i, n, held, start, memory, scores + own * omp_get_thread_num());
    return 0;
}

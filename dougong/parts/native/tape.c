/* A decoder as a tape: what it does with n tokens, from the embedding to the last norm, written down once and run in one
   call and one parallel region. Tokens are those of n texts, one each, whose keys and values lie in lanes; or many of a
   few texts. Between two operations threads wait until the first is done, a tenth of what a call from Python takes.
*/
#include <math.h>

#include "common.h"

enum { NORM = 0, LINEAR = 1, ATTEND = 2, ACTIVATE = 3, ADD = 4, GATED = 5, PICK = 6 };

/* kind: NORM 0 rms, 1 layer; LINEAR 1 to add to y; ACTIVATE and GATED the function; PICK 1: the last one. x and y (n, apart
   of theirs). */
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

/* Numbers to bytes, which `factor` times gives back: integers from -127 to 127, or floats of 4 bits and 3 up to 448. */
static void keep_bytes(int kept, const float *x, int8_t *to, uint16_t *factor, long size) {
    __m512 most = _mm512_setzero_ps();
    int none = 0;
    for (long i = 0; i < size; i += 16) {
        const __m512 some = _mm512_maskz_loadu_ps(lanes(size - i), x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(some));
        none |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
    }
    const float largest = kept == BYTES ? 127.0f : 448.0f, scale = fmaxf(_mm512_reduce_max_ps(most) / largest, 1e-30f);
    uint32_t bits;
    memcpy(&bits, &scale, 4);
    *factor = none ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    const __m512 by = _mm512_set1_ps(factor_at(factor, 0)), top = _mm512_set1_ps(largest);
    for (long i = 0; i < size; i += 16) {
        const __mmask16 some = lanes(size - i);
        __m512 value = _mm512_div_ps(_mm512_maskz_loadu_ps(some, x + i), by);
        value = _mm512_max_ps(_mm512_min_ps(value, top), _mm512_sub_ps(_mm512_setzero_ps(), top));
        __m512i code = _mm512_cvtps_epi32(value); /* to the nearest, of two equally near the even one */
        if (kept == BYTES_FLOAT) {
            const __m512i all = _mm512_castps_si512(_mm512_mul_ps(value, _mm512_set1_ps(0x1p-120f)));
            const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(all, 24), _mm512_set1_epi32(128));
            const __m512i plain = _mm512_and_si512(all, _mm512_set1_epi32(0x7fffffff));
            const __m512i even = _mm512_and_si512(_mm512_srli_epi32(plain, 20), _mm512_set1_epi32(1));
            const __m512i up = _mm512_add_epi32(plain, _mm512_add_epi32(even, _mm512_set1_epi32(0x7ffff)));
            code = _mm512_or_si512(_mm512_srli_epi32(up, 20), sign);
        }
        _mm_mask_storeu_epi8(to + i, some, _mm512_cvtepi32_epi8(code));
    }
}

/* `size` numbers to the places from `at` on: in bfloat16 rounded to the nearest, in bytes with a factor at its place. */
static void keep(int kept, const float *x, void *to, uint16_t *factors, long at, long size) {
    if (kept == FLOATS) {
        memcpy((float *)to + at, x, sizeof(float) * size);
        return;
    }
    if (kept >= BYTES) {
        keep_bytes(kept, x, (int8_t *)to + at, factors + at / size, size);
        return;
    }
    for (long i = 0; i < size; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        ((uint16_t *)to)[at + i] = x[i] != x[i] ? 0x7fc0 : (uint16_t)rounded;
    }
}

/* A token's key and value in one head to their place, and what is done to its queries and key before. */
void take_token(const Heads *h, float *x, long row, long head, long place) {
    const long group = h->heads / h->kv_heads, at = (place * h->kv_heads + head) * h->size;
    float *q = x + h->q + head * group * h->size, *k = x + h->k + head * h->size;
    const float *cos = h->cos + row * h->turning, *sin = h->sin + row * h->turning;
    for (long g = 0; g < group; g++) prepared(h, q + g * h->size, h->q_norm, cos, sin);
    prepared(h, k, h->k_norm, cos, sin);
    keep(h->kept, k, h->keys, h->key_factors, at, h->size);
    keep(h->kept, x + h->v + head * h->size, h->values, h->value_factors, at, h->size);
}

/* held: tokens of each row before this one. start: the place of each row's first token. score: room of this thread. */
static void attend_for(Hand *hand, const Step *step, long n, const long *held, const long *start, float *score) {
    const Heads *h = step->heads;
    const long group = h->heads / h->kv_heads, step_size = h->kv_heads * h->size;
    EACH(each, n * h->kv_heads, 1, hand) {
        const long row = each / h->kv_heads, head = each % h->kv_heads;
        float *x = (float *)step->x + row * step->x_apart;
        take_token(h, x, row, head, start[row] + held[row]);
        const long first = h->window && held[row] + 1 > h->window ? held[row] + 1 - h->window : 0;
        const long from = (start[row] + first) * step_size + head * h->size;
        const long bytes = kept_bytes(h->kept), factor = (start[row] + first) * h->kv_heads + head;
        const Keys keys = {held[row] + 1 - first, h->size, step_size, step_size, h->scale, h->softcap, h->kept,
                           h->key_factors + factor, h->value_factors + factor, h->kv_heads};
        attend_head(x + h->q + head * group * h->size, (char *)h->keys + bytes * from, (char *)h->values + bytes * from, NULL,
                    step->y + row * step->y_apart + head * group * h->size, score, group, &keys,
                    h->sinks ? h->sinks + head * group : NULL);
    }
}

/* The wanted rows to the front. They ascend, so none is overwritten before it has moved. */
static void pick(Hand *hand, const Step *step, const Texts *texts) {
    EACH(all, 1, 1, hand)
    for (long row = 0; row < texts->picked; row++)
        memmove(step->y + row * step->y_apart, step->x + texts->pick[row] * step->x_apart, sizeof(float) * step->width);
}

/* What a run works on: n rows, which are single tokens in lanes (held, start) or tokens of texts. */
typedef struct {
    const long *held, *start;
    const Texts *texts;
    void *rows;      /* room for the rows of a product as integers */
    float *together; /* for keys and values of a text */
    float *own;      /* of this thread: scores, or a tile's products */
} Run;

static void run_for(Hand *hand, const Step *step, long n, const Run *run) {
    switch (step->op) {
    case NORM:
        EACH(row, n, 1, hand) {
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
        const Target to = {step->y, step->y_apart, step->kind, 0};
        if (m->kind == FLOAT32 || m->kind == BFLOAT16) {
            floats_for(hand, m, step->x, to, n);
        } else {
            const long group = m->kind == INT4 ? m->group : m->in;
            const Rows rows = rows_in(run->rows, n, m->in, group);
            quantise_for(hand, rows, step->x, n, m->in, group);
            integers_for(hand, m, rows, to, n);
        }
        break;
    }
    case GATED: {
        const Matrix *m = step->matrix;
        const long group = m->kind == INT4 ? m->group : m->in;
        const Rows rows = rows_in(run->rows, n, m->in, group);
        quantise_for(hand, rows, step->x, n, m->in, group);
        gated_for(hand, m, rows, step->kind, step->y, run->own, n);
        break;
    }
    case ATTEND:
        if (run->texts)
            attend_texts_for(hand, step->heads, (float *)step->x, step->x_apart, step->y, run->texts, run->together, run->own);
        else
            attend_for(hand, step, n, run->held, run->start, run->own);
        break;
    case ACTIVATE: activate_for(hand, step->kind, step->x, step->up, step->y, n, step->width, step->x_apart); break;
    case ADD:
        EACH(row, n, 8, hand)
        for (long i = 0; i < step->width; i++) step->y[row * step->width + i] += step->x[row * step->width + i];
    }
}

/* Run `count` steps for n rows in `threads` threads. held and start serve single tokens, texts (NULL then) others. Returns
   1 when there is no memory, before anything is done. */
int run_tape(const Step *steps, long count, long n, const long *held, const long *start, const Texts *texts,
             long threads) {
    size_t bytes = 0, longest = 0, together = 0, loops = 0;
    for (long row = 0; row < (texts ? texts->texts : n); row++) {
        const size_t keys = (texts ? texts->held : held)[row] + (texts ? texts->count[row] : 1);
        longest = keys > longest ? keys : longest;
    }
    for (long i = 0; i < count; i++) {
        const Matrix *m = steps[i].op == LINEAR || steps[i].op == GATED ? steps[i].matrix : NULL;
        const size_t wanted = m ? rows_bytes(n, m->in, m->kind == INT4 ? m->group : m->in) : 0;
        bytes = wanted > bytes ? wanted : bytes;
        const size_t numbers = texts && steps[i].op == ATTEND ? texts_room(steps[i].heads, texts) : 0;
        together = numbers > together ? numbers : together;
        loops += m ? 2 : texts && steps[i].op == ATTEND ? 3 * texts->texts : 1;
    }
    const size_t scores = texts ? QUERIES * (longest + KEYS) : 4 * (longest + 32); /* of as many queries */
    const size_t own = (scores > 128 * (size_t)n ? scores : 128 * (size_t)n) + 16;
    bytes = (bytes + 63) / 64 * 64;
    char *memory = room(0, bytes + sizeof(float) * together);
    float *each = room(2, sizeof(float) * own * threads);
    Counter *counters = room(3, sizeof(Counter) * COUNTERS(loops, threads));
    if (!memory || !each || !counters) return 1;
    memset(counters, 0, sizeof(Counter) * COUNTERS(loops, threads));
#pragma omp parallel num_threads(threads)
    {
        Hand hand = HAND(counters);
        const Run run = {held, start, texts, memory, (float *)(memory + bytes), each + own * omp_get_thread_num()};
        long rows = n;
        for (long i = 0; i < count; i++) {
            if (steps[i].op != PICK) {
                run_for(&hand, steps + i, rows, &run);
            } else if (texts) {
                pick(&hand, steps + i, texts);
                if (steps[i].kind) rows = texts->picked;
            }
        }
    }
    return 0;
}

/* What the sources share. Everything that is named `..._for` is called by all threads of a parallel region, each with its
   hand: they divide the work of every loop and leave it when all of it is done. */
#ifndef DOUGONG_COMMON_H
#define DOUGONG_COMMON_H

#include <immintrin.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8") /* else arrays of sums end up in memory, or in twice the moves */
#define LOCAL __attribute__((visibility("hidden")))

/* How threads share a loop. Each takes pieces of its own part of the range, from one end to the other, as memory likes it;
   then what is left of others'. A loop is over when its work is done, not when all threads have come: one that the
   system has put aside holds the others up only if it has a piece in hand, and finds nothing to do when it returns. At
   barriers everybody would wait for it, some ten times a layer. */
typedef struct {
    _Alignas(64) atomic_long n; /* a line of the cache each */
} Counter;

/* A thread's place among `threads`, and the counters of the loop it comes to next: threads + 1 a loop, all 0 at first. */
typedef struct {
    Counter *next;
    long me, threads;
} Hand;

typedef struct {
    Counter *done, *taken; /* pieces of all, and of each part */
    long me, threads, count, grain, part, from, to, mine;
} Share;

INLINE Share share(Hand *hand, long count, long grain) {
    const Share all = {hand->next, hand->next + 1, hand->me, hand->threads, count, grain, 0, 0, 0, 0};
    hand->next += hand->threads + 1;
    return all;
}

/* A loop whose pieces are taken in order, whoever comes: where some are much larger than others. */
INLINE Share queue(Hand *hand, long count) {
    Share all = share(hand, count, 1);
    all.me = 0, all.threads = 1;
    return all;
}

INLINE int take(Share *s) {
    s->mine += s->to - s->from;
    for (; s->part < s->threads; s->part++) {
        const long part = (s->me + s->part) % s->threads, start = s->count * part / s->threads;
        const long size = s->count * (part + 1) / s->threads - start;
        if (atomic_load_explicit(&s->taken[part].n, memory_order_relaxed) >= size) continue;
        const long at = atomic_fetch_add_explicit(&s->taken[part].n, s->grain, memory_order_relaxed);
        if (at >= size) continue;
        s->from = start + at;
        s->to = start + (at + s->grain < size ? at + s->grain : size);
        return 1;
    }
    if (s->mine) atomic_fetch_add_explicit(&s->done->n, s->mine, memory_order_acq_rel);
    for (long turn = 0; atomic_load_explicit(&s->done->n, memory_order_acquire) < s->count; turn++) {
        if (turn < 1000)
            _mm_pause();
        else
            sched_yield();
    }
    return 0;
}

/* for (each = 0; each < count; each++), `grain` at a time, divided among those who hold hands. */
#define EACH(each, count, grain, hand)                                                                                 \
    for (Share share_of_##each = share(hand, count, grain); take(&share_of_##each);)                                   \
        for (long each = share_of_##each.from; each < share_of_##each.to; each++)

/* The hands of a region of at most `most` threads that comes to `loops` loops: counters for it, and a thread's own. */
#define COUNTERS(loops, most) ((size_t)(loops) * ((most) + 1))
#define HAND(counters) {counters, omp_get_thread_num(), omp_get_num_threads()}

INLINE __mmask16 lanes(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1); }

/* Rows become columns: blocks of 8, 4, 2 and 1 beside the diagonal change places. */
INLINE void turn_16(__m512 row[16]) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _Pragma("GCC unroll 4") for (int s = 1; s < 16; s *= 2) {
        const __mmask16 second = s == 1 ? 0xaaaa : s == 2 ? 0xcccc : s == 4 ? 0xf0f0 : 0xff00;
        const __m512i low = _mm512_mask_add_epi32(lane, second, lane, _mm512_set1_epi32(16 - s));
        const __m512i high = _mm512_add_epi32(lane, _mm512_mask_set1_epi32(_mm512_set1_epi32(s), second, 16));
        _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) {
            if (i & s) continue;
            const __m512 a = row[i], b = row[i + s];
            row[i] = _mm512_permutex2var_ps(a, low, b);
            row[i + s] = _mm512_permutex2var_ps(a, high, b);
        }
    }
}

/* e^x, within 2 units of the last place: 2^n times a polynomial (Taylor's) on half a binade. */
INLINE __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(89.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 5040);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 720));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, n);
}

/* Rows of x as integers: p (n, stride) from -127 to 127 and zero past a row's end, each row's largest magnitude, and
   the sum of p over each group of inputs. */
typedef struct {
    int8_t *p;
    float *largest;
    int32_t *sums;
    long stride, groups;
} Rows;

/* A matrix of weights as its storage keeps it. group: inputs that share a step, of 4-bit weights. */
enum { INT8 = 0, INT4 = 1, FLOAT32 = 2, BFLOAT16 = 3 };
typedef struct {
    int kind;
    long in, out, group;
    const void *weights;
    const int8_t *steps;
    const float *factor, *bias; /* bias may be NULL */
} Matrix;

/* Where a product goes: `apart` numbers from row to row, added to what is there or in its place. y holds the columns from
   `first` on. */
typedef struct {
    float *y;
    long apart;
    int add;
    long first;
} Target;

LOCAL void *room(int number, size_t bytes);
LOCAL Rows rows_in(void *memory, long n, long in, long group);
LOCAL size_t rows_bytes(long n, long in, long group);
LOCAL void quantise_for(Hand *hand, Rows rows, const float *x, long n, long in, long group);
LOCAL void integers_for(Hand *hand, const Matrix *m, Rows rows, Target to, long n);
LOCAL void gated_for(Hand *hand, const Matrix *m, Rows rows, int kind, float *y, float *both, long n);
LOCAL void floats_for(Hand *hand, const Matrix *m, const float *x, Target to, long n);

/* The activations of feed-forwards. */
enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

/* How keys and values are kept: as floats, in bfloat16, or in bytes (integers, or floats of 4 and 3 bits) with a factor
   in bfloat16 for each token and head. */
enum { FLOATS = 0, HALVES = 1, BYTES = 2, BYTES_FLOAT = 3 };

/* The keys and values that a query reads: how many, how far they lie apart, and in bytes their factors. softcap 0: none. */
typedef struct {
    long count, size, k_step, v_step;
    float scale, softcap;
    int kept;
    const uint16_t *k_factor, *v_factor;
    long factor_step;
} Keys;

/* 16 numbers as float32. bfloat16 is its upper half; a byte's exponent counts from 7 where float32's counts from 127. */
INLINE __m512 numbers(const int kept, const void *from, long at, __mmask16 some) {
    if (kept == FLOATS) return _mm512_maskz_loadu_ps(some, (const float *)from + at);
    if (kept == HALVES) {
        const __m256i bits = _mm256_maskz_loadu_epi16(some, (const uint16_t *)from + at);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    const __m512i bytes = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, (const int8_t *)from + at));
    if (kept == BYTES) return _mm512_cvtepi32_ps(bytes);
    const __m512i size = _mm512_slli_epi32(_mm512_and_si512(bytes, _mm512_set1_epi32(127)), 20);
    const __m512 value = _mm512_mul_ps(_mm512_castsi512_ps(size), _mm512_set1_ps(0x1p120f));
    const __m512i sign = _mm512_and_si512(bytes, _mm512_set1_epi32((int)0x80000000u));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign));
}

INLINE float factor_at(const uint16_t *factors, long at) {
    const uint32_t bits = (uint32_t)factors[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE long kept_bytes(int kept) { return kept == FLOATS ? 4 : kept == HALVES ? 2 : 1; }

LOCAL void rms_row(const float *x, const float *w, float *y, long width, float eps);
LOCAL void layer_row(const float *x, const float *w, const float *b, float *y, long width, float eps);
LOCAL void turn_head(const float *x, const float *cos, const float *sin, float *y, long size, long h, int interleaved);
/* Attention of many queries: q (n, heads, T), k and v (n, key heads, S), y (n, T, heads) rows of `size` adjacent numbers;
   the strides of each in numbers. mask (n or 1, T, S) is added to the scores, its rows `mask_step` and its batches
   `mask_row` apart, or NULL. causal: query t sees the keys up to t + S - T alone. */
typedef struct {
    long n, heads, kv_heads, queries, keys, size;
    long q_row, q_head, q_step, k_row, k_head, k_step, v_row, v_head, v_step, mask_row, mask_step, causal;
    float scale;
} Shape;

#define QUERIES 6 /* at a time */
#define KEYS 64

/* Attention of a decoder's new tokens: q, k and v stand in rows of the tape's x, `apart` numbers from row to row. Keys and
   values of all tokens are kept as (places, key heads, size), their factors as (places, key heads). */
typedef struct {
    long heads, kv_heads, size, turning, window; /* window 0: none */
    int interleaved, norm_last, kept;
    float scale, softcap, eps;
    long q, k, v; /* where they begin in a row */
    const float *q_norm, *k_norm, *sinks; /* each may be NULL */
    void *keys, *values;
    uint16_t *key_factors, *value_factors;
    const float *cos, *sin; /* (n, turning) */
    long table;             /* of the places */
    long both_ways;         /* tokens of a text see those behind them too */
} Heads;

/* Texts whose new tokens are the rows of a tape, one text after the other: of each text its first row, how many rows, how
   many tokens before them, and in each table the places of all its tokens, from `where` (tables, texts) on. Of what comes
   out the `picked` rows `pick` are wanted. */
typedef struct {
    long texts, picked;
    const long *first, *count, *held, *where, *places, *pick;
} Texts;

LOCAL void take_token(const Heads *h, float *x, long row, long head, long place);
LOCAL void attend_texts_for(Hand *hand, const Heads *h, float *x, long apart, float *y, const Texts *texts, float *memory, float *score);
LOCAL size_t texts_room(const Heads *h, const Texts *texts);
LOCAL void six_queries(const Shape *a, const float *q, const float *turned, const float *v, const float *mask, float *y,
                       float *score, long t);
LOCAL void attend_head(const float *q, const void *k, const void *v, const float *mask, float *y, float *score,
                       long group, const Keys *keys, const float *sinks);
LOCAL void activate_row(int kind, const float *gate, const float *up, float *y, long width);
LOCAL void activate_for(Hand *hand, int kind, const float *gate, const float *up, float *y, long n, long width, long apart);

#endif

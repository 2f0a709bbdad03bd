/* What the sources share. Everything that is named `..._for` holds worksharing loops without a parallel region of its
   own: called by all threads of one (the tape), or within the region that the entry points open, they divide the work
   and wait for each other at the end; called by one thread alone they do all of it. */
#ifndef DOUGONG_COMMON_H
#define DOUGONG_COMMON_H

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8") /* else arrays of sums end up in memory, or in twice the moves */
#define LOCAL __attribute__((visibility("hidden")))

INLINE __mmask16 lanes(long left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1); }

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

/* Where a product goes: `apart` numbers from row to row, added to what is there or in its place. */
typedef struct {
    float *y;
    long apart;
    int add;
} Target;

LOCAL void *room(int number, size_t bytes);
LOCAL Rows rows_in(void *memory, long n, long in, long group);
LOCAL size_t rows_bytes(long n, long in, long group);
LOCAL void quantise_for(Rows rows, const float *x, long n, long in, long group);
LOCAL void integers_for(const Matrix *m, Rows rows, Target to, long n);
LOCAL void floats_for(const Matrix *m, const float *x, Target to, long n);

/* The activations of feed-forwards. */
enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4 };

/* The keys and values that a query reads: how many, how far they lie apart, in bfloat16 (half) or float32. softcap 0: none. */
typedef struct {
    long count, size, k_step, v_step;
    float scale, softcap;
    int half;
} Keys;

/* 16 numbers as float32: bfloat16 is its upper half. */
INLINE __m512 numbers(const int half, const void *from, long at, __mmask16 some) {
    if (!half) return _mm512_maskz_loadu_ps(some, (const float *)from + at);
    const __m256i bits = _mm256_maskz_loadu_epi16(some, (const uint16_t *)from + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

LOCAL void rms_row(const float *x, const float *w, float *y, long width, float eps);
LOCAL void layer_row(const float *x, const float *w, const float *b, float *y, long width, float eps);
LOCAL void turn_head(const float *x, const float *cos, const float *sin, float *y, long size, long h, int interleaved);
LOCAL void attend_head(const float *q, const void *k, const void *v, const float *mask, float *y, float *score,
                       long group, const Keys *keys, const float *sinks);
LOCAL void activate_for(int kind, const float *gate, const float *up, float *y, long n, long width, long apart);

#endif

/* Products of a few rows with weights in 32 and 16 bits. Each thread walks its own stretch of the matrix from one end to
   the other; sums are added in one order, whatever the number of threads or of rows. */
#include "common.h"

/* y_to = sum_i w_oi x_ti + bias_o for row o of w and `tokens` rows of x from t; two sums a token, so that one addition
   does not wait for the other. */
INLINE void float_row(const int half, const int tokens, const Matrix *m, const float *x, Target to, long t, long o) {
    const long in = m->in;
    __m512 sum[8], more[8];
    UNROLL for (int k = 0; k < tokens; k++) sum[k] = more[k] = _mm512_setzero_ps();
    const char *ahead = (const char *)m->weights + o * in * (half ? 2 : 4) + 4096;
    for (long i = 0; i < in; i += 32) {
        _mm_prefetch(ahead + i * (half ? 2 : 4), _MM_HINT_T0);
        if (!half) _mm_prefetch(ahead + i * 4 + 64, _MM_HINT_T0);
        const __mmask16 low = lanes(in - i), high = lanes(in - i - 16);
        const __m512 a = numbers(half, m->weights, o * in + i, low);
        const __m512 b = numbers(half, m->weights, o * in + i + 16, high);
        UNROLL for (int k = 0; k < tokens; k++) {
            const float *at = x + (t + k) * in + i;
            sum[k] = _mm512_fmadd_ps(a, _mm512_maskz_loadu_ps(low, at), sum[k]);
            more[k] = _mm512_fmadd_ps(b, _mm512_maskz_loadu_ps(high, at + 16), more[k]);
        }
    }
    UNROLL for (int k = 0; k < tokens; k++) {
        const float value = _mm512_reduce_add_ps(_mm512_add_ps(sum[k], more[k]));
        float *y = to.y + (t + k) * to.apart + o - to.first;
        *y = (to.add ? *y : 0) + (m->bias ? value + m->bias[o] : value);
    }
}

INLINE void float_rows(Hand *hand, const int half, const Matrix *m, const float *x, Target to, long n) {
    EACH(o, m->out, 16, hand) {
        long t = 0;
        for (; t + 8 <= n; t += 8) float_row(half, 8, m, x, to, t, o);
        for (; t + 4 <= n; t += 4) float_row(half, 4, m, x, to, t, o);
        for (; t < n; t++) float_row(half, 1, m, x, to, t, o);
    }
}

/* y (n, out) = x (n, in) W^T + bias. */
void floats_for(Hand *hand, const Matrix *m, const float *x, Target to, long n) {
    if (m->kind == BFLOAT16)
        float_rows(hand, 1, m, x, to, n);
    else
        float_rows(hand, 0, m, x, to, n);
}

static void product(const Matrix *m, const float *x, float *y, long n) {
    Counter counters[COUNTERS(1, omp_get_max_threads())];
    memset(counters, 0, sizeof counters);
#pragma omp parallel
    {
        Hand hand = HAND(counters);
        floats_for(&hand, m, x, (Target){y, m->out, 0, 0}, n);
    }
}

/* y (n, out) = x (n, in) W^T + bias for W in float32, in a region of its own. */
void float32_linear(const float *x, const float *w, const float *bias, float *y, long n, long in, long out) {
    const Matrix m = {FLOAT32, in, out, in, w, NULL, NULL, bias};
    product(&m, x, y, n);
}

/* The same for W in bfloat16. */
void bfloat16_linear(const float *x, const uint16_t *w, const float *bias, float *y, long n, long in, long out) {
    const Matrix m = {BFLOAT16, in, out, in, w, NULL, NULL, bias};
    product(&m, x, y, n);
}

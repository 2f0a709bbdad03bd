/* What a decoder does between the products when it writes tokens: norm, rotation, activation, attention of one query a
   head. Each is microseconds of work on numbers that are in the cache, and costs PyTorch several times that in calls.
   Activations are float32.
*/
#include <math.h>

#include "common.h"

/* y = x / sqrt(mean(x^2) + eps) * w for one row; w may be NULL, y may be x. */
void rms_row(const float *x, const float *w, float *y, long width, float eps) {
    __m512 sum = _mm512_setzero_ps(), more = sum;
    for (long i = 0; i < width; i += 32) {
        const __m512 a = _mm512_maskz_loadu_ps(lanes(width - i), x + i);
        sum = _mm512_fmadd_ps(a, a, sum);
        if (i + 16 < width) {
            const __m512 b = _mm512_maskz_loadu_ps(lanes(width - i - 16), x + i + 16);
            more = _mm512_fmadd_ps(b, b, more);
        }
    }
    const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sum, more)) / width;
    const __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(mean + eps));
    for (long i = 0; i < width; i += 16) {
        const __mmask16 some = lanes(width - i);
        __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), inverse);
        if (w) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, w + i));
        _mm512_mask_storeu_ps(y + i, some, value);
    }
}

/* y = (x - mean) / sqrt(variance + eps) * w + b for one row; w and b may be NULL, y may be x. */
void layer_row(const float *x, const float *w, const float *b, float *y, long width, float eps) {
    __m512 sum = _mm512_setzero_ps();
    for (long i = 0; i < width; i += 16) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes(width - i), x + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
    sum = _mm512_setzero_ps();
    for (long i = 0; i < width; i += 16) {
        const __mmask16 some = lanes(width - i);
        const __m512 off = _mm512_maskz_sub_ps(some, _mm512_maskz_loadu_ps(some, x + i), mean);
        sum = _mm512_fmadd_ps(off, off, sum);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / width + eps));
    for (long i = 0; i < width; i += 16) {
        const __mmask16 some = lanes(width - i);
        __m512 value = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), mean), inverse);
        if (w) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, w + i));
        if (b) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(some, b + i));
        _mm512_mask_storeu_ps(y + i, some, value);
    }
}

void rms_norm(const float *x, const float *w, float *y, long n, long width, float eps) {
#pragma omp parallel for if (n * width > 32768)
    for (long row = 0; row < n; row++) rms_row(x + row * width, w, y + row * width, width, eps);
}

/* The first 2 h of `size` coordinates turned by h angles; pairs are halves, or neighbours. y may be x. */
void turn_head(const float *x, const float *cos, const float *sin, float *y, long size, long h, int interleaved) {
    if (interleaved) {
        for (long i = 0; i < h; i++) {
            const float a = x[2 * i], b = x[2 * i + 1];
            y[2 * i] = a * cos[i] - b * sin[i];
            y[2 * i + 1] = b * cos[i] + a * sin[i];
        }
    } else {
        for (long i = 0; i < h; i += 16) {
            const __mmask16 some = lanes(h - i);
            const __m512 a = _mm512_maskz_loadu_ps(some, x + i), b = _mm512_maskz_loadu_ps(some, x + h + i);
            const __m512 u = _mm512_maskz_loadu_ps(some, cos + i), v = _mm512_maskz_loadu_ps(some, sin + i);
            _mm512_mask_storeu_ps(y + i, some, _mm512_fnmadd_ps(b, v, _mm512_mul_ps(a, u)));
            _mm512_mask_storeu_ps(y + h + i, some, _mm512_fmadd_ps(a, v, _mm512_mul_ps(b, u)));
        }
    }
    if (y != x)
        for (long i = 2 * h; i < size; i++) y[i] = x[i];
}

/* One token of each of n rows; x has `apart` numbers from row to row, cos and sin h (or none, where all rows stand at
   the same place). */
void turn(const float *x, const float *cos, const float *sin, float *y, long n, long heads, long size, long h,
          long apart, long angles) {
    for (long row = 0; row < n; row++)
        for (long head = 0; head < heads; head++)
            turn_head(x + row * apart + head * size, cos + row * angles, sin + row * angles,
                      y + (row * heads + head) * size, size, h, 0);
}

/* x / (1 + e^-s), 0 times infinity left out: where s is far below 0 the result is x * 0. */
INLINE __m512 sigmoid_times(__m512 x, __m512 s) {
    const __m512 down = exponential(_mm512_sub_ps(_mm512_setzero_ps(), s));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), down));
}

/* x (1 + erf(x / sqrt 2)) / 2. 1 - erf z for z >= 0 is e^(-z^2) times a polynomial in 1 / (1 + 0.3275911 z), within 1.5e-7
   (Abramowitz and Stegun 1964, 7.1.26); below 0 that is the factor itself, and nothing cancels. */
INLINE __m512 gelu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), zero = _mm512_setzero_ps();
    const __m512 z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 sum = _mm512_set1_ps(1.061405429f);
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-1.453152027f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(1.421413741f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(-0.284496736f));
    sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(0.254829592f));
    const __m512 down = exponential(_mm512_sub_ps(zero, _mm512_mul_ps(z, z)));
    const __m512 half = _mm512_mul_ps(_mm512_mul_ps(sum, t), _mm512_mul_ps(down, _mm512_set1_ps(0.5f)));
    const __mmask16 below = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_blend_ps(below, _mm512_sub_ps(one, half), half));
}

INLINE __m512 activated(int kind, __m512 x) {
    const __m512 zero = _mm512_setzero_ps();
    switch (kind) {
    case SILU: return sigmoid_times(x, x);
    case GELU_TANH: { /* x (1 + tanh u) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
        const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
        const __m512 inner = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x);
        return sigmoid_times(x, _mm512_mul_ps(inner, _mm512_set1_ps(1.5957691216f)));
    }
    case RELU: return _mm512_max_ps(x, zero);
    case RELU2: return _mm512_mul_ps(_mm512_max_ps(x, zero), _mm512_max_ps(x, zero));
    default: return gelu(x);
    }
}

/* y = f(gate) * up, or f(gate) where up is NULL. */
void activate_row(int kind, const float *gate, const float *up, float *y, long width) {
    for (long i = 0; i < width; i += 16) {
        const __mmask16 some = lanes(width - i);
        __m512 value = activated(kind, _mm512_maskz_loadu_ps(some, gate + i));
        if (up) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, up + i));
        _mm512_mask_storeu_ps(y + i, some, value);
    }
}

/* The same for n rows; gate and up have `apart` numbers from row to row. */
void activate_for(Hand *hand, int kind, const float *gate, const float *up, float *y, long n, long width, long apart) {
    const long pieces = (width + 511) / 512;
    EACH(piece, n * pieces, 4, hand) {
        const long row = piece / pieces, start = piece % pieces * 512, count = width - start < 512 ? width - start : 512;
        const long at = row * apart + start;
        activate_row(kind, gate + at, up ? up + at : NULL, y + row * width + start, count);
    }
}

void activate(int kind, const float *gate, const float *up, float *y, long n, long width, long apart) {
    Counter counters[COUNTERS(1, omp_get_max_threads())];
    memset(counters, 0, sizeof counters);
#pragma omp parallel if (n * width > 16384)
    {
        Hand hand = HAND(counters);
        activate_for(&hand, kind, gate, up, y, n, width, apart);
    }
}

/* score_gs = scale q_g k_s + mask_s for the queries g of a group and `count` keys; most_g: the largest. Queries share
   the loads of a key. */
INLINE void scores_of(const int kept, const int queries, const float *q, const void *k, const float *mask, float *score,
                      long apart, const Keys *keys, float *most) {
    const long count = keys->count, size = keys->size, step = keys->k_step;
    const float scale = keys->scale, softcap = keys->softcap;
    UNROLL for (int g = 0; g < queries; g++) most[g] = -INFINITY;
    for (long s = 0; s < count; s++) {
        __m512 sum[4];
        UNROLL for (int g = 0; g < queries; g++) sum[g] = _mm512_setzero_ps();
        for (long i = 0; i < size; i += 16) {
            const __mmask16 some = lanes(size - i);
            const __m512 key = numbers(kept, k, s * step + i, some);
            UNROLL for (int g = 0; g < queries; g++)
                sum[g] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(some, q + g * size + i), key, sum[g]);
        }
        UNROLL for (int g = 0; g < queries; g++) {
            float value = _mm512_reduce_add_ps(sum[g]) * scale;
            if (kept >= BYTES) value *= factor_at(keys->k_factor, s * keys->factor_step);
            if (softcap > 0) value = softcap * tanhf(value / softcap);
            value += mask ? mask[s] : 0.0f;
            score[g * apart + s] = value;
            most[g] = value > most[g] ? value : most[g];
        }
    }
}

/* y_g = sum_s p_gs v_s / total_g for the queries of a group. */
INLINE void values_of(const int kept, const int queries, const float *score, long apart, const void *v, float *y,
                      const Keys *keys, const float *total) {
    const long count = keys->count, size = keys->size, step = keys->v_step;
    for (long i = 0; i < size; i += 16) {
        const __mmask16 some = lanes(size - i);
        __m512 sum[4];
        UNROLL for (int g = 0; g < queries; g++) sum[g] = _mm512_setzero_ps();
        for (long s = 0; s < count; s++) {
            const __m512 value = numbers(kept, v, s * step + i, some);
            UNROLL for (int g = 0; g < queries; g++)
                sum[g] = _mm512_fmadd_ps(_mm512_set1_ps(score[g * apart + s]), value, sum[g]);
        }
        UNROLL for (int g = 0; g < queries; g++)
            _mm512_mask_storeu_ps(y + g * size + i, some, _mm512_mul_ps(sum[g], _mm512_set1_ps(1.0f / total[g])));
    }
}

INLINE void some_queries(const int kept, const int queries, const float *q, const void *k, const void *v,
                         const float *mask, float *y, float *score, const Keys *keys, const float *sinks) {
    const long apart = (keys->count + 15) / 16 * 16;
    float most[4], total[4];
    scores_of(kept, queries, q, k, mask, score, apart, keys, most);
    UNROLL for (int g = 0; g < queries; g++) {
        if (sinks && sinks[g] > most[g]) most[g] = sinks[g];
        if (most[g] == -INFINITY) { /* no key may be seen: the result is 0 */
            memset(score + g * apart, 0, sizeof(float) * apart);
            total[g] = 1;
            continue;
        }
        __m512 sum = _mm512_setzero_ps();
        for (long s = 0; s < keys->count; s += 16) {
            const __mmask16 some = lanes(keys->count - s);
            const __m512 from = _mm512_maskz_loadu_ps(some, score + g * apart + s);
            const __m512 p = exponential(_mm512_sub_ps(from, _mm512_set1_ps(most[g])));
            _mm512_storeu_ps(score + g * apart + s, p);
            sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(some, p));
        }
        total[g] = _mm512_reduce_add_ps(sum) + (sinks ? expf(sinks[g] - most[g]) : 0);
    }
    for (long s = 0; kept >= BYTES && s < keys->count; s++) {
        const float factor = factor_at(keys->v_factor, s * keys->factor_step);
        UNROLL for (int g = 0; g < queries; g++) score[g * apart + s] *= factor;
    }
    values_of(kept, queries, score, apart, v, y, keys, total);
}

/* y = softmax(cap(scale q k^T) + mask) v for the `group` queries of one key head; score: room for 4 rows of scores.
   sinks: a score a query that takes its share of the softmax and gives nothing; may be NULL, as mask. */
void attend_head(const float *q, const void *k, const void *v, const float *mask, float *y, float *score, long group,
                 const Keys *keys, const float *sinks) {
    long g = 0;
#define TAKE(kept, queries)                                                                                            \
    for (; g + queries <= group; g += queries)                                                                         \
    some_queries(kept, queries, q + g * keys->size, k, v, mask, y + g * keys->size, score, keys, sinks ? sinks + g : NULL)
#define ALL(kept)                                                                                                      \
    TAKE(kept, 4);                                                                                                     \
    TAKE(kept, 2);                                                                                                     \
    TAKE(kept, 1);                                                                                                     \
    break
    switch (keys->kept) {
    case FLOATS: ALL(FLOATS);
    case HALVES: ALL(HALVES);
    case BYTES: ALL(BYTES);
    default: ALL(BYTES_FLOAT);
    }
#undef ALL
#undef TAKE
}

/* y = softmax(scale q k^T + mask) v for one query of each of n x heads x group heads; a group's queries share keys.
   q and y are (n, heads, group, size); keys and values have `size` adjacent numbers, `step` numbers from key to key,
   `head` from head to head and `row` from row to row; mask has `count` numbers, `apart` from row to row, or is NULL.
   Where no key may be seen, y is 0. Returns 1 when there is no memory. */
int attend(const float *q, const float *k, const float *v, const float *mask, float *y, long n, long heads, long group,
           long count, long size, long k_row, long k_head, long k_step, long v_row, long v_head, long v_step,
           long apart, float scale) {
    const Keys keys = {count, size, k_step, v_step, scale, 0, FLOATS, NULL, NULL, 0};
    int failed = 0;
#pragma omp parallel for reduction(| : failed) if (n * heads * count * group * size > 65536)
    for (long each = 0; each < n * heads; each++) {
        const long row = each / heads, head = each % heads, at = each * group * size;
        float *score = room(1, sizeof(float) * 4 * (count + 16));
        if (score)
            attend_head(q + at, k + row * k_row + head * k_head, v + row * v_row + head * v_head,
                        mask ? mask + row * apart : NULL, y + at, score, group, &keys, NULL);
        else
            failed = 1;
    }
    return failed;
}

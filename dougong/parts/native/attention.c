/* Attention of many queries a head in float32: six queries against 64 keys at a time, so that sums stay in registers, for
   which keys are turned first. A query's scores stand side by side in a row that stays in the cache; nothing is done
   for keys that causality hides.
*/
#include <math.h>

#include "common.h"

/* 64 keys with each coordinate's numbers side by side: (size, 64), zeros past the last key. */
static void turn_keys(const float *k, float *to, long count, long size, long step) {
    for (long s = 0; s < KEYS; s++)
        for (long i = 0; i < size; i++) to[i * KEYS + s] = s < count ? k[s * step + i] : 0;
}

/* score_rs = scale q_r k_s for six queries and 64 keys, `apart` numbers from query to query. */
INLINE void score_block(const float *const *q, const float *keys, float *score, long apart, long size, float scale) {
    __m512 sum[QUERIES][4];
    UNROLL for (int r = 0; r < QUERIES; r++)
        UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_setzero_ps();
    for (long i = 0; i < size; i++, keys += KEYS) {
        __m512 key[4];
        UNROLL for (int j = 0; j < 4; j++) key[j] = _mm512_loadu_ps(keys + 16 * j);
        UNROLL for (int r = 0; r < QUERIES; r++) {
            const __m512 one = _mm512_set1_ps(q[r][i]);
            UNROLL for (int j = 0; j < 4; j++) sum[r][j] = _mm512_fmadd_ps(one, key[j], sum[r][j]);
        }
    }
    const __m512 by = _mm512_set1_ps(scale);
    UNROLL for (int r = 0; r < QUERIES; r++)
        UNROLL for (int j = 0; j < 4; j++) _mm512_storeu_ps(score + r * apart + 16 * j, _mm512_mul_ps(sum[r][j], by));
}

/* e^(score - largest) of one row, zeros up to the next 16; returns their sum. Where all are minus infinity: zeros. */
static float softmax_row(float *score, const float *mask, long count) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (long s = 0; s < count; s += 16) {
        const __mmask16 some = lanes(count - s);
        __m512 value = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), some, score + s);
        if (mask) value = _mm512_mask_add_ps(value, some, value, _mm512_maskz_loadu_ps(some, mask + s));
        _mm512_storeu_ps(score + s, value);
        most = _mm512_max_ps(most, value);
    }
    const float largest = _mm512_reduce_max_ps(most);
    if (largest == -INFINITY) {
        memset(score, 0, sizeof(float) * ((count + 15) / 16 * 16));
        return 0;
    }
    for (long s = 0; s < count; s += 16) {
        const __m512 value = _mm512_sub_ps(_mm512_loadu_ps(score + s), _mm512_set1_ps(largest));
        const __m512 p = _mm512_maskz_mov_ps(lanes(count - s), exponential(value));
        _mm512_storeu_ps(score + s, p);
        sum = _mm512_add_ps(sum, p);
    }
    return _mm512_reduce_add_ps(sum);
}

/* y_r = sum_s p_rs v_s / total_r for 16 `wide` coordinates of six queries, or those of one vector that `some` names. */
INLINE void value_block(const int wide, const __mmask16 some, const float *p, long apart, const float *v, long step, long count,
                        float *const *y, const float *total) {
    __m512 sum[QUERIES][4];
    UNROLL for (int r = 0; r < QUERIES; r++)
        UNROLL for (int j = 0; j < wide; j++) sum[r][j] = _mm512_setzero_ps();
    for (long s = 0; s < count; s++, v += step) {
        __m512 value[4];
        UNROLL for (int j = 0; j < wide; j++) value[j] = _mm512_maskz_loadu_ps(some, v + 16 * j);
        UNROLL for (int r = 0; r < QUERIES; r++) {
            const __m512 one = _mm512_set1_ps(p[r * apart + s]);
            UNROLL for (int j = 0; j < wide; j++) sum[r][j] = _mm512_fmadd_ps(one, value[j], sum[r][j]);
        }
    }
    UNROLL for (int r = 0; r < QUERIES; r++) {
        const __m512 by = _mm512_set1_ps(total[r] > 0 ? 1.0f / total[r] : 0.0f);
        UNROLL for (int j = 0; j < wide; j++) _mm512_mask_storeu_ps(y[r] + 16 * j, some, _mm512_mul_ps(sum[r][j], by));
    }
}

/* Six queries of one head from t; the last one stands in for those past the end, and is written again. */
void six_queries(const Shape *a, const float *q, const float *turned, const float *v, const float *mask, float *y,
                 float *score, long t) {
    const long last = t + QUERIES < a->queries ? t + QUERIES - 1 : a->queries - 1;
    const long count = a->causal ? last + a->keys - a->queries + 1 : a->keys, apart = (a->keys + KEYS - 1) / KEYS * KEYS;
    const float *queries[QUERIES];
    float *to[QUERIES], total[QUERIES];
    for (int r = 0; r < QUERIES; r++) queries[r] = q + (t + r < last ? t + r : last) * a->q_step;
    for (long s = 0; s < count; s += KEYS)
        score_block(queries, turned + s * a->size, score + s, apart, a->size, a->scale);
    for (int r = 0; r < QUERIES; r++) {
        const long row = t + r < last ? t + r : last, seen = a->causal ? row + a->keys - a->queries + 1 : a->keys;
        float *own = score + r * apart;
        total[r] = softmax_row(own, mask ? mask + row * a->mask_step : NULL, seen);
        for (long s = (seen + 15) / 16 * 16; s < count; s++) own[s] = 0; /* what the other queries see and this not */
        to[r] = y + row * a->heads * a->size;
    }
    long i = 0;
#define TAKE(wide)                                                                                                     \
    for (; i + 16 * wide <= a->size; i += 16 * wide) {                                                                 \
        value_block(wide, 0xffff, score, apart, v + i, a->v_step, count, to, total);                                           \
        for (int r = 0; r < QUERIES; r++) to[r] += 16 * wide;                                                          \
    }
    TAKE(4)
    TAKE(2)
    TAKE(1)
#undef TAKE
    if (i < a->size) value_block(1, lanes(a->size - i), score, apart, v + i, a->v_step, count, to, total);
}

/* y = softmax(scale q k^T + mask) v. A group of heads / kv_heads queries shares a key head.
   Where no key may be seen, y is 0. Returns 1 when there is no memory. */
int attend_rows(const Shape *a, const float *q, const float *k, const float *v, const float *mask, float *y) {
    const long blocks = (a->keys + KEYS - 1) / KEYS, of_head = blocks * KEYS * a->size, group = a->heads / a->kv_heads;
    const long pieces = (a->queries + QUERIES - 1) / QUERIES;
    float *turned = room(0, sizeof(float) * a->n * a->kv_heads * of_head);
    int failed = !turned;
    if (failed) return 1;
#pragma omp parallel reduction(| : failed)
    {
        float *score = room(1, sizeof(float) * QUERIES * blocks * KEYS);
        failed |= !score;
#pragma omp for schedule(static)
        for (long each = 0; each < a->n * a->kv_heads * blocks; each++) {
            const long at = each / blocks, block = each % blocks, row = at / a->kv_heads, head = at % a->kv_heads;
            turn_keys(k + row * a->k_row + head * a->k_head + block * KEYS * a->k_step,
                      turned + at * of_head + block * KEYS * a->size, a->keys - block * KEYS, a->size, a->k_step);
        }
#pragma omp for schedule(dynamic)
        for (long each = 0; each < a->n * a->heads * pieces; each++) {
            const long at = each / pieces, row = at / a->heads, head = at % a->heads, key_head = head / group;
            if (score)
                six_queries(a, q + row * a->q_row + head * a->q_head, turned + (row * a->kv_heads + key_head) * of_head,
                            v + row * a->v_row + key_head * a->v_head, mask ? mask + row * a->mask_row : NULL,
                            y + (row * a->queries * a->heads + head) * a->size, score, each % pieces * QUERIES);
        }
    }
    return failed;
}

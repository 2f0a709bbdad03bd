/* What a decoder does between the products when it writes one token: norm, rotation, attention of one query a head.

   Each is microseconds of work on numbers that are in the cache, and costs PyTorch several times that in calls. Tensors
   are float32.
*/
#include "simd.h"
#include <math.h>
#include <stdlib.h>

/* y = x / sqrt(mean(x^2) + eps) * w for n rows; w may be NULL. */
void rms_norm(const float *x, const float *w, float *y, long n, long width, float eps) {
#pragma omp parallel for if (n * width > 32768)
    for (long row = 0; row < n; row++) {
        const float *from = x + row * width;
        float *to = y + row * width;
        __m512 sum = _mm512_setzero_ps(), more = sum;
        for (long i = 0; i < width; i += 32) {
            const __m512 a = _mm512_maskz_loadu_ps(lanes(width - i), from + i);
            sum = _mm512_fmadd_ps(a, a, sum);
            if (i + 16 < width) {
                const __m512 b = _mm512_maskz_loadu_ps(lanes(width - i - 16), from + i + 16);
                more = _mm512_fmadd_ps(b, b, more);
            }
        }
        const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sum, more)) / width;
        const __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(mean + eps));
        for (long i = 0; i < width; i += 16) {
            const __mmask16 some = lanes(width - i);
            __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, from + i), inverse);
            if (w) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, w + i));
            _mm512_mask_storeu_ps(to + i, some, value);
        }
    }
}

/* One token of each of n rows: the first 2 h of `size` coordinates of every head turned by the row's angles, halves
   paired; x has `apart` numbers from row to row, cos and sin h (or none, where all rows stand at the same place). */
void turn(const float *x, const float *cos, const float *sin, float *y, long n, long heads, long size, long h,
          long apart, long angles) {
    for (long row = 0; row < n; row++)
        for (long head = 0; head < heads; head++) {
            const float *from = x + row * apart + head * size, *c = cos + row * angles, *s = sin + row * angles;
            float *to = y + (row * heads + head) * size;
            for (long i = 0; i < h; i += 16) {
                const __mmask16 some = lanes(h - i);
                const __m512 a = _mm512_maskz_loadu_ps(some, from + i), b = _mm512_maskz_loadu_ps(some, from + h + i);
                const __m512 u = _mm512_maskz_loadu_ps(some, c + i), v = _mm512_maskz_loadu_ps(some, s + i);
                _mm512_mask_storeu_ps(to + i, some, _mm512_fnmadd_ps(b, v, _mm512_mul_ps(a, u)));
                _mm512_mask_storeu_ps(to + h + i, some, _mm512_fmadd_ps(a, v, _mm512_mul_ps(b, u)));
            }
            for (long i = 2 * h; i < size; i++) to[i] = from[i];
        }
}

/* score_s = scale q k_s + mask_s for `count` keys; returns the largest. */
static float scores(const float *q, const float *k, const float *mask, float *score, long count, long size, long step,
                    float scale) {
    float largest = -INFINITY;
    for (long s = 0; s < count; s++) {
        __m512 sum = _mm512_setzero_ps();
        for (long i = 0; i < size; i += 16)
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(q + i), _mm512_loadu_ps(k + s * step + i), sum);
        score[s] = _mm512_reduce_add_ps(sum) * scale + (mask ? mask[s] : 0.0f);
        largest = score[s] > largest ? score[s] : largest;
    }
    return largest;
}

/* y = softmax(scale q k^T + mask) v for one query of each of n x heads x group heads; a group's queries share keys.
   q and y are (n, heads, group, size); keys and values have `size` adjacent numbers, `step` numbers from key to key,
   `head` from head to head and `row` from row to row; mask has `count` numbers, `apart` from row to row, or is NULL.
   size is a multiple of 16. Where no key may be seen, y is 0. Returns 1 when there is no memory. */
int attend(const float *q, const float *k, const float *v, const float *mask, float *y, long n, long heads, long group,
           long count, long size, long k_row, long k_head, long k_step, long v_row, long v_head, long v_step,
           long apart, float scale) {
    int failed = 0;
#pragma omp parallel for reduction(| : failed) if (n * heads * count * group * size > 65536)
    for (long each = 0; each < n * heads; each++) {
        const long row = each / heads, head = each % heads;
        float *score = malloc(sizeof(float) * (count + 16));
        if (!score) {
            failed = 1;
            continue;
        }
        const float *values = v + row * v_row + head * v_head;
        for (long g = 0; g < group; g++) {
            const long at = (each * group + g) * size;
            const float largest = scores(q + at, k + row * k_row + head * k_head, mask ? mask + row * apart : NULL,
                                         score, count, size, k_step, scale);
            if (largest == -INFINITY) {
                for (long i = 0; i < size; i++) y[at + i] = 0;
                continue;
            }
            __m512 sum = _mm512_setzero_ps();
            for (long s = 0; s < count; s += 16) {
                const __mmask16 some = lanes(count - s);
                const __m512 from = _mm512_maskz_loadu_ps(some, score + s);
                const __m512 p = exponential(_mm512_sub_ps(from, _mm512_set1_ps(largest)));
                _mm512_storeu_ps(score + s, p);
                sum = _mm512_add_ps(sum, _mm512_maskz_mov_ps(some, p));
            }
            const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
            for (long i = 0; i < size; i += 16) {
                __m512 a = _mm512_setzero_ps(), b = a;
                long s = 0;
                for (; s + 2 <= count; s += 2) {
                    const float *at_s = values + s * v_step + i;
                    a = _mm512_fmadd_ps(_mm512_set1_ps(score[s]), _mm512_loadu_ps(at_s), a);
                    b = _mm512_fmadd_ps(_mm512_set1_ps(score[s + 1]), _mm512_loadu_ps(at_s + v_step), b);
                }
                if (s < count)
                    a = _mm512_fmadd_ps(_mm512_set1_ps(score[s]), _mm512_loadu_ps(values + s * v_step + i), a);
                _mm512_storeu_ps(y + at + i, _mm512_mul_ps(_mm512_add_ps(a, b), inverse));
            }
        }
        free(score);
    }
    return failed;
}

/* What stands between the products of a layer in training: the gradients of a SwiGLU and of an RMSNorm, rotation of whole
   texts forward and back.

   Such work is bound by memory: each of these reads what it needs once and writes once, where PyTorch makes a pass for
   every operation in the formula. Tensors are float32.
*/
#include "common.h"
#include <math.h>

/* 1 / (1 + e^-x), from e^-|x|, which never overflows. */
INLINE __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_div_ps(_mm512_mask_mov_ps(one, negative, e), _mm512_add_ps(one, e));
}

/* dg = dy u s (1 + g (1 - s)) and du = dy g s, with s = sigmoid(g), for n numbers. */
void swiglu_gradient(const float *g, const float *u, const float *dy, float *dg, float *du, long n) {
#pragma omp parallel for if (n > 32768)
    for (long i = 0; i < n; i += 16) {
        const __mmask16 some = lanes(n - i);
        const __m512 gate = _mm512_maskz_loadu_ps(some, g + i), up = _mm512_maskz_loadu_ps(some, u + i);
        const __m512 grad = _mm512_maskz_loadu_ps(some, dy + i), s = sigmoid(gate), one = _mm512_set1_ps(1.0f);
        const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
        _mm512_mask_storeu_ps(dg + i, some, _mm512_mul_ps(_mm512_mul_ps(grad, up), slope));
        _mm512_mask_storeu_ps(du + i, some, _mm512_mul_ps(grad, _mm512_mul_ps(gate, s)));
    }
}

/* dx of y = r x w, r = (mean(x^2) + eps)^-1/2, for n rows:  dx = r (w dy - x r^2 mean(w dy x)). */
void rms_norm_gradient(const float *x, const float *w, const float *dy, float *dx, long n, long width, float eps) {
#pragma omp parallel for if (n * width > 32768)
    for (long row = 0; row < n; row++) {
        const float *from = x + row * width, *grad = dy + row * width;
        float *to = dx + row * width;
        __m512 squares = _mm512_setzero_ps(), inner = squares;
        for (long i = 0; i < width; i += 16) {
            const __mmask16 some = lanes(width - i);
            const __m512 a = _mm512_maskz_loadu_ps(some, from + i);
            const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, grad + i), _mm512_maskz_loadu_ps(some, w + i));
            squares = _mm512_fmadd_ps(a, a, squares);
            inner = _mm512_fmadd_ps(a, g, inner);
        }
        const float square = 1.0f / (_mm512_reduce_add_ps(squares) / width + eps);
        const __m512 r = _mm512_set1_ps(sqrtf(square));
        const __m512 along = _mm512_set1_ps(_mm512_reduce_add_ps(inner) / width * square);
        for (long i = 0; i < width; i += 16) {
            const __mmask16 some = lanes(width - i);
            const __m512 g = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, grad + i), _mm512_maskz_loadu_ps(some, w + i));
            const __m512 a = _mm512_maskz_loadu_ps(some, from + i);
            _mm512_mask_storeu_ps(to + i, some, _mm512_mul_ps(r, _mm512_fnmadd_ps(a, along, g)));
        }
    }
}

/* The first 2 h of `size` coordinates of every head turned by their token's angles, or back by them, halves paired.
   x and y are (n, tokens, heads, size) in any layout with a head's coordinates adjacent: steps from row to row, token to
   token, head to head. cos and sin have h numbers a token, `angles` from row to row (0: all rows stand alike). */
void turn_text(const float *x, const float *cos, const float *sin, float *y, long n, long tokens, long heads, long size,
               long h, long x_row, long x_token, long x_head, long y_row, long y_token, long y_head, long angles,
               long back) {
    const __m512 sign = _mm512_set1_ps(back ? -1.0f : 1.0f);
#pragma omp parallel for if (n * tokens * heads * size > 32768)
    for (long each = 0; each < n * tokens; each++) {
        const long row = each / tokens, token = each % tokens;
        const float *c = cos + row * angles + token * h, *s = sin + row * angles + token * h;
        for (long head = 0; head < heads; head++) {
            const float *from = x + row * x_row + token * x_token + head * x_head;
            float *to = y + row * y_row + token * y_token + head * y_head;
            for (long i = 0; i < h; i += 16) {
                const __mmask16 some = lanes(h - i);
                const __m512 a = _mm512_maskz_loadu_ps(some, from + i), b = _mm512_maskz_loadu_ps(some, from + h + i);
                const __m512 u = _mm512_maskz_loadu_ps(some, c + i);
                const __m512 v = _mm512_mul_ps(sign, _mm512_maskz_loadu_ps(some, s + i));
                _mm512_mask_storeu_ps(to + i, some, _mm512_fnmadd_ps(b, v, _mm512_mul_ps(a, u)));
                _mm512_mask_storeu_ps(to + h + i, some, _mm512_fmadd_ps(a, v, _mm512_mul_ps(b, u)));
            }
            for (long i = 2 * h; i < size; i++) to[i] = from[i];
        }
    }
}

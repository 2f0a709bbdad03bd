/* Products with weights in 8 and 4 bits, for x86 CPUs with AVX512 (VNNI and VBMI).

   Weights lie in tiles of 64 rows, in the order in which they are read: for every 4 inputs 256 bytes (8 bits: a row's 4
   inputs together, 128 added) or for every input 32 bytes (4 bits). A thread walks its tiles from one end to the other.
   With one row of activations that is one stream of loads, all that decoding waits for; with many, a tile stays in the
   cache while rows pass by, six at a time, and the sums stay in registers.

   Sums are of integers and exact: whatever shares a product, a row's result is the same to the bit.
*/
#include "common.h"

#define ROUND 12582912.0f /* 1.5 * 2^23: added to a small number, leaves it rounded in the low bits */
#define MOST 6            /* rows of activations at a time: 24 sums, 4 weights and what is multiplied fill the registers */
#define EXPAND 11          /* rows from which on 4-bit weights are brought to 8 bits once instead of for every two rows */

/* Room that a thread keeps from call to call, at least `bytes`; each use has a number of its own. */
void *room(int number, size_t bytes) {
    static __thread void *held[4];
    static __thread size_t size[4];
    if (bytes > size[number]) {
        free(held[number]);
        const size_t wanted = (bytes + 4095) / 4096 * 4096;
        held[number] = aligned_alloc(64, wanted);
        size[number] = held[number] ? wanted : 0;
    }
    return held[number];
}

static long stride_of(long in) { return (in + 63) / 64 * 64; }

/* group: inputs that share a sum, a multiple of 16; or all. */
size_t rows_bytes(long n, long in, long group) {
    const long groups = (in + group - 1) / group;
    return (size_t)n * (stride_of(in) + sizeof(float) + sizeof(int32_t) * groups);
}

Rows rows_in(void *memory, long n, long in, long group) {
    Rows rows = {memory, NULL, NULL, stride_of(in), (in + group - 1) / group};
    rows.largest = (float *)(rows.p + n * rows.stride);
    rows.sums = (int32_t *)(rows.largest + n);
    return rows;
}

/* p = round(127 x / max|x|). A row with something that is not a number has no largest magnitude either. */
static void quantise_row(const float *x, long in, long group, int8_t *p, float *largest, int32_t *sums) {
    __m512 most = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (long i = 0; i < in; i += 16) {
        const __m512 some = _mm512_maskz_loadu_ps(lanes(in - i), x + i);
        most = _mm512_max_ps(most, _mm512_abs_ps(some));
        none |= _mm512_cmp_ps_mask(some, some, _CMP_UNORD_Q);
    }
    *largest = none ? __builtin_nanf("") : _mm512_reduce_max_ps(most);
    const __m512 by = _mm512_set1_ps(*largest), levels = _mm512_set1_ps(127.0f), shift = _mm512_set1_ps(ROUND);
    for (long start = 0; start < in; start += group) {
        __m512i sum = _mm512_setzero_si512();
        for (long i = start; i < start + group && i < in; i += 16) {
            const __mmask16 some = lanes(in - i);
            const __m512 scaled = _mm512_div_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i), levels), by);
            const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(_mm512_add_ps(scaled, shift)));
            _mm_mask_storeu_epi8(p + i, some, bytes);
            sum = _mm512_add_epi32(sum, _mm512_maskz_cvtepi8_epi32(some, bytes));
        }
        *sums++ = _mm512_reduce_add_epi32(sum);
    }
}

void quantise_for(Hand *hand, Rows rows, const float *x, long n, long in, long group) {
    EACH(t, n, 1, hand) {
        quantise_row(x + t * in, in, group, rows.p + t * rows.stride, rows.largest + t, rows.sums + t * rows.groups);
        memset(rows.p + t * rows.stride + in, 0, rows.stride - in);
    }
}

/* sum + the products of 4 unsigned and 4 signed bytes in each lane. By hand: compilers copy the sum twice around the
   intrinsic, which halves the speed. */
INLINE __m512i multiplied(__m512i sum, __m512i w, __m512i v) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(v));
    return sum;
}

INLINE __m512i four(const int8_t *p) {
    int32_t inputs;
    memcpy(&inputs, p, 4);
    return _mm512_set1_epi32(inputs);
}

/* sum_rk += sum_i w_ri p_ki for the 64 rows of a tile in 8 bits and `tokens` rows of p. */
INLINE void tile(const int tokens, const uint8_t *w, const int8_t *p, long stride, long in, __m512i sum[4][MOST]) {
    for (long i = 0; i < in; i += 4, w += 256) {
        for (int line = 0; line < 4 && tokens < 4; line++) _mm_prefetch((const char *)(w + 4096 + 64 * line), _MM_HINT_T0);
        const __m512i a = _mm512_loadu_si512(w), b = _mm512_loadu_si512(w + 64);
        const __m512i c = _mm512_loadu_si512(w + 128), d = _mm512_loadu_si512(w + 192);
        UNROLL for (int k = 0; k < tokens; k++) {
            const __m512i v = four(p + k * stride + i);
            sum[0][k] = multiplied(sum[0][k], a, v);
            sum[1][k] = multiplied(sum[1][k], b, v);
            sum[2][k] = multiplied(sum[2][k], c, v);
            sum[3][k] = multiplied(sum[3][k], d, v);
        }
    }
}

/* factor_o largest_t total_ot + bias_o, to its place, for the rows o of a tile that exist and `tokens` rows from t. Three
   roundings. What the tokens share is read first: a compiler cannot know that nothing that is stored changes it. */
INLINE void put(const int tokens, const Matrix *m, Rows rows, Target to, long t, long o, __m512i total[4][MOST]) {
    const int biased = m->bias != NULL;
    __mmask16 some[4];
    __m512 factor[4], bias[4];
    UNROLL for (int r = 0; r < 4; r++) {
        some[r] = lanes(m->out - o - 16 * r);
        factor[r] = _mm512_maskz_loadu_ps(some[r], m->factor + o + 16 * r);
        bias[r] = biased ? _mm512_maskz_loadu_ps(some[r], m->bias + o + 16 * r) : _mm512_setzero_ps();
    }
    UNROLL for (int k = 0; k < tokens; k++) {
        const __m512 largest = _mm512_set1_ps(rows.largest[t + k]);
        float *y = to.y + (t + k) * to.apart + o - to.first;
        UNROLL for (int r = 0; r < 4; r++) {
            __m512 value = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(total[r][k]), factor[r]), largest);
            if (biased) value = _mm512_add_ps(value, bias[r]);
            if (to.add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(some[r], y + 16 * r), value);
            _mm512_mask_storeu_ps(y + 16 * r, some[r], value);
        }
    }
}

/* One tile in 8 bits times `tokens` rows from t. 128 was added to every weight: 128 times the sum of p comes off. */
INLINE void int8_rows(const int tokens, const Matrix *m, const uint8_t *w, Rows rows, Target to, long t, long o) {
    __m512i sum[4][MOST];
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int k = 0; k < tokens; k++) sum[r][k] = _mm512_setzero_si512();
    tile(tokens, w, rows.p + t * rows.stride, rows.stride, m->in, sum);
    UNROLL for (int k = 0; k < tokens; k++) {
        int32_t all = 0;
        for (long g = 0; g < rows.groups; g++) all += rows.sums[(t + k) * rows.groups + g];
        const __m512i off = _mm512_set1_epi32(128 * all);
        UNROLL for (int r = 0; r < 4; r++) sum[r][k] = _mm512_sub_epi32(sum[r][k], off);
    }
    put(tokens, m, rows, to, t, o, sum);
}

/* All rows of p, in groups of at most six that differ by one row at most. */
static void int8_tile(const Matrix *m, const uint8_t *w, Rows rows, Target to, long n, long o) {
    const long parts = (n + MOST - 1) / MOST;
    for (long part = 0, t = 0; part < parts; part++) {
        const long count = (n - t + parts - part - 1) / (parts - part);
        switch (count) {
        case 1: int8_rows(1, m, w, rows, to, t, o); break;
        case 2: int8_rows(2, m, w, rows, to, t, o); break;
        case 3: int8_rows(3, m, w, rows, to, t, o); break;
        case 4: int8_rows(4, m, w, rows, to, t, o); break;
        case 5: int8_rows(5, m, w, rows, to, t, o); break;
        default: int8_rows(6, m, w, rows, to, t, o);
        }
        t += count;
    }
}

/* The order of bytes that turns 4 inputs of 32 rows each into 16 rows (the first or the second half) of 4 inputs. */
INLINE __m512i turned(int half) {
    uint8_t order[64];
    for (int row = 0; row < 16; row++)
        for (int i = 0; i < 4; i++) order[4 * row + i] = (uint8_t)(32 * i + 16 * half + row);
    return _mm512_loadu_si512(order);
}

/* 4 inputs of the 64 rows of a tile in 4 bits, from 0 to 15, a row's 4 inputs together. Stored: for each input 32 bytes,
   of which byte j holds row j in its low and row j + 32 in its high half. */
INLINE void nibbles(const uint8_t *at, __m512i first, __m512i second, __m512i w[4]) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
    const __m512i c = _mm512_permutex2var_epi8(a, first, b), d = _mm512_permutex2var_epi8(a, second, b);
    w[0] = _mm512_and_si512(c, low);
    w[1] = _mm512_and_si512(d, low);
    w[2] = _mm512_and_si512(_mm512_srli_epi16(c, 4), low);
    w[3] = _mm512_and_si512(_mm512_srli_epi16(d, 4), low);
}

/* m and a of 16 rows in one group: W_oi = 127 factor_o (m q + a), q from 0 to 15. */
INLINE void steps_of(const int8_t *steps, __m512i *m, __m512i *a) {
    const __m512i pair = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)steps));
    *m = _mm512_and_si512(pair, _mm512_set1_epi32(255));
    *a = _mm512_srai_epi32(pair, 8);
}

/* One tile in 4 bits times one or two rows: sum_i (m q_i + a) p_i = m sum_i q_i p_i + a sum_i p_i in each group. */
INLINE void int4_rows(const int tokens, const Matrix *m, Rows rows, Target to, long t, long o) {
    const __m512i first = turned(0), second = turned(1);
    const int8_t *p = rows.p + t * rows.stride;
    const uint8_t *at = (const uint8_t *)m->weights + o / 2 * m->in;
    __m512i total[4][MOST];
    UNROLL for (int r = 0; r < 4; r++)
        UNROLL for (int k = 0; k < tokens; k++) total[r][k] = _mm512_setzero_si512();
    for (long g = 0; g < rows.groups; g++) {
        __m512i sum[4][2];
        UNROLL for (int r = 0; r < 4; r++)
            UNROLL for (int k = 0; k < tokens; k++) sum[r][k] = _mm512_setzero_si512();
        for (long i = g * m->group; i < (g + 1) * m->group; i += 4, at += 128) {
            _mm_prefetch((const char *)(at + 4096), _MM_HINT_T0);
            _mm_prefetch((const char *)(at + 4160), _MM_HINT_T0);
            __m512i w[4];
            nibbles(at, first, second, w);
            UNROLL for (int k = 0; k < tokens; k++) {
                const __m512i v = four(p + k * rows.stride + i);
                UNROLL for (int r = 0; r < 4; r++) sum[r][k] = multiplied(sum[r][k], w[r], v);
            }
        }
        const int8_t *step = m->steps + 2 * (o * rows.groups + 64 * g);
        _mm_prefetch((const char *)(step + 512), _MM_HINT_T0);
        _mm_prefetch((const char *)(step + 576), _MM_HINT_T0);
        UNROLL for (int r = 0; r < 4; r++) {
            __m512i by, plus;
            steps_of(step + 32 * r, &by, &plus);
            UNROLL for (int k = 0; k < tokens; k++) {
                const __m512i all = _mm512_set1_epi32(rows.sums[(t + k) * rows.groups + g]);
                const __m512i part = _mm512_add_epi32(_mm512_mullo_epi32(plus, all), _mm512_mullo_epi32(by, sum[r][k]));
                total[r][k] = _mm512_add_epi32(total[r][k], part);
            }
        }
    }
    put(tokens, m, rows, to, t, o, total);
}

/* A tile in 4 bits as one in 8: m q + a + 128 in one byte, for the same 64 rows. */
static void widen(const Matrix *m, uint8_t *w, long o) {
    const __m512i first = turned(0), second = turned(1), bytes = _mm512_set1_epi32(0x01010101);
    const uint8_t *at = (const uint8_t *)m->weights + o / 2 * m->in;
    const long groups = m->in / m->group;
    for (long g = 0; g < groups; g++) {
        __m512i by[4], plus[4];
        UNROLL for (int r = 0; r < 4; r++) {
            steps_of(m->steps + 2 * (o * groups + 64 * g) + 32 * r, by + r, plus + r);
            plus[r] = _mm512_mullo_epi32(_mm512_and_si512(_mm512_add_epi32(plus[r], _mm512_set1_epi32(128)),
                                                          _mm512_set1_epi32(255)), bytes);
        }
        for (long i = 0; i < m->group; i += 4, at += 128, w += 256) {
            __m512i q[4];
            nibbles(at, first, second, q);
            UNROLL for (int r = 0; r < 4; r++) {
                /* A row's 4 bytes times its m: no byte reaches past 255, so none is carried into the next. */
                const __m512i product = _mm512_mullo_epi32(q[r], by[r]);
                _mm512_storeu_si512(w + 64 * r, _mm512_add_epi8(product, plus[r]));
            }
        }
    }
}

/* One tile times all rows. */
static void tile_for(const Matrix *m, Rows rows, Target to, long n, long o) {
    if (m->kind == INT8) {
        int8_tile(m, (const uint8_t *)m->weights + o * ((m->in + 3) / 4 * 4), rows, to, n, o);
        return;
    }
    uint8_t *wide = n < EXPAND ? NULL : room(1, 64 * m->in);
    if (wide) {
        widen(m, wide, o);
        int8_tile(m, wide, rows, to, n, o);
        return;
    }
    long t = 0;
    for (; t + 2 <= n; t += 2) int4_rows(2, m, rows, to, t, o);
    if (t < n) int4_rows(1, m, rows, to, t, o);
}

/* y (n, out) = x (n, in) W^T + bias for x as `rows`. */
void integers_for(Hand *hand, const Matrix *m, Rows rows, Target to, long n) {
    EACH(tile, (m->out + 63) / 64, 1, hand) tile_for(m, rows, to, n, 64 * tile);
}

/* y (n, out / 2) = f(g) u, where g and u are the halves of the product, each a multiple of 64 wide. A tile of both is read
   again while it is in the cache. both: room of this thread for 128 n numbers. */
void gated_for(Hand *hand, const Matrix *m, Rows rows, int kind, float *y, float *both, long n) {
    const long width = m->out / 2;
    EACH(tile, width / 64, 1, hand) {
        const long o = 64 * tile;
        tile_for(m, rows, (Target){both, 128, 0, o}, n, o);
        tile_for(m, rows, (Target){both + 64, 128, 0, width + o}, n, width + o);
        for (long t = 0; t < n; t++) activate_row(kind, both + 128 * t, both + 128 * t + 64, y + t * width + o, 64);
    }
}

/* The product in a region of its own. Returns 1 when there is no memory. */
static int product(const Matrix *m, const float *x, float *y, long n, long group) {
    void *memory = room(0, rows_bytes(n, m->in, group));
    if (!memory) return 1;
    const Rows rows = rows_in(memory, n, m->in, group);
    Counter counters[COUNTERS(2, omp_get_max_threads())];
    memset(counters, 0, sizeof counters);
#pragma omp parallel
    {
        Hand hand = HAND(counters);
        quantise_for(&hand, rows, x, n, m->in, group);
        integers_for(&hand, m, rows, (Target){y, m->out, 0, 0}, n);
    }
    return 0;
}

/* y (n, out) = x (n, in) W^T + bias, where W_oi = 127 factor_o q_oi. bias may be NULL. */
int int8_linear(const float *x, const uint8_t *tiles, const float *factor, const float *bias, float *y, long n, long in,
                long out) {
    const Matrix m = {INT8, in, out, in, tiles, NULL, factor, bias};
    return product(&m, x, y, n, in);
}

/* The same where W_oi = 127 factor_o (m q + a); out is a multiple of 64, in of group, group of 16. */
int int4_linear(const float *x, const uint8_t *tiles, const int8_t *steps, const float *factor, const float *bias,
                float *y, long n, long in, long out, long group) {
    const Matrix m = {INT4, in, out, group, tiles, steps, factor, bias};
    return product(&m, x, y, n, group);
}

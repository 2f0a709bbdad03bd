/* A mixture of experts: pairs of token and expert are sorted by expert, then up to 48 tokens of one expert at a time go
   through it from end to end, by one thread, so that what stands between its products never leaves the cache near it.

   Rows are turned: a register holds one input of 16 rows, and meets single weights, which are read as they lie, once for
   all 48. 24 registers of sums take 24 products for at most 15 loads, so products are what it waits for. */
#include "common.h"

#define ROWS 48   /* of a panel, whether or not all are there */
#define INNER 1536 /* hidden numbers at a time: with the panels of inputs and outputs they fill half a near cache */

#define CLAMPED (-1) /* (clamp(up, -limit, limit) + 1) g / (1 + e^(-alpha g)) with g = min(gate, limit) */

typedef struct {
    long experts, width, hidden; /* of `hidden` numbers inside an expert */
    long half, activation;       /* half: weights and x in bfloat16. activation: CLAMPED, or as activate_row has it */
    float alpha, limit;
    const void *gate, *up, *down; /* (experts, hidden, width), the same or NULL, (experts, width, hidden) */
    const float *gate_bias, *up_bias, *down_bias; /* (experts, ...), each may be NULL */
} Experts;

/* What one thread works in: panels of inputs, hidden numbers and outputs (each of `ROWS` columns), and what a tile gives. */
typedef struct {
    float *x, *hidden, *pairs, *y, *tile;
} Panels;

INLINE __m512 more(const int half, __m512 sum, __m512 x, uint32_t w) {
    const __m512i weight = _mm512_set1_epi32((int)w);
    if (!half) return _mm512_fmadd_ps(x, _mm512_castsi512_ps(weight), sum);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weight));
    return sum;
}

INLINE __m256 more_of_8(const int half, __m256 sum, __m256 x, uint32_t w) {
    const __m256i weight = _mm256_set1_epi32((int)w);
    if (!half) return _mm256_fmadd_ps(x, _mm256_castsi256_ps(weight), sum);
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weight));
    return sum;
}

/* to (2 `out`, ROWS) = or += the rows of two pieces of a matrix, `out` each, times `count` steps of a panel. A step is an
   input, or two in bfloat16, 32 bits either way; a matrix's rows lie `apart` steps from each other. The panel's rows fill
   `whole` registers of 16, or `eights` of 8, of which a core multiplies two where it multiplies one of 16. What the next
   tile reads is fetched meanwhile. */
INLINE void tile(const int half, const int whole, const int eights, const int out, const float *panel, const uint32_t *one,
                 const uint32_t *two, long apart, long count, float *to, int add) {
    __m512 sum[12][3];
    __m256 less[12][5];
#define OUT _Pragma("GCC unroll 12") for (int o = 0; o < 2 * out; o++)
#define WHOLE _Pragma("GCC unroll 3") for (int v = 0; v < whole; v++)
#define EIGHTS _Pragma("GCC unroll 5") for (int v = 0; v < eights; v++)
    OUT {
        WHOLE sum[o][v] = add ? _mm512_load_ps(to + o * ROWS + 16 * v) : _mm512_setzero_ps();
        EIGHTS less[o][v] = add ? _mm256_load_ps(to + o * ROWS + 8 * v) : _mm256_setzero_ps();
    }
    for (long i = 0; i < count; i++) {
        const float *x = panel + i * ROWS;
        if (i % 16 == 0)
            OUT _mm_prefetch((o < out ? one + (o + out) * apart : two + o * apart) + i, _MM_HINT_T1);
        __m512 part[3];
        __m256 small[5];
        WHOLE part[v] = _mm512_load_ps(x + 16 * v);
        EIGHTS small[v] = _mm256_load_ps(x + 8 * v);
        OUT {
            const uint32_t w = (o < out ? one + o * apart : two + (o - out) * apart)[i];
            WHOLE sum[o][v] = more(half, sum[o][v], part[v], w);
            EIGHTS less[o][v] = more_of_8(half, less[o][v], small[v], w);
        }
    }
    OUT {
        WHOLE _mm512_store_ps(to + o * ROWS + 16 * v, sum[o][v]);
        EIGHTS _mm256_store_ps(to + o * ROWS + 8 * v, less[o][v]);
    }
}

typedef void Tile(const float *panel, const uint32_t *one, const uint32_t *two, long apart, long count, float *to, int add);

/* The shapes of tiles by the eights of rows that they serve. */
#define SHAPE(name, half, whole, eights, out)                                                                          \
    static __attribute__((noinline)) void name(const float *panel, const uint32_t *one, const uint32_t *two, long apart, \
                                               long count, float *to, int add) {                                       \
        tile(half, whole, eights, out, panel, one, two, apart, count, to, add);                                        \
    }
#define SHAPES(kind, half)                                                                                             \
    SHAPE(kind##1, half, 0, 1, 6)                                                                                      \
    SHAPE(kind##2, half, 1, 0, 6)                                                                                      \
    SHAPE(kind##3, half, 0, 3, 4)                                                                                      \
    SHAPE(kind##4, half, 2, 0, 6)                                                                                      \
    SHAPE(kind##5, half, 0, 5, 2)                                                                                      \
    SHAPE(kind##6, half, 3, 0, 4)                                                                                      \
    SHAPE(kind##_left, half, 3, 0, 1)
SHAPES(floats, 0)
SHAPES(halves, 1)
static const int outputs[7] = {0, 6, 6, 4, 6, 2, 4}; /* of each piece */
static Tile *const tiles[2][7] = {{floats_left, floats1, floats2, floats3, floats4, floats5, floats6},
                                  {halves_left, halves1, halves2, halves3, halves4, halves5, halves6}};

/* bfloat16 in the upper halves, to the nearest, ties to even. */
INLINE __m512i rounded(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}

/* The tokens' rows of x, turned; zeros past the last. */
static void turn_in(const Experts *e, const float *x, const long *tokens, long rows, float *panel) {
    const long steps = e->half ? e->width / 2 : e->width;
    for (long i = 0; i < steps; i += 16)
        for (long r = 0; r < ROWS; r += 16) {
            __m512 row[16];
            const __mmask16 some = lanes(steps - i);
            for (long k = 0; k < 16; k++)
                row[k] = r + k < rows ? _mm512_maskz_loadu_ps(some, x + tokens[r + k] * steps + i) : _mm512_setzero_ps();
            turn_16(row);
            for (long k = 0; k < 16 && i + k < steps; k++) _mm512_store_ps(panel + (i + k) * ROWS + r, row[k]);
        }
}

static void turn_out(const Experts *e, const float *panel, long rows, const float *bias, float *y) {
    for (long d = 0; d < e->width; d += 16)
        for (long r = 0; r < rows; r += 16) {
            __m512 row[16];
            const __mmask16 some = lanes(e->width - d);
            for (long k = 0; k < 16; k++) row[k] = _mm512_load_ps(panel + (d + k < e->width ? d + k : d) * ROWS + r);
            turn_16(row);
            const __m512 more = bias ? _mm512_maskz_loadu_ps(some, bias + d) : _mm512_setzero_ps();
            for (long k = 0; k < 16 && r + k < rows; k++)
                _mm512_mask_storeu_ps(y + (r + k) * e->width + d, some, _mm512_add_ps(row[k], more));
        }
}

static void add_bias(float *row, const float *bias, long o) {
    if (bias)
        for (long r = 0; r < ROWS; r++) row[r] += bias[o];
}

/* y = f(gate) * up, or f(gate) where up is NULL. */
static void activate_column(const Experts *e, const float *gate, const float *up, float *y, long rows) {
    if (e->activation != CLAMPED) {
        activate_row((int)e->activation, gate, up, y, rows);
        return;
    }
    const __m512 most = _mm512_set1_ps(e->limit), least = _mm512_set1_ps(-e->limit), one = _mm512_set1_ps(1);
    for (long r = 0; r < rows; r += 16) {
        const __m512 g = _mm512_min_ps(most, _mm512_load_ps(gate + r));
        const __m512 u = _mm512_min_ps(most, _mm512_max_ps(least, _mm512_load_ps(up + r)));
        const __m512 below = _mm512_add_ps(one, exponential(_mm512_mul_ps(_mm512_set1_ps(-e->alpha), g)));
        _mm512_store_ps(y + r, _mm512_mul_ps(_mm512_add_ps(u, one), _mm512_div_ps(g, below)));
    }
}

/* hidden (count, ROWS) = f(gate) * up, or f(up), of the hidden numbers from `start` on. Tiles take as many outputs of gate
   as of up, or twice as many of up alone; what is left at the end goes two by two, a single one twice. */
static void go_in(const Experts *e, long expert, int eights, long start, long count, const Panels *p) {
    const long apart = e->half ? e->width / 2 : e->width, base = expert * e->hidden + start;
    const uint32_t *up = (const uint32_t *)e->up + base * apart;
    const uint32_t *gate = e->gate ? (const uint32_t *)e->gate + base * apart : NULL;
    const float *gate_bias = e->gate_bias ? e->gate_bias + base : NULL, *up_bias = e->up_bias ? e->up_bias + base : NULL;
    const long each = e->gate ? 1 : 2, full = outputs[eights];
    for (long o = 0, taken; o < count; o += taken) {
        const int whole = count - o >= full * each;
        const long n = whole ? full : 1;
        taken = whole ? full * each : count - o < each ? 1 : each;
        const uint32_t *one = (gate ? gate : up) + o * apart, *two = up + (gate ? o : taken > n ? o + n : o) * apart;
        tiles[e->half][whole ? eights : 0](p->x, one, two, apart, apart, p->tile, 0);
        for (long j = 0; j < taken; j++) {
            float *first = p->tile + j * ROWS, *second = p->tile + (n + j) * ROWS;
            add_bias(first, gate ? gate_bias : up_bias, o + j);
            if (gate) add_bias(second, up_bias, o + j);
            activate_column(e, first, gate ? second : NULL, p->hidden + (o + j) * ROWS, 8 * eights);
        }
    }
    if (!e->half) return;
    for (long i = 0; i < count; i += 2)
        for (long r = 0; r < 8 * eights; r += 16) {
            const __m512i low = rounded(_mm512_load_ps(p->hidden + i * ROWS + r));
            const __m512i high = rounded(_mm512_load_ps(p->hidden + (i + 1) * ROWS + r));
            const __m512i both = _mm512_mask_mov_epi16(_mm512_srli_epi32(low, 16), 0xaaaaaaaa, high);
            _mm512_store_si512(p->pairs + i / 2 * ROWS + r, both);
        }
}

/* y (width, ROWS) = or += W_down's columns from `start` on times `count` hidden numbers. */
static void go_out(const Experts *e, long expert, int eights, long start, long count, const Panels *p) {
    const long by = e->half ? 2 : 1, apart = e->hidden / by, full = 2 * outputs[eights];
    const uint32_t *down = (const uint32_t *)e->down + (expert * e->width * e->hidden + start) / by;
    const float *inner = e->half ? p->pairs : p->hidden;
    for (long d = 0, taken; d < e->width; d += taken) {
        const int whole = e->width - d >= full;
        taken = whole ? full : e->width - d < 2 ? 1 : 2;
        const uint32_t *one = down + d * apart, *two = one + taken / 2 * apart;
        tiles[e->half][whole ? eights : 0](inner, one, two, apart, count / by, p->y + d * ROWS, start > 0);
    }
}

/* y (rows, width) of the tokens' rows of x. */
static void one_panel(const Experts *e, long expert, const void *x, const long *tokens, float *y, long rows,
                      const Panels *p) {
    const int eights = (int)((rows + 7) / 8);
    const long pieces = (e->hidden + INNER - 1) / INNER, size = ((e->hidden + pieces - 1) / pieces + 15) / 16 * 16;
    turn_in(e, x, tokens, rows, p->x);
    for (long start = 0; start < e->hidden; start += size) {
        const long count = e->hidden - start < size ? e->hidden - start : size;
        go_in(e, expert, eights, start, count, p);
        go_out(e, expert, eights, start, count, p);
    }
    turn_out(e, p->y, rows, e->down_bias ? e->down_bias + expert * e->width : NULL, y);
}

/* The panels of each thread: inputs, hidden numbers, those in pairs, outputs (one more, see go_out), a tile of 12. */
static long panels_numbers(const Experts *e) {
    const long inner = (e->hidden < INNER ? e->hidden : INNER) + 16;
    return ROWS * (2 * e->width + 2 * inner + 1 + 12);
}

static Panels panels_at(const Experts *e, float *memory) {
    const long inner = (e->hidden < INNER ? e->hidden : INNER) + 16;
    float *hidden = memory + ROWS * e->width, *pairs = hidden + ROWS * inner, *y = pairs + ROWS * inner;
    return (Panels){memory, hidden, pairs, y, y + ROWS * (e->width + 1)};
}

/* An expert's rows fall to panels of nearly one size, in eights. */
static long panel_size(long rows) {
    const long eights = (rows + 7) / 8, panels = (eights + 5) / 6;
    return panels ? 8 * ((eights + panels - 1) / panels) : 8;
}

/* Pairs of one token and one expert, in order of their tokens. Token n has those from offsets[n] to offsets[n + 1]; an
   expert of one past the last means that the pair was dropped. */
typedef struct {
    long tokens, pairs;
    const long *token, *expert, *offsets;
    const float *weight;
} Pairs;

/* Rows `first` to `first + rows` of what is sorted by expert. */
typedef struct {
    long expert, first, rows;
} Panel;

/* The pairs in order of their experts: whose token each is, and where each pair went (-1: nowhere). The panels too. */
static long sorted(const Experts *e, const Pairs *all, long *token, long *place, long *start, Panel *panels) {
    long count = 0;
    memset(start, 0, sizeof(long) * (e->experts + 2));
    for (long p = 0; p < all->pairs; p++) start[all->expert[p] + 1]++;
    for (long expert = 0; expert < e->experts; expert++) start[expert + 1] += start[expert];
    for (long eights = ROWS / 8; eights > 0; eights--)
        for (long expert = 0; expert < e->experts; expert++) {
            const long rows = start[expert + 1] - start[expert], size = panel_size(rows);
            for (long first = 0; first < rows; first += size) {
                const long left = rows - first < size ? rows - first : size;
                if ((left + 7) / 8 == eights) panels[count++] = (Panel){expert, start[expert] + first, left};
            }
        }
    for (long p = 0; p < all->pairs; p++) {
        const long expert = all->expert[p];
        place[p] = expert < e->experts ? start[expert]++ : -1;
        if (place[p] >= 0) token[place[p]] = all->token[p];
    }
    return count;
}

/* out_n = sum over the token's pairs of weight times what its expert gave, y. */
static void add_up(const Experts *e, const Pairs *all, const long *place, const float *y, long n, void *out) {
    for (long d = 0; d < e->width; d += 16) {
        const __mmask16 some = lanes(e->width - d);
        __m512 sum = _mm512_setzero_ps();
        for (long p = all->offsets[n]; p < all->offsets[n + 1]; p++) {
            if (place[p] < 0) continue;
            const __m512 given = _mm512_maskz_loadu_ps(some, y + place[p] * e->width + d);
            sum = _mm512_fmadd_ps(_mm512_set1_ps(all->weight[p]), given, sum);
        }
        const long at = n * e->width + d;
        const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(sum), 16));
        if (e->half)
            _mm256_mask_storeu_epi16((uint16_t *)out + at, some, low);
        else
            _mm512_mask_storeu_ps((float *)out + at, some, sum);
    }
}

/* out (tokens, width) from x (tokens, width), both as the weights are. y (pairs, width) is room to work in. 1: no memory. */
int experts(const Experts *e, const Pairs *all, const void *x, float *y, void *out) {
    const int threads = omp_get_max_threads();
    const size_t integers = 2 * (size_t)all->pairs + e->experts + 2, most = all->pairs / 8 + e->experts; /* panels */
    const size_t counting = sizeof(Counter) * COUNTERS(2, threads);
    long *token = room(0, sizeof(long) * integers + sizeof(Panel) * most);
    float *memory = room(1, sizeof(float) * panels_numbers(e) * threads);
    Counter *counters = room(3, counting);
    if (!token || !memory || !counters) return 1;
    long *place = token + all->pairs, *start = place + all->pairs;
    Panel *panels = (Panel *)(start + e->experts + 2);
    const long count = sorted(e, all, token, place, start, panels);
    memset(counters, 0, counting);
#pragma omp parallel num_threads(threads)
    {
        Hand hand = HAND(counters);
        const Panels p = panels_at(e, memory + panels_numbers(e) * hand.me);
        for (Share units = queue(&hand, count); take(&units);) {
            const Panel *panel = panels + units.from;
            one_panel(e, panel->expert, x, token + panel->first, y + panel->first * e->width, panel->rows, &p);
        }
        EACH(n, all->tokens, 8, &hand) add_up(e, all, place, y, n, out);
    }
    return 0;
}

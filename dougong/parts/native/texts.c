/* Attention when a model reads: many new tokens of one or several texts, over keys and values that lie in pages.
   What a text has there is brought together once a layer, for all its queries.
*/
#include "common.h"

static long blocks_of(const Texts *texts, long text) { return (texts->held[text] + texts->count[text] + KEYS - 1) / KEYS; }

/* Numbers that the keys and values of one text take, of the longest. */
size_t texts_room(const Heads *h, const Texts *texts) {
    long most = 0;
    for (long text = 0; text < texts->texts; text++) {
        const long blocks = blocks_of(texts, text);
        most = blocks > most ? blocks : most;
    }
    return (size_t)2 * h->kv_heads * most * KEYS * h->size;
}

/* Up to 64 keys of one head, each coordinate's side by side: (size, 64); and their values, one after the other. What is
   past the last is zero. */
INLINE void collect(const int kept, const Heads *h, const long *places, long count, long head, float *keys, float *values) {
    const long step = h->kv_heads * h->size, size = h->size;
    float key[KEYS];
    for (long i = 0; i < size; i++)
        for (long s = count; s < KEYS; s++) keys[i * KEYS + s] = values[s * size + i] = 0;
    for (long s = 0; s < count; s++) {
        const long at = places[s] * step + head * size, factor = places[s] * h->kv_heads + head;
        const __m512 k_factor = _mm512_set1_ps(kept >= BYTES ? factor_at(h->key_factors, factor) : 1);
        const __m512 v_factor = _mm512_set1_ps(kept >= BYTES ? factor_at(h->value_factors, factor) : 1);
        for (long start = 0; start < size; start += KEYS) {
            const long some = size - start < KEYS ? size - start : KEYS;
            for (long i = 0; i < some; i += 16) {
                const __mmask16 these = lanes(some - i);
                __m512 k = numbers(kept, h->keys, at + start + i, these), v = numbers(kept, h->values, at + start + i, these);
                if (kept >= BYTES) k = _mm512_mul_ps(k, k_factor), v = _mm512_mul_ps(v, v_factor);
                _mm512_mask_storeu_ps(key + i, these, k);
                _mm512_mask_storeu_ps(values + s * size + start + i, these, v);
            }
            for (long i = 0; i < some; i++) keys[(start + i) * KEYS + s] = key[i];
        }
    }
}

/* memory: `texts_room` numbers that all threads share; score: room of this thread for six rows of scores. */
void attend_texts_for(Hand *hand, const Heads *h, float *x, long apart, float *y, const Texts *texts, float *memory, float *score) {
    const long size = h->size, group = h->heads / h->kv_heads;
    for (long text = 0; text < texts->texts; text++) {
        const long *places = texts->places + texts->where[h->table * texts->texts + text];
        const long first = texts->first[text], count = texts->count[text], held = texts->held[text];
        const long keys = held + count, blocks = blocks_of(texts, text), of_head = blocks * KEYS * size;
        float *turned = memory, *values = memory + h->kv_heads * of_head;
        EACH(each, count * h->kv_heads, 8, hand) {
            const long token = each / h->kv_heads;
            take_token(h, x + (first + token) * apart, first + token, each % h->kv_heads, places[held + token]);
        }
        EACH(each, h->kv_heads * blocks, 1, hand) {
            const long head = each / blocks, start = each % blocks * KEYS, some = keys - start < KEYS ? keys - start : KEYS;
            float *to = turned + head * of_head + start * size, *and_to = values + head * of_head + start * size;
            switch (h->kept) {
            case FLOATS: collect(FLOATS, h, places + start, some, head, to, and_to); break;
            case HALVES: collect(HALVES, h, places + start, some, head, to, and_to); break;
            case BYTES: collect(BYTES, h, places + start, some, head, to, and_to); break;
            default: collect(BYTES_FLOAT, h, places + start, some, head, to, and_to);
            }
        }
        const long pieces = (count + QUERIES - 1) / QUERIES;
        const Shape shape = {.n = 1, .heads = h->heads, .kv_heads = h->kv_heads, .queries = count, .keys = keys,
                             .size = size, .q_step = apart, .v_step = size, .causal = !h->both_ways, .scale = h->scale};
        EACH(each, h->heads * pieces, 2, hand) {
            const long head = each / pieces, key_head = head / group;
            six_queries(&shape, x + first * apart + h->q + head * size, turned + key_head * of_head,
                        values + key_head * of_head, NULL, y + (first * h->heads + head) * size, score,
                        each % pieces * QUERIES);
        }
    }
}

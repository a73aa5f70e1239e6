/* What the kernels of attention inside the segments of a packed row have in common.
 *
 * A segment has queries and keys: the tokens of a pair, or the rest of a pair and its prefix before
 * it. Its last query is at the last of its keys. A head of keys serves one or more heads of queries.
 *
 * Matrices are named as in the paper (Dao 2023, "FlashAttention-2", arXiv:2307.08691):
 * S = Q K^T, P = softmax(S), O = P V; and going back dV = P^T dO, dP = dO V^T,
 * dS = P * (dP - rowsum(dO * O)), dQ = dS K, dK = dS^T Q.
 */

#include <stdlib.h>
#include <string.h>

#include "kernels.h"

#define LOG2E 1.44269504088896340736f
#define FAR_BELOW (-1e30f)

/* One row of tokens: token t of head h starts at number `t * token + h * head` of the data. */
typedef struct {
    void *data;
    int64_t token;
    int64_t head;
} Rows;

typedef struct {
    Rows q, k, v, out, dout, dq, dk, dv;
    float *lse; /* [heads, tokens]: log2 of the sum of exp2 of the scaled scores */
    const int32_t *bounds, *key_bounds;
    int32_t segments, heads, key_heads, dim, tokens, longest, window, causal;
    float scale;
    int32_t failed;
    int64_t next; /* the next (segment, head of keys) that a thread takes */
} Work;

/* The first number of a token's head, counted from the start of the data. */
INLINE int64_t place(const Rows *rows, int token, int head) {
    return (int64_t)token * rows->token + (int64_t)head * rows->head;
}

INLINE int low_edge(int token, int window) {
    int low = token - window + 1;
    return low > 0 ? low : 0;
}

/* The keys that a token at a position of its segment sees: [*low, *high) of m. */
INLINE void keys_of(const Work *w, int position, int m, int *low, int *high) {
    *low = w->window > 0 ? low_edge(position, w->window) : 0;
    *high = w->causal ? position + 1 : w->window > 0 ? position + w->window : m;
    if (*high > m) *high = m;
}

/* What every thread does: take the next segment and head of keys until none is left. */
INLINE void share(Work *w, size_t bytes, void (*one)(Work *, int, int, char *)) {
    char *space = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!space) {
        __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    const int64_t all = (int64_t)w->segments * w->key_heads;
    for (;;) {
        int64_t item = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
        if (item >= all) break;
        int segment = (int)(item / w->key_heads);
        if (w->bounds[segment + 1] > w->bounds[segment])
            one(w, segment, (int)(item % w->key_heads), space);
    }
    free(space);
}

INLINE int run(Work *work, void (*fn)(void *), Parallel parallel, int threads) {
    work->next = 0;
    work->failed = 0;
    run_in_parallel(fn, work, parallel, threads);
    return work->failed;
}

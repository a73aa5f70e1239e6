/* Attention inside the segments of a packed row, forward, in bfloat16 on AMX.
 *
 * The products are those of `packed_attention_bfloat16.c`, with the same operands, by tiles of 16 rows
 * by 16 columns. Sums are float32; scores pass through memory, which a tile cannot avoid.
 */

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && \
    (__GNUC__ >= 11 || defined(__clang__))

#include "packed_attention_bfloat16.h"
#include "tiles.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")

#define ROWS 16 /* rows of a tile */

/* The buffers of a head: queries behind the last token are zero. */
typedef struct {
    bf16x2 *keys;   /* [dim / 2][ld] */
    bf16x2 *values; /* [ld / 2][dim] */
    float *scores;  /* [ROWS][ld] */
    bf16 *weights;  /* [ROWS][ld] */
    bf16 *queries;  /* [ROWS][dim] */
    float *sums;    /* [ROWS][COLUMNS] */
    int ld;
} Buffers;

/* Tiles 0 and 1 are sums, 2 to 5 up to 128 numbers of the queries, 6 and 7 columns. */
INLINE void load_queries(const bf16 *from, int64_t bytes, int dim) {
    memory_is_written();
    _tile_loadd(2, from, bytes);
    if (dim > 32) _tile_loadd(3, from + 32, bytes);
    if (dim > 64) {
        _tile_loadd(4, from + 64, bytes);
        _tile_loadd(5, from + 96, bytes);
    }
}

#define ADD_PRODUCTS(QUERIES, columns, ld)                 \
    _tile_loadd(6, columns, (ld) * 4);                     \
    _tile_loadd(7, (columns) + 16, (ld) * 4);              \
    _tile_dpbf16ps(0, QUERIES, 6);                         \
    _tile_dpbf16ps(1, QUERIES, 7);

/* The products of the loaded queries and 32 keys. */
INLINE void score_keys(const bf16x2 *keys, int64_t ld, int dim, float *scores) {
    _tile_zero(0);
    _tile_zero(1);
    ADD_PRODUCTS(2, keys, ld)
    if (dim > 32) {
        ADD_PRODUCTS(3, keys + 16 * ld, ld)
    }
    if (dim > 64) {
        ADD_PRODUCTS(4, keys + 32 * ld, ld)
        ADD_PRODUCTS(5, keys + 48 * ld, ld)
    }
    _tile_stored(0, scores, ld * 4);
    _tile_stored(1, scores + 16, ld * 4);
}

/* The sums of 32 numbers of the values by their weights. */
INLINE void sum_values(const Buffers *b, int from, int end, int c, int64_t dim) {
    memory_is_written();
    _tile_zero(0);
    _tile_zero(1);
    for (int j = from; j < end; j += 32) {
        _tile_loadd(2, b->weights + j, b->ld * 2);
        ADD_PRODUCTS(2, b->values + (int64_t)j / 2 * dim + c, dim)
    }
    _tile_stored(0, b->sums, COLUMNS * 4);
    _tile_stored(1, b->sums + 16, COLUMNS * 4);
}

/* Put scores of keys that a query does not see far below all others. */
INLINE void mask_scores(float *s, int from, int end, int low, int high) {
    for (int j = from; j < end; j += 16) {
        const __mmask16 seen = columns_in(j, low, high);
        _mm512_storeu_ps(s + j, _mm512_mask_loadu_ps(_mm512_set1_ps(FAR_BELOW), seen, s + j));
    }
}

/* Turn scores into weights; returns their sum, and in `top` the largest score. */
INLINE float softmax(const float *s, bf16 *weights, int from, int end, float scale, float *top) {
    __m512 most = _mm512_set1_ps(FAR_BELOW), sum = _mm512_setzero_ps();
    for (int j = from; j < end; j += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(s + j));
    *top = _mm512_reduce_max_ps(most) * scale;
    const __m512 peak = _mm512_set1_ps(*top), factor = _mm512_set1_ps(scale);
    for (int j = from; j < end; j += 16) {
        const __m512 p = exp2_ps(_mm512_fmsub_ps(_mm512_loadu_ps(s + j), factor, peak));
        sum = _mm512_add_ps(sum, p);
        store_bf16(weights + j, p);
    }
    return _mm512_reduce_add_ps(sum);
}

static void forward_head(Work *w, int segment, int head, const Buffers *b) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int m = w->key_bounds[segment + 1] - w->key_bounds[segment];
    const int before = m - n; /* keys before the first query */
    const float scale = w->scale * LOG2E;
    for (int t = 0; t < n; t += ROWS) {
        const int rows = n - t < ROWS ? n - t : ROWS;
        /* The rows look at the columns [from, end). */
        int from, to, low, high;
        keys_of(w, before + t, m, &from, &high);
        keys_of(w, before + t + rows - 1, m, &low, &to);
        from = from / COLUMNS * COLUMNS;
        const int end = padded(to);
        if (rows == ROWS) {
            load_queries(row(&w->q, first + t, head), w->q.token * 2, dim);
        } else {
            memset(b->queries, 0, (size_t)ROWS * dim * sizeof(bf16));
            for (int r = 0; r < rows; r++)
                memcpy(b->queries + r * dim, row(&w->q, first + t + r, head), dim * sizeof(bf16));
            load_queries(b->queries, dim * 2, dim);
        }
        for (int j = from; j < end; j += COLUMNS)
            score_keys(b->keys + j, b->ld, dim, b->scores + j);
        float inverse[ROWS];
        for (int r = 0; r < rows; r++) {
            float *s = b->scores + (int64_t)r * b->ld, top;
            keys_of(w, before + t + r, m, &low, &high);
            mask_scores(s, from, low, low, high);
            mask_scores(s, high / 16 * 16, end, low, high);
            const float total =
                softmax(s, b->weights + (int64_t)r * b->ld, from, end, scale, &top);
            inverse[r] = 1.0f / total;
            if (w->lse)
                w->lse[(int64_t)head * w->tokens + first + t + r] = top + __builtin_log2f(total);
        }
        for (int c = 0; c < dim; c += COLUMNS) {
            sum_values(b, from, end, c, dim);
            for (int r = 0; r < rows; r++) {
                bf16 *out = (bf16 *)row(&w->out, first + t + r, head) + c;
                const float *sums = b->sums + r * COLUMNS;
                const __m512 factor = _mm512_set1_ps(inverse[r]);
                store_bf16(out, _mm512_mul_ps(_mm512_loadu_ps(sums), factor));
                store_bf16(out + 16, _mm512_mul_ps(_mm512_loadu_ps(sums + 16), factor));
            }
        }
    }
}

static void forward_one(Work *w, int segment, int key_head, char *space) {
    const int first = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first;
    const int dim = w->dim, group = w->heads / w->key_heads;
    const int64_t ld = padded(m);
    Buffers b = {.keys = (bf16x2 *)space, .ld = (int)ld};
    b.values = b.keys + dim / 2 * ld;
    b.scores = (float *)(b.values + ld / 2 * dim);
    b.weights = (bf16 *)(b.scores + ROWS * ld);
    b.queries = b.weights + ROWS * ld;
    b.sums = (float *)(b.queries + ROWS * dim);
    pack_numbers(&w->k, key_head, first, m, dim, b.keys, (int)ld);
    pack_tokens(&w->v, key_head, first, m, dim, b.values);
    for (int head = key_head * group; head < (key_head + 1) * group; head++)
        forward_head(w, segment, head, &b);
}

/* Bytes that `forward_one` needs for the longest segment. */
static size_t forward_space(const Work *w) {
    const size_t ld = padded(w->longest), dim = w->dim;
    return ld * dim * 4 + ROWS * ld * 6 + ROWS * dim * 2 + ROWS * COLUMNS * 4;
}

static void forward_share(void *w) {
    Tiles before;
    set_tiles(&before);
    share(w, forward_space(w), forward_one);
    reset_tiles(&before);
}

int packed_attention_forward_amx(Work *work, Parallel parallel, int threads) {
    return run(work, forward_share, parallel, threads);
}

#pragma GCC pop_options

#else

int packed_attention_forward_amx(void *work, void *parallel, int threads) { return 2; }

#endif

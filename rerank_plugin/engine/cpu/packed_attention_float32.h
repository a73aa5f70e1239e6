/* The kernels of `packed_attention_float32.c` for vectors of one width. */

#define TILE (2 * WIDTH) /* columns of a tile: two registers */

INLINE int NAME(padded)(int n) { return (n + TILE - 1) / TILE * TILE; }

INLINE int NAME(whole_rows)(int n) { return (n + ROWS - 1) / ROWS * ROWS; }

/* acc[r][c] = sum over k < n of a[r * row + k * step] b[k * ldb + c], c < TILE: the one product. */
INLINE void NAME(product)(VEC acc[ROWS][2], const float *a, int64_t row, int64_t step, int n,
                          const float *b, int64_t ldb) {
    for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = OP(setzero_ps)();
    for (int k = 0; k < n; k++) {
        const VEC b0 = OP(loadu_ps)(b), b1 = OP(loadu_ps)(b + WIDTH);
#pragma GCC unroll 14
        for (int r = 0; r < ROWS; r++) {
            const VEC x = OP(set1_ps)(a[r * row]);
            acc[r][0] = OP(fmadd_ps)(x, b0, acc[r][0]);
            acc[r][1] = OP(fmadd_ps)(x, b1, acc[r][1]);
        }
        a += step;
        b += ldb;
    }
}

/* Rows of a head, tokens `first` to `first + n`, in panels of TILE tokens: to[n / TILE][dim][TILE],
 * zero behind the last token. */
static void NAME(pack_numbers)(const Rows *rows, int head, int first, int n, int dim, float *to) {
    for (int t = 0; t < NAME(padded)(n); t += 8) {
        float *panel = to + (int64_t)(t / TILE * TILE) * dim + t % TILE;
        for (int c = 0; c < dim; c += 8) {
            __m256 m[8];
            for (int i = 0; i < 8; i++)
                m[i] = t + i < n ? _mm256_loadu_ps(row(rows, first + t + i, head) + c)
                                 : _mm256_setzero_ps();
            transpose(m);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(panel + (c + i) * TILE, m[i]);
        }
    }
}

/* The same rows, one after the other: to[end][dim], zero behind the last token. */
static void NAME(pack_tokens)(const Rows *rows, int head, int first, int n, int end, int dim,
                              float *to) {
    for (int t = 0; t < n; t++)
        memcpy(to + (int64_t)t * dim, row(rows, first + t, head), dim * sizeof *to);
    memset(to + (int64_t)n * dim, 0, (size_t)(end - n) * dim * sizeof *to);
}

/* Queries t to t + ROWS of n, times a factor: to[dim][ROWS]; behind the last one it stands in. */
INLINE void NAME(pack_tile)(const Rows *rows, int head, int first, int t, int n, int dim,
                            float factor, float *to) {
    for (int r = 0; r < ROWS; r++) {
        const float *from = row(rows, first + (t + r < n ? t + r : n - 1), head);
        for (int c = 0; c < dim; c++) to[c * ROWS + r] = from[c] * factor;
    }
}

/* Turn scores [from, to) of a query into weights, of which `top` has 1; returns their sum. */
INLINE float NAME(weights)(float *scores, int from, int to, float top) {
    const VEC peak = OP(set1_ps)(top);
    VEC sum[2] = {OP(setzero_ps)(), OP(setzero_ps)()};
    for (int j = from; j < to; j += TILE)
        for (int c = 0; c < 2; c++) {
            float *at = scores + j + WIDTH * c;
            const VEC p = NAME(exp2)(OP(sub_ps)(OP(loadu_ps)(at), peak));
            sum[c] = OP(add_ps)(sum[c], p);
            OP(storeu_ps)(at, p);
        }
    return NAME(total)(OP(add_ps)(sum[0], sum[1]));
}

static void NAME(forward_head)(Work *w, int segment, int head, const float *keys,
                               const float *values, float *space) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int m = w->key_bounds[segment + 1] - w->key_bounds[segment], ld = NAME(padded)(m);
    const int before = m - n;              /* keys before the first query */
    float *queries = space;                /* [dim][ROWS] */
    float *scores = queries + dim * ROWS;  /* [ROWS][ld] */
    for (int t = 0; t < n; t += ROWS) {
        VEC acc[ROWS][2], most[ROWS];
        /* A tile looks at the columns [from, to) that any of its rows sees; all of them see
         * [all_from, all_to). */
        int from, to, all_from, all_to, low, high, last = t + ROWS < n ? t + ROWS : n;
        keys_of(w, before + t, m, &from, &all_to);
        keys_of(w, before + last - 1, m, &all_from, &to);
        from = from / TILE * TILE;
        const int end = NAME(padded)(to);
        NAME(pack_tile)(&w->q, head, first, t, n, dim, w->scale * LOG2E, queries);
        for (int r = 0; r < ROWS; r++) most[r] = OP(set1_ps)(FAR_BELOW);
        for (int j = from; j < end; j += TILE) {
            NAME(product)(acc, queries, 1, ROWS, dim, keys + (int64_t)j * dim, TILE);
            if (j < all_from || j + TILE > all_to)
                for (int r = 0; r < ROWS; r++) {
                    keys_of(w, before + t + r, m, &low, &high);
                    for (int c = 0; c < 2; c++)
                        acc[r][c] = NAME(between)(acc[r][c], FAR_BELOW, j + WIDTH * c, low, high);
                }
            for (int r = 0; r < ROWS; r++) {
                OP(storeu_ps)(scores + (int64_t)r * ld + j, acc[r][0]);
                OP(storeu_ps)(scores + (int64_t)r * ld + j + WIDTH, acc[r][1]);
                most[r] = OP(max_ps)(most[r], OP(max_ps)(acc[r][0], acc[r][1]));
            }
        }
        float inverse[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const float top = NAME(largest)(most[r]);
            const float total = NAME(weights)(scores + (int64_t)r * ld, from, end, top);
            inverse[r] = 1.0f / total;
            if (w->lse && t + r < n)
                w->lse[(int64_t)head * w->tokens + first + t + r] =
                    top + __builtin_log2f(total);
        }
        for (int c = 0; c < dim; c += TILE) {
            NAME(product)(acc, scores + from, ld, 1, end - from, values + (int64_t)from * dim + c,
                          dim);
            for (int r = 0; r < ROWS && t + r < n; r++) {
                float *out = row(&w->out, first + t + r, head) + c;
                const VEC factor = OP(set1_ps)(inverse[r]);
                OP(storeu_ps)(out, OP(mul_ps)(acc[r][0], factor));
                OP(storeu_ps)(out + WIDTH, OP(mul_ps)(acc[r][1], factor));
            }
        }
    }
}

/* The same for few queries: keys and values are read where they are. */
static void NAME(forward_few)(Work *w, int segment, int head, int key_head, float *space) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int first_key = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first_key;
    float *query = space, *scores = query + dim; /* [dim], [padded(m)] */
    for (int t = 0; t < n; t++) {
        int low, high;
        keys_of(w, m - n + t, m, &low, &high);
        const int start = first_key + low, count = high - low, end = NAME(padded)(count);
        const float *from = row(&w->q, first + t, head), factor = w->scale * LOG2E;
        for (int c = 0; c < dim; c++) query[c] = from[c] * factor;
        for (int j = 0; j < count; j += 8)
            _mm256_storeu_ps(scores + j, dots(query, &w->k, key_head, start + j, count - j, dim));
        for (int j = count; j < end; j++) scores[j] = FAR_BELOW;
        VEC most = OP(set1_ps)(FAR_BELOW);
        for (int j = 0; j < end; j += WIDTH) most = OP(max_ps)(most, OP(loadu_ps)(scores + j));
        const float top = NAME(largest)(most), total = NAME(weights)(scores, 0, end, top);
        if (w->lse)
            w->lse[(int64_t)head * w->tokens + first + t] = top + __builtin_log2f(total);
        for (int c = 0; c < dim; c += 32) {
            VEC acc[2][32 / WIDTH];
            for (int i = 0; i < 32 / WIDTH; i++) acc[0][i] = acc[1][i] = OP(setzero_ps)();
            for (int j = 0; j < count; j += 2)
                for (int r = 0; r < 2; r++) {
                    /* Behind the last key its weight is 0. */
                    const int key = j + r < count ? j + r : count - 1;
                    const float *v = row(&w->v, start + key, key_head) + c;
                    const VEC x = OP(set1_ps)(scores[j + r]);
                    for (int i = 0; i < 32 / WIDTH; i++)
                        acc[r][i] = OP(fmadd_ps)(x, OP(loadu_ps)(v + WIDTH * i), acc[r][i]);
                }
            float *out = row(&w->out, first + t, head) + c;
            const VEC inverse = OP(set1_ps)(1.0f / total);
            for (int i = 0; i < 32 / WIDTH; i++)
                OP(storeu_ps)(out + WIDTH * i,
                              OP(mul_ps)(OP(add_ps)(acc[0][i], acc[1][i]), inverse));
        }
    }
}

static void NAME(forward_one)(Work *w, int segment, int key_head, char *space) {
    const int first = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first;
    const int dim = w->dim, ld = NAME(padded)(m), group = w->heads / w->key_heads;
    const int few = (w->bounds[segment + 1] - w->bounds[segment]) * group <= FEW;
    float *keys = (float *)space;             /* [ld / TILE][dim][TILE] */
    float *values = keys + (int64_t)ld * dim; /* [ld][dim] */
    if (!few) {
        NAME(pack_numbers)(&w->k, key_head, first, m, dim, keys);
        NAME(pack_tokens)(&w->v, key_head, first, m, ld, dim, values);
    }
    for (int head = key_head * group; head < (key_head + 1) * group; head++)
        if (few)
            NAME(forward_few)(w, segment, head, key_head, keys);
        else
            NAME(forward_head)(w, segment, head, keys, values, values + (int64_t)ld * dim);
}

/* Bytes that `forward_one` needs for the longest segment. */
static size_t NAME(forward_space)(const Work *w) {
    size_t ld = NAME(padded)(w->longest);
    return (2 * ld * w->dim + ROWS * (ld + w->dim)) * sizeof(float);
}

/* Add a tile of a product to rows, or put it there. */
INLINE void NAME(add_tile)(float *to, int ld, VEC acc[ROWS][2], int fresh) {
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < 2; c++) {
            float *at = to + (int64_t)r * ld + WIDTH * c;
            OP(storeu_ps)(at, fresh ? acc[r][c] : OP(add_ps)(acc[r][c], OP(loadu_ps)(at)));
        }
}

/* Scores are transposed: rows are keys j, columns are queries i. P^T and dS^T come out of their
 * tiles as rows over i, which is how dV and dK need them, and dQ takes columns of dS^T. */
static void NAME(backward_one)(Work *w, int segment, int key_head, char *space) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int first_key = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first_key;
    const int before = m - n; /* keys before the first query */
    const int rows_end = NAME(whole_rows)(m), group = w->heads / w->key_heads;
    const int64_t numbers = (int64_t)rows_end * dim;
    float *keys = (float *)space;                /* [rows_end][dim], and so on */
    float *values = keys + numbers, *dk = values + numbers, *dv = dk + numbers;
    float *q_numbers = dv + numbers;             /* [BLOCK / TILE][dim][TILE] */
    float *do_numbers = q_numbers + dim * BLOCK; /* the same */
    float *q_tokens = do_numbers + dim * BLOCK;  /* [BLOCK][dim] */
    float *do_tokens = q_tokens + dim * BLOCK;   /* the same */
    float *lse = do_tokens + dim * BLOCK;        /* [BLOCK] */
    float *delta = lse + BLOCK;                  /* [BLOCK] */
    float *pt = delta + BLOCK;                   /* [ROWS][BLOCK] */
    float *dst = pt + ROWS * BLOCK;              /* [rows_end][BLOCK] */
    const VEC to_log2 = OP(set1_ps)(w->scale * LOG2E), scale = OP(set1_ps)(w->scale);

    NAME(pack_tokens)(&w->k, key_head, first_key, m, rows_end, dim, keys);
    NAME(pack_tokens)(&w->v, key_head, first_key, m, rows_end, dim, values);
    int touched_from = rows_end, touched_to = 0; /* rows of dK and dV that hold something */
    const int blocks = (n + BLOCK - 1) / BLOCK;
    for (int block = 0; block < group * blocks; block++) {
        const int head = key_head * group + block / blocks, i0 = block % blocks * BLOCK;
        const int count = n - i0 < BLOCK ? n - i0 : BLOCK, columns = NAME(padded)(count);
        VEC acc[ROWS][2];
        NAME(pack_numbers)(&w->q, head, first + i0, count, dim, q_numbers);
        NAME(pack_numbers)(&w->dout, head, first + i0, count, dim, do_numbers);
        NAME(pack_tokens)(&w->q, head, first + i0, count, columns, dim, q_tokens);
        NAME(pack_tokens)(&w->dout, head, first + i0, count, columns, dim, do_tokens);
        for (int i = 0; i < columns; i++) {
            VEC sum = OP(setzero_ps)();
            if (i < count)
                for (int c = 0; c < dim; c += WIDTH)
                    sum = OP(fmadd_ps)(OP(loadu_ps)(row(&w->out, first + i0 + i, head) + c),
                                       OP(loadu_ps)(do_tokens + i * dim + c), sum);
            delta[i] = NAME(total)(sum);
            /* So far above any score that behind the last token P is 0. */
            lse[i] = i < count ? w->lse[(int64_t)head * w->tokens + first + i0 + i] : -FAR_BELOW;
        }
        int from, to, edge;
        keys_of(w, before + i0, m, &from, &edge);
        keys_of(w, before + i0 + count - 1, m, &edge, &to);
        from = from / ROWS * ROWS;
        to = NAME(whole_rows)(to);
        for (int j = from; j < to; j += ROWS) {
            float *ds = dst + (int64_t)j * BLOCK;
            /* Columns before the first query that sees any of these keys. */
            int start = w->causal ? j - before - i0 : 0;
            start = start > 0 ? start / TILE * TILE : 0;
            for (int r = 0; r < ROWS; r++) memset(ds + r * BLOCK, 0, start * sizeof *ds);
            for (int i = start; i < columns; i += TILE) {
                /* Whether some query of the tile does not see some row of it. */
                const int position = before + i0 + i;
                const int masked =
                    j + ROWS > m || (w->causal && position < j + ROWS - 1) ||
                    (w->window > 0 && (position + TILE - j > w->window ||
                                       (!w->causal && j + ROWS - position > w->window)));
                NAME(product)(acc, keys + (int64_t)j * dim, dim, 1, dim, q_numbers + i * dim,
                              TILE);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < 2; c++) {
                        const int at = i + WIDTH * c;
                        VEC p = NAME(exp2)(
                            OP(fmsub_ps)(acc[r][c], to_log2, OP(loadu_ps)(lse + at)));
                        if (masked) {
                            const int low = w->causal ? j + r : low_edge(j + r, w->window);
                            const int high = w->window > 0 ? j + r + w->window : m;
                            p = NAME(between)(p, 0.0f, position + WIDTH * c,
                                              w->causal || w->window > 0 ? low : 0,
                                              j + r < m ? high : 0);
                        }
                        OP(storeu_ps)(pt + r * BLOCK + at, p);
                    }
                NAME(product)(acc, values + (int64_t)j * dim, dim, 1, dim, do_numbers + i * dim,
                              TILE);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < 2; c++) {
                        const int at = i + WIDTH * c;
                        const VEC p = OP(mul_ps)(OP(loadu_ps)(pt + r * BLOCK + at), scale);
                        const VEC dp = OP(sub_ps)(acc[r][c], OP(loadu_ps)(delta + at));
                        OP(storeu_ps)(ds + r * BLOCK + at, OP(mul_ps)(p, dp));
                    }
            }
            /* Rows that no block of queries has reached yet hold nothing to add to. */
            const int fresh = j >= touched_to || j < touched_from;
            for (int c = 0; c < dim; c += TILE) {
                NAME(product)(acc, pt + start, BLOCK, 1, columns - start,
                              do_tokens + start * dim + c, dim);
                NAME(add_tile)(dv + (int64_t)j * dim + c, dim, acc, fresh);
                NAME(product)(acc, ds + start, BLOCK, 1, columns - start,
                              q_tokens + start * dim + c, dim);
                NAME(add_tile)(dk + (int64_t)j * dim + c, dim, acc, fresh);
            }
        }
        if (from < touched_from) touched_from = from;
        if (to > touched_to) touched_to = to;
        for (int i = 0; i < count; i += ROWS)
            for (int c = 0; c < dim; c += TILE) {
                NAME(product)(acc, dst + (int64_t)from * BLOCK + i, 1, BLOCK, to - from,
                              keys + (int64_t)from * dim + c, dim);
                for (int r = 0; r < ROWS && i + r < count; r++) {
                    float *dq = row(&w->dq, first + i0 + i + r, head) + c;
                    OP(storeu_ps)(dq, acc[r][0]);
                    OP(storeu_ps)(dq + WIDTH, acc[r][1]);
                }
            }
    }
    for (int j = 0; j < m; j++) {
        /* Under a window, no query may see the first keys of a prefix. */
        const int seen = j >= touched_from && j < touched_to;
        float *rows[2] = {row(&w->dk, first_key + j, key_head), row(&w->dv, first_key + j, key_head)};
        for (int i = 0; i < 2; i++)
            if (seen)
                memcpy(rows[i], (i ? dv : dk) + (int64_t)j * dim, dim * sizeof(float));
            else
                memset(rows[i], 0, dim * sizeof(float));
    }
}

/* Bytes that `backward_one` needs for the longest segment. */
static size_t NAME(backward_space)(const Work *w) {
    size_t rows = NAME(whole_rows)(w->longest), dim = w->dim;
    return (4 * (rows + BLOCK) * dim + (2 + ROWS + rows) * BLOCK) * sizeof(float);
}

static void NAME(forward_share)(void *w) { share(w, NAME(forward_space)(w), NAME(forward_one)); }
static void NAME(backward_share)(void *w) { share(w, NAME(backward_space)(w), NAME(backward_one)); }

int NAME(packed_attention_forward_float32)(Work *work, Parallel parallel, int threads) {
    return run(work, NAME(forward_share), parallel, threads);
}

int NAME(packed_attention_backward_float32)(Work *work, Parallel parallel, int threads) {
    return run(work, NAME(backward_share), parallel, threads);
}

#undef TILE

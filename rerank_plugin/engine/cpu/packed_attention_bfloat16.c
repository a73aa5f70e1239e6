/* Attention inside the segments of a packed row, forward and backward, in bfloat16 on AVX512-BF16.
 *
 * The fused attention of torch spends most of its time around its products when pairs have a few
 * hundred tokens and heads 32 or 64 numbers; here every product is a tile of 12 rows by 32 columns
 * in registers, fed by operands that are packed once for each pair and head. Products take bfloat16
 * and sum in float32; scores, their softmax and all sums stay in float32.
 */

#if defined(__x86_64__) && defined(__GNUC__)

#include "packed_attention_bfloat16.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

#define ROWS 12   /* rows of a tile */
#define BLOCK 256 /* queries that a backward pass looks at together */

/* acc[r][c] = sum over k of a[r][k] b[k][c], over `pairs` pairs of k: the one product of this file.
 * `a` are rows of bfloat16, `b` is packed in pairs of k with `ldb` columns. */
INLINE void product(__m512 acc[][2], const int rows, const bf16 *const *a, int pairs,
                    const bf16x2 *b, int ldb) {
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (int k = 0; k < pairs; k++) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + (int64_t)k * ldb);
        __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + (int64_t)k * ldb + 16);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            bf16x2 both;
            memcpy(&both, a[r] + 2 * k, sizeof both);
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)both);
            acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
            acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
        }
    }
}

/* Pointers to the rows of a tile; behind the last token the last one stands in. */
INLINE void tile_rows(const bf16 *a[ROWS], const Rows *rows, int head, int first, int t, int n) {
    for (int r = 0; r < ROWS; r++) a[r] = row(rows, first + (t + r < n ? t + r : n - 1), head);
}

static void forward_head(Work *w, int segment, int head, bf16x2 *keys, bf16x2 *values,
                         char *space) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int m = w->key_bounds[segment + 1] - w->key_bounds[segment], ld = padded(m);
    const int before = m - n; /* keys before the first query */
    float *scores = (float *)space;                        /* [ROWS][ld] */
    bf16 *weights = (bf16 *)(scores + (int64_t)ROWS * ld); /* [ROWS][ld] */
    const __m512 scale = _mm512_set1_ps(w->scale * LOG2E);
    for (int t = 0; t < n; t += ROWS) {
        const bf16 *a[ROWS];
        __m512 acc[ROWS][2];
        /* A tile looks at the columns [from, to) that any of its rows sees; all of them see
         * [all_from, all_to). */
        int from, to, all_from, all_to, low, high, last = t + ROWS < n ? t + ROWS : n;
        keys_of(w, before + t, m, &from, &all_to);
        keys_of(w, before + last - 1, m, &all_from, &to);
        from = from / COLUMNS * COLUMNS;
        const int end = padded(to);
        tile_rows(a, &w->q, head, first, t, n);
        for (int j = from; j < end; j += COLUMNS) {
            product(acc, ROWS, a, dim / 2, keys + j, ld);
            const int whole = j >= all_from && j + COLUMNS <= all_to;
            for (int r = 0; r < ROWS; r++) {
                if (!whole) keys_of(w, before + t + r, m, &low, &high);
                for (int c = 0; c < 2; c++) {
                    __m512 s = _mm512_mul_ps(acc[r][c], scale);
                    if (!whole)
                        s = _mm512_mask_blend_ps(columns_in(j + 16 * c, low, high),
                                                 _mm512_set1_ps(FAR_BELOW), s);
                    _mm512_storeu_ps(scores + (int64_t)r * ld + j + 16 * c, s);
                }
            }
        }
        float inverse[ROWS];
        for (int r = 0; r < ROWS; r++) {
            const float *s = scores + (int64_t)r * ld;
            __m512 most = _mm512_set1_ps(FAR_BELOW);
            for (int j = from; j < end; j += 16) most = _mm512_max_ps(most, _mm512_loadu_ps(s + j));
            const float top = _mm512_reduce_max_ps(most);
            const __m512 peak = _mm512_set1_ps(top);
            __m512 sum = _mm512_setzero_ps();
            for (int j = from; j < end; j += 16) {
                __m512 p = exp2_ps(_mm512_sub_ps(_mm512_loadu_ps(s + j), peak));
                sum = _mm512_add_ps(sum, p);
                store_bf16(weights + (int64_t)r * ld + j, p);
            }
            const float total = _mm512_reduce_add_ps(sum);
            inverse[r] = 1.0f / total;
            if (w->lse && t + r < n)
                w->lse[(int64_t)head * w->tokens + first + t + r] =
                    top + __builtin_log2f(total);
            a[r] = weights + (int64_t)r * ld + from;
        }
        for (int c = 0; c < dim; c += COLUMNS) {
            product(acc, ROWS, a, (end - from) / 2, values + (int64_t)from / 2 * dim + c, dim);
            for (int r = 0; r < ROWS && t + r < n; r++) {
                bf16 *out = (bf16 *)row(&w->out, first + t + r, head) + c;
                const __m512 factor = _mm512_set1_ps(inverse[r]);
                store_bf16(out, _mm512_mul_ps(acc[r][0], factor));
                store_bf16(out + 16, _mm512_mul_ps(acc[r][1], factor));
            }
        }
    }
}

static void forward_one(Work *w, int segment, int key_head, char *space) {
    const int first = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first;
    const int dim = w->dim, ld = padded(m), group = w->heads / w->key_heads;
    bf16x2 *keys = (bf16x2 *)space;                  /* [dim / 2][ld] */
    bf16x2 *values = keys + (int64_t)(dim / 2) * ld; /* [ld / 2][dim] */
    pack_numbers(&w->k, key_head, first, m, dim, keys, ld);
    pack_tokens(&w->v, key_head, first, m, dim, values);
    for (int head = key_head * group; head < (key_head + 1) * group; head++)
        forward_head(w, segment, head, keys, values, (char *)(values + (int64_t)ld / 2 * dim));
}

/* Bytes that `forward_one` needs for the longest segment. */
static size_t forward_space(const Work *w) {
    size_t ld = padded(w->longest);
    return ld * w->dim * 4 + ROWS * ld * 6;
}

/* Add the first `rows` rows of a tile of a product to float32 rows, or put them there. */
INLINE void add_tile(float *to, int ld, __m512 acc[][2], int rows, int fresh) {
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 2; c++) {
            float *place = to + (int64_t)r * ld + 16 * c;
            __m512 x = acc[r][c];
            if (!fresh) x = _mm512_add_ps(x, _mm512_loadu_ps(place));
            _mm512_storeu_ps(place, x);
        }
}

/* Everything is transposed: rows are keys j, columns are queries i. P^T and dS^T come out of their
 * tiles as rows over i, which is how dV and dK need them, and dS^T in pairs of j, which is how dQ
 * needs it: nothing is computed twice and no tile is turned around. */
static void backward_one(Work *w, int segment, int key_head, char *space) {
    const int first = w->bounds[segment], n = w->bounds[segment + 1] - first, dim = w->dim;
    const int first_key = w->key_bounds[segment], m = w->key_bounds[segment + 1] - first_key;
    const int before = m - n; /* keys before the first query */
    const int ld = padded(m), rows_end = (m + ROWS - 1) / ROWS * ROWS;
    const int group = w->heads / w->key_heads;
    float *dk = (float *)space;                        /* [rows_end][dim] */
    float *dv = dk + (int64_t)rows_end * dim;          /* [rows_end][dim] */
    float *dqt = dv + (int64_t)rows_end * dim;         /* [dim][BLOCK] */
    float *lse = dqt + (int64_t)dim * BLOCK;           /* [BLOCK] */
    float *delta = lse + BLOCK;                        /* [BLOCK] */
    bf16x2 *q_numbers = (bf16x2 *)(delta + BLOCK);     /* [dim / 2][BLOCK] */
    bf16x2 *do_numbers = q_numbers + dim / 2 * BLOCK;  /* [dim / 2][BLOCK] */
    bf16x2 *q_tokens = do_numbers + dim / 2 * BLOCK;   /* [BLOCK / 2][dim] */
    bf16x2 *do_tokens = q_tokens + BLOCK / 2 * dim;    /* [BLOCK / 2][dim] */
    bf16 *pt = (bf16 *)(do_tokens + BLOCK / 2 * dim);  /* [ROWS][BLOCK] */
    bf16 *dst = pt + ROWS * BLOCK;                     /* [ROWS][BLOCK] */
    bf16x2 *ds_pairs = (bf16x2 *)(dst + ROWS * BLOCK); /* [rows_end / 2][BLOCK] */
    bf16 *kt = (bf16 *)(ds_pairs + (int64_t)rows_end / 2 * BLOCK); /* [dim][ld] */
    const __m512 to_log2 = _mm512_set1_ps(w->scale * LOG2E), scale = _mm512_set1_ps(w->scale);

    for (int t = 0; t < ld; t += 16) /* K^T, zero behind the last token */
        for (int c = 0; c < dim / 2; c += 16) {
            __m512i x[16];
            for (int i = 0; i < 16; i++)
                x[i] = t + i < m
                           ? _mm512_loadu_si512(row(&w->k, first_key + t + i, key_head) + 2 * c)
                           : _mm512_setzero_si512();
            transpose(x);
            for (int i = 0; i < 16; i++) {
                bf16 *to = kt + (int64_t)2 * (c + i) * ld + t;
                _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(x[i]));
                _mm256_storeu_si256((void *)(to + ld),
                                    _mm512_cvtepi32_epi16(_mm512_srli_epi32(x[i], 16)));
            }
        }
    int touched_from = rows_end, touched_to = 0; /* rows of dK and dV that hold something */
    const int blocks = (n + BLOCK - 1) / BLOCK;
    for (int block = 0; block < group * blocks; block++) {
        const int head = key_head * group + block / blocks, i0 = block % blocks * BLOCK;
        const int count = n - i0 < BLOCK ? n - i0 : BLOCK, columns = padded(count);
        pack_numbers(&w->q, head, first + i0, count, dim, q_numbers, BLOCK);
        pack_numbers(&w->dout, head, first + i0, count, dim, do_numbers, BLOCK);
        pack_tokens(&w->q, head, first + i0, count, dim, q_tokens);
        pack_tokens(&w->dout, head, first + i0, count, dim, do_tokens);
        for (int i = 0; i < columns; i++) {
            __m512 sum = _mm512_setzero_ps();
            if (i < count)
                for (int c = 0; c < dim; c += 16)
                    sum = _mm512_fmadd_ps(load_bf16(row(&w->out, first + i0 + i, head) + c),
                                          load_bf16(row(&w->dout, first + i0 + i, head) + c), sum);
            delta[i] = _mm512_reduce_add_ps(sum);
            /* So far above any score that behind the last token P is 0. */
            lse[i] = i < count ? w->lse[(int64_t)head * w->tokens + first + i0 + i] : -FAR_BELOW;
        }
        int from, to, edge;
        keys_of(w, before + i0, m, &from, &edge);
        keys_of(w, before + i0 + count - 1, m, &edge, &to);
        from = from / ROWS * ROWS;
        to = (to + ROWS - 1) / ROWS * ROWS;
        for (int j = from; j < to; j += ROWS) {
            const bf16 *k[ROWS], *v[ROWS], *a[ROWS];
            __m512 s[ROWS][2], dp[ROWS][2];
            tile_rows(k, &w->k, key_head, first_key, j, m);
            tile_rows(v, &w->v, key_head, first_key, j, m);
            /* Columns before the first query that sees any of these keys. */
            int start = w->causal ? j - before - i0 : 0;
            start = start > 0 ? start / COLUMNS * COLUMNS : 0;
            for (int r = 0; r < ROWS; r += 2)
                memset(ds_pairs + (int64_t)(j + r) / 2 * BLOCK, 0, start * sizeof *ds_pairs);
            for (int i = start; i < columns; i += COLUMNS) {
                /* Whether some query of the tile does not see some key of it. */
                const int position = before + i0 + i;
                const int masked =
                    (w->causal && position < j + ROWS - 1) ||
                    (w->window > 0 && (position + COLUMNS - j > w->window ||
                                       (!w->causal && j + ROWS - position > w->window)));
                product(s, ROWS, k, dim / 2, q_numbers + i, BLOCK);
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < 2; c++) {
                        __m512 low = _mm512_loadu_ps(lse + i + 16 * c);
                        __m512 p = exp2_ps(_mm512_fmsub_ps(s[r][c], to_log2, low));
                        if (masked) {
                            const int low_i = w->causal ? j + r : low_edge(j + r, w->window);
                            const int high_i = w->window > 0 ? j + r + w->window : m;
                            __mmask16 seen = columns_in(16 * c, low_i - position,
                                                        high_i - position);
                            p = _mm512_maskz_mov_ps(seen, p);
                        }
                        s[r][c] = p;
                        store_bf16(pt + r * BLOCK + i + 16 * c, p);
                    }
                float kept[ROWS][COLUMNS];
                for (int r = 0; r < ROWS; r++)
                    for (int c = 0; c < 2; c++) _mm512_storeu_ps(kept[r] + 16 * c, s[r][c]);
                product(dp, ROWS, v, dim / 2, do_numbers + i, BLOCK);
                for (int c = 0; c < 2; c++) {
                    const __m512 d = _mm512_loadu_ps(delta + i + 16 * c);
                    for (int r = 0; r < ROWS; r += 2) {
                        __m512 p0 = _mm512_loadu_ps(kept[r] + 16 * c);
                        __m512 p1 = _mm512_loadu_ps(kept[r + 1] + 16 * c);
                        p0 = _mm512_mul_ps(_mm512_mul_ps(p0, scale), _mm512_sub_ps(dp[r][c], d));
                        p1 = _mm512_mul_ps(_mm512_mul_ps(p1, scale),
                                           _mm512_sub_ps(dp[r + 1][c], d));
                        __m256i even = (__m256i)_mm512_cvtneps_pbh(p0);
                        __m256i odd = (__m256i)_mm512_cvtneps_pbh(p1);
                        bf16 *to_row = dst + r * BLOCK + i + 16 * c;
                        _mm256_storeu_si256((void *)to_row, even);
                        _mm256_storeu_si256((void *)(to_row + BLOCK), odd);
                        _mm512_storeu_si512(
                            ds_pairs + (int64_t)(j + r) / 2 * BLOCK + i + 16 * c,
                            _mm512_or_si512(
                                _mm512_cvtepu16_epi32(even),
                                _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
                    }
                }
            }
            /* Rows that no block of queries has reached yet hold nothing to add to. */
            const int fresh = j >= touched_to || j < touched_from;
            for (int c = 0; c < dim; c += COLUMNS) {
                const int pairs = (columns - start) / 2, skipped = start / 2 * dim;
                for (int r = 0; r < ROWS; r++) a[r] = pt + r * BLOCK + start;
                product(s, ROWS, a, pairs, do_tokens + skipped + c, dim);
                add_tile(dv + (int64_t)j * dim + c, dim, s, ROWS, fresh);
                for (int r = 0; r < ROWS; r++) a[r] = dst + r * BLOCK + start;
                product(s, ROWS, a, pairs, q_tokens + skipped + c, dim);
                add_tile(dk + (int64_t)j * dim + c, dim, s, ROWS, fresh);
            }
        }
        if (from < touched_from) touched_from = from;
        if (to > touched_to) touched_to = to;
        for (int c = 0; c < dim; c += 8)
            for (int i = 0; i < columns; i += COLUMNS) {
                const bf16 *a[8];
                __m512 acc[8][2];
                for (int r = 0; r < 8; r++) a[r] = kt + (int64_t)(c + r) * ld + from;
                /* K^T is 0 behind the last token, and as long as rows over j are even. */
                const int end = to < ld ? to : ld;
                product(acc, 8, a, (end - from) / 2, ds_pairs + (int64_t)from / 2 * BLOCK + i,
                        BLOCK);
                add_tile(dqt + (int64_t)c * BLOCK + i, BLOCK, acc, 8, 1);
            }
        for (int i = 0; i < count; i += 16)
            for (int c = 0; c < dim; c += 16) {
                __m512i m[16];
                for (int r = 0; r < 16; r++)
                    m[r] = _mm512_loadu_si512(dqt + (int64_t)(c + r) * BLOCK + i);
                transpose(m);
                for (int r = 0; r < 16 && i + r < count; r++)
                    store_bf16((bf16 *)row(&w->dq, first + i0 + i + r, head) + c,
                               _mm512_castsi512_ps(m[r]));
            }
    }
    for (int j = 0; j < m; j++)
        for (int c = 0; c < dim; c += 16) {
            const __m512 zero = _mm512_setzero_ps();
            /* Under a window, no query may see the first keys of a prefix. */
            const int seen = j >= touched_from && j < touched_to;
            store_bf16((bf16 *)row(&w->dk, first_key + j, key_head) + c,
                       seen ? _mm512_loadu_ps(dk + (int64_t)j * dim + c) : zero);
            store_bf16((bf16 *)row(&w->dv, first_key + j, key_head) + c,
                       seen ? _mm512_loadu_ps(dv + (int64_t)j * dim + c) : zero);
        }
}

/* Bytes that `backward_one` needs for the longest segment. */
static size_t backward_space(const Work *w) {
    size_t ld = padded(w->longest), rows = w->longest + ROWS, dim = w->dim;
    return rows * dim * 8 + dim * BLOCK * 4 + BLOCK * 8 + dim * BLOCK * 8 + ROWS * BLOCK * 4 +
           rows * BLOCK * 2 + dim * ld * 2;
}

static void forward_share(void *w) { share(w, forward_space(w), forward_one); }
static void backward_share(void *w) { share(w, backward_space(w), backward_one); }

/* The caller compares it with its own: a library that is older than the package has another. */
int packed_attention_work_size(void) { return (int)sizeof(Work); }

int packed_attention_forward_bfloat16(Work *work, Parallel parallel, int threads) {
    return run(work, forward_share, parallel, threads);
}

int packed_attention_backward_bfloat16(Work *work, Parallel parallel, int threads) {
    return run(work, backward_share, parallel, threads);
}

#pragma GCC pop_options

#else

int packed_attention_work_size(void) { return 0; }
int packed_attention_forward_bfloat16(void *work, void *parallel, int threads) { return 2; }
int packed_attention_backward_bfloat16(void *work, void *parallel, int threads) { return 2; }

#endif

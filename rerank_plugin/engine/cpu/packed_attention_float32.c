/* Attention inside the segments of a packed row in float32, on AVX2 and on AVX-512.
 *
 * Every product is a tile of a few rows by two registers of columns, fed by keys and values that
 * are packed once for each pair and head. The scores of a tile of queries and all of their keys are
 * in the cache together, so that their softmax is plain.
 */

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "packed_attention.h"

/* So few queries of a segment (times the heads that share keys) that packing would take longer. */
#define FEW 3
/* Queries that a backward pass looks at together: a multiple of rows and columns of each tile. */
#define BLOCK 96

INLINE float *row(const Rows *rows, int token, int head) {
    return (float *)rows->data + place(rows, token, head);
}

#pragma GCC push_options
#pragma GCC target("avx2,fma")

/* Transpose 8 x 8 numbers. */
INLINE void transpose(__m256 m[8]) {
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(m[2 * i], m[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        m[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        m[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        m[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        m[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(m[i], m[4 + i], 0x20);
        t[4 + i] = _mm256_permute2f128_ps(m[i], m[4 + i], 0x31);
    }
    memcpy(m, t, sizeof t);
}

/* A query times each of 8 keys, those of tokens `first` to `first + 8` of a head; behind n of them
 * the last one stands in. */
INLINE __m256 dots(const float *query, const Rows *rows, int head, int first, int n, int dim) {
    const float *key[8];
    __m256 acc[8];
    for (int i = 0; i < 8; i++) {
        key[i] = row(rows, first + (i < n ? i : n - 1), head);
        acc[i] = _mm256_setzero_ps();
    }
    for (int c = 0; c < dim; c += 8) {
        const __m256 x = _mm256_loadu_ps(query + c);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            acc[i] = _mm256_fmadd_ps(x, _mm256_loadu_ps(key[i] + c), acc[i]);
    }
    __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(acc[0], acc[1]), _mm256_hadd_ps(acc[2], acc[3]));
    __m256 high = _mm256_hadd_ps(_mm256_hadd_ps(acc[4], acc[5]), _mm256_hadd_ps(acc[6], acc[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                         _mm256_permute2f128_ps(low, high, 0x31));
}

INLINE float largest_avx2(__m256 x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

INLINE float total_avx2(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

/* x in the columns of the 8 that start at `start` which lie in [from, to), and elsewhere `other`. */
INLINE __m256 between_avx2(__m256 x, float other, int start, int from, int to) {
    const __m256i at = _mm256_add_epi32(_mm256_set1_epi32(start),
                                        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const __m256i in = _mm256_and_si256(_mm256_cmpgt_epi32(at, _mm256_set1_epi32(from - 1)),
                                        _mm256_cmpgt_epi32(_mm256_set1_epi32(to), at));
    return _mm256_blendv_ps(_mm256_set1_ps(other), x, _mm256_castsi256_ps(in));
}

#define WIDTH 8
#define ROWS 6
#include "vectors.h"
#include "packed_attention_float32.h"
#undef WIDTH
#undef ROWS

#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

INLINE float largest_avx512(__m512 x) { return _mm512_reduce_max_ps(x); }
INLINE float total_avx512(__m512 x) { return _mm512_reduce_add_ps(x); }

INLINE __m512 between_avx512(__m512 x, float other, int start, int from, int to) {
    const __m512i at = _mm512_add_epi32(
        _mm512_set1_epi32(start),
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __mmask16 in = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(from)) &
                         _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(to));
    return _mm512_mask_blend_ps(in, _mm512_set1_ps(other), x);
}

#define WIDTH 16
#define ROWS 8
#include "vectors.h"
#include "packed_attention_float32.h"

#pragma GCC pop_options

#else

int packed_attention_forward_float32_avx2(void *work, void *parallel, int threads) { return 2; }
int packed_attention_backward_float32_avx2(void *work, void *parallel, int threads) { return 2; }
int packed_attention_forward_float32_avx512(void *work, void *parallel, int threads) { return 2; }
int packed_attention_backward_float32_avx512(void *work, void *parallel, int threads) { return 2; }

#endif

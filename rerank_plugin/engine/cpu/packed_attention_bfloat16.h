/* What the kernels of attention in bfloat16 have in common: numbers, packing, the exponential. */

#ifndef PACKED_ATTENTION_BFLOAT16_H
#define PACKED_ATTENTION_BFLOAT16_H

#include <immintrin.h>

#include "packed_attention.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

typedef uint16_t bf16;
/* Two neighbours of the dimension that a product sums over, as the processor takes them. */
typedef uint32_t bf16x2;

#define COLUMNS 32 /* columns of a tile: two registers of float32 */

INLINE int padded(int n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS; }

INLINE const bf16 *row(const Rows *rows, int token, int head) {
    return (const bf16 *)rows->data + place(rows, token, head);
}

/* 2^x for x <= 0, relative error 2e-6; below 2^-125 it is 0, and of NaN it is NaN. The mask keeps
 * the processor from computing a number that is too small for float32, which takes it a hundred
 * times as long as any other. */
INLINE __m512 exp2_ps(__m512 x) {
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.3333558e-3f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(kept, y, whole);
}

INLINE void store_bf16(bf16 *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE __m512 load_bf16(const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* Transpose 16 x 16 numbers of 32 bits. */
INLINE void transpose(__m512i m[16]) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        m[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        m[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        m[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        m[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}

/* Rows of a head, tokens `first` to `first + n`, as b of a product over the head's numbers:
 * to[d / 2][ld], zero behind the last token. */
static void pack_numbers(const Rows *rows, int head, int first, int n, int dim, bf16x2 *to,
                         int ld) {
    for (int t = 0; t < padded(n); t += 16) {
        for (int c = 0; c < dim / 2; c += 16) {
            __m512i m[16];
            for (int i = 0; i < 16; i++)
                m[i] = t + i < n ? _mm512_loadu_si512(row(rows, first + t + i, head) + 2 * c)
                                 : _mm512_setzero_si512();
            transpose(m);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + (int64_t)(c + i) * ld + t, m[i]);
        }
    }
}

/* The same rows as b of a product over tokens: to[tokens / 2][dim], zero behind the last token. */
static void pack_tokens(const Rows *rows, int head, int first, int n, int dim, bf16x2 *to) {
    for (int t = 0; t < padded(n); t += 2) {
        for (int c = 0; c < dim; c += 16) {
            __m256i even = _mm256_setzero_si256(), odd = even;
            if (t < n) even = _mm256_loadu_si256((const void *)(row(rows, first + t, head) + c));
            if (t + 1 < n)
                odd = _mm256_loadu_si256((const void *)(row(rows, first + t + 1, head) + c));
            __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
            _mm512_storeu_si512(to + (int64_t)(t / 2) * dim + c, both);
        }
    }
}

/* Columns of the 16 that start at `start` which lie in [from, to). */
INLINE __mmask16 columns_in(int start, int from, int to) {
    int low = from - start, high = to - start;
    uint32_t below = high <= 0 ? 0 : high >= 16 ? 0xffff : (1u << high) - 1;
    uint32_t before = low <= 0 ? 0 : low >= 16 ? 0xffff : (1u << low) - 1;
    return (__mmask16)(below & ~before);
}

#pragma GCC pop_options

#endif

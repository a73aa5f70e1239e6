/* Root-mean-square norms and rotary positions of a packed row, in bfloat16 on AVX-512.
 *
 * What takes torch several passes over memory is one here: a head of a token is read, normed
 * (if there are weights) and rotated (if there are positions) in float32, and written.
 */

#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

#define CHUNK 64 /* tokens that a thread takes at once */

typedef uint16_t bf16;

typedef struct {
    const bf16 *x;       /* head h of token t starts at `x + t * token + h * head` */
    int64_t token, head; /* the strides, in numbers */
    bf16 *out;           /* contiguous, [tokens][heads][size] */
    const float *weight; /* [heads][size], or none */
    const bf16 *cosine, *sine; /* [tokens][size], two equal halves, or none */
    int32_t tokens, heads, size;
    float epsilon;
    int64_t next; /* the next token that a thread takes */
} RowsWork;

INLINE __m512 load_bf16(const bf16 *from) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

INLINE void store_bf16(bf16 *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 16 numbers of a head, normed. */
INLINE __m512 normed(const bf16 *x, const float *weight, int c, __m512 inverse) {
    __m512 y = load_bf16(x + c);
    return weight ? _mm512_mul_ps(_mm512_mul_ps(y, inverse), _mm512_loadu_ps(weight + c)) : y;
}

INLINE __m512 inverse_of(const RowsWork *w, const bf16 *x) {
    __m512 sum = _mm512_setzero_ps();
    for (int c = 0; c < w->size; c += 16) {
        const __m512 y = load_bf16(x + c);
        sum = _mm512_fmadd_ps(y, y, sum);
    }
    return _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / w->size + w->epsilon));
}

static void one_head(const RowsWork *w, int token, int head) {
    const bf16 *x = w->x + token * w->token + head * w->head;
    const float *weight = w->weight ? w->weight + (int64_t)head * w->size : 0;
    bf16 *out = w->out + ((int64_t)token * w->heads + head) * w->size;
    const __m512 inverse = weight ? inverse_of(w, x) : _mm512_set1_ps(1.0f);
    if (!w->cosine) {
        for (int c = 0; c < w->size; c += 16) store_bf16(out + c, normed(x, weight, c, inverse));
        return;
    }
    const int half = w->size / 2;
    const bf16 *cosine = w->cosine + (int64_t)token * w->size;
    const bf16 *sine = w->sine + (int64_t)token * w->size;
    for (int c = 0; c < half; c += 16) {
        const __m512 first = normed(x, weight, c, inverse);
        const __m512 second = normed(x, weight, c + half, inverse);
        const __m512 cos = load_bf16(cosine + c), sin = load_bf16(sine + c);
        store_bf16(out + c, _mm512_fmsub_ps(first, cos, _mm512_mul_ps(second, sin)));
        store_bf16(out + c + half, _mm512_fmadd_ps(second, cos, _mm512_mul_ps(first, sin)));
    }
}

static void share(void *work) {
    RowsWork *w = work;
    for (;;) {
        const int64_t first = __atomic_fetch_add(&w->next, CHUNK, __ATOMIC_RELAXED);
        if (first >= w->tokens) return;
        const int64_t end = first + CHUNK < w->tokens ? first + CHUNK : w->tokens;
        for (int64_t token = first; token < end; token++)
            for (int head = 0; head < w->heads; head++) one_head(w, (int)token, head);
    }
}

int packed_rows_work_size(void) { return (int)sizeof(RowsWork); }

int packed_rows(RowsWork *work, Parallel parallel, int threads) {
    work->next = 0;
    run_in_parallel(share, work, parallel, threads);
    return 0;
}

#pragma GCC pop_options

#else

int packed_rows_work_size(void) { return 0; }
int packed_rows(void *work, void *parallel, int threads) { return 2; }

#endif

/* Vectors of WIDTH numbers, 8 of AVX2 or 16 of AVX-512, with their exponential functions.
 *
 * A file defines WIDTH, includes this and then the functions for vectors of that width, whose names
 * are NAME(...); and once more for the other width.
 *
 * An exponential splits its argument into a multiple of log(2), or into a whole number, and a rest.
 * Added to MAGIC, a number is rounded, and the last bits of the sum are the biased exponent. The
 * rest goes into a polynomial of degree 6.
 */

#undef SET
#undef FEATURES
#undef VEC
#undef OP
#undef EXPONENT
#if WIDTH == 8
#define SET avx2
#define FEATURES "avx2,fma"
#define VEC __m256
#define OP(name) _mm256_##name
#define EXPONENT(x) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23))
#else
#define SET avx512
#define FEATURES "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define VEC __m512
#define OP(name) _mm512_##name
#define EXPONENT(x) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23))
#endif

#ifndef NAME
#define JOIN(name, set) name##_##set
#define NAMED(name, set) JOIN(name, set)
#define NAME(name) NAMED(name, SET)
#define MAGIC (12582912.0f + 127.0f)
#endif

/* 2^n (1 + c[0] x + c[1] x^2 + ... + c[5] x^6), of which `sum` is n + MAGIC. */
TARGET(FEATURES) INLINE VEC NAME(scaled_polynomial)(VEC x, VEC sum, const float c[6]) {
    VEC y = OP(set1_ps)(c[5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; i--) y = OP(fmadd_ps)(y, x, OP(set1_ps)(c[i]));
    y = OP(fmadd_ps)(y, x, OP(set1_ps)(1.0f));
    return OP(mul_ps)(y, EXPONENT(sum));
}

/* exp(x) to 2e-7, by the Taylor polynomial in [-log(2) / 2, log(2) / 2]; x is clipped at +-87. */
TARGET(FEATURES) INLINE VEC NAME(exponential)(VEC x) {
    const float taylor[6] = {1.0f, 0.5f, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720};
    const VEC magic = OP(set1_ps)(MAGIC);
    x = OP(min_ps)(OP(set1_ps)(87.0f), OP(max_ps)(OP(set1_ps)(-87.0f), x));
    const VEC sum = OP(fmadd_ps)(x, OP(set1_ps)(1.44269504f), magic);
    const VEC n = OP(sub_ps)(sum, magic);
    VEC rest = OP(fnmadd_ps)(n, OP(set1_ps)(0.693359375f), x);
    rest = OP(fnmadd_ps)(n, OP(set1_ps)(-2.12194440e-4f), rest);
    return NAME(scaled_polynomial)(rest, sum, taylor);
}

/* 2^x for x <= 0, within 1 ulp; below 2^-126 it is 0, and of NaN it is NaN. In [-1/2, 1/2] the
 * polynomial is the minimax one of the relative error (2e-9) that is exact at 0. */
TARGET(FEATURES) INLINE VEC NAME(exp2)(VEC x) {
    const float minimax[6] = {6.9314720e-1f, 2.4022648e-1f, 5.5503325e-2f,
                              9.6184374e-3f, 1.3398874e-3f, 1.5353362e-4f};
    const VEC magic = OP(set1_ps)(MAGIC);
    x = OP(max_ps)(OP(set1_ps)(-127.0f), x);
    const VEC sum = OP(add_ps)(x, magic);
    const VEC rest = OP(sub_ps)(x, OP(sub_ps)(sum, magic));
    return NAME(scaled_polynomial)(rest, sum, minimax);
}

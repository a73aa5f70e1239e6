/* The rows of `int8_products.c` for vectors of one width. */

/* x (1 + erf(x / sqrt(2))) / 2, by formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7. */
TARGET(FEATURES) INLINE VEC NAME(gelu)(VEC x) {
    const VEC sign = OP(set1_ps)(-0.0f), one = OP(set1_ps)(1.0f);
    const VEC z = OP(mul_ps)(OP(andnot_ps)(sign, x), OP(set1_ps)(0.70710678f));
    const VEC t = OP(div_ps)(one, OP(fmadd_ps)(z, OP(set1_ps)(0.3275911f), one));
    VEC tail = OP(set1_ps)(1.061405429f);
    tail = OP(fmadd_ps)(tail, t, OP(set1_ps)(-1.453152027f));
    tail = OP(fmadd_ps)(tail, t, OP(set1_ps)(1.421413741f));
    tail = OP(fmadd_ps)(tail, t, OP(set1_ps)(-0.284496736f));
    tail = OP(fmadd_ps)(tail, t, OP(set1_ps)(0.254829592f));
    const VEC bell = NAME(exponential)(OP(xor_ps)(OP(mul_ps)(z, z), sign));
    const VEC error = OP(fnmadd_ps)(OP(mul_ps)(tail, t), bell, one);
    const VEC half = OP(mul_ps)(x, OP(set1_ps)(0.5f));
    return OP(fmadd_ps)(half, OP(or_ps)(error, OP(and_ps)(sign, x)), half);
}

/* x (1 + tanh(y)) / 2 = x / (1 + exp(-2 y)) */
TARGET(FEATURES) INLINE VEC NAME(gelu_tanh)(VEC x) {
    const VEC cube = OP(mul_ps)(OP(mul_ps)(x, x), x);
    const VEC sum = OP(fmadd_ps)(cube, OP(set1_ps)(0.044715f), x);
    const VEC exponential = NAME(exponential)(OP(mul_ps)(sum, OP(set1_ps)(-1.5957691f)));
    return OP(div_ps)(x, OP(add_ps)(OP(set1_ps)(1.0f), exponential));
}

TARGET(FEATURES) INLINE VEC NAME(silu)(VEC x) {
    const VEC exponential = NAME(exponential)(OP(xor_ps)(x, OP(set1_ps)(-0.0f)));
    return OP(div_ps)(x, OP(add_ps)(OP(set1_ps)(1.0f), exponential));
}

TARGET(FEATURES) INLINE VEC NAME(activated)(VEC x, int activation) {
    switch (activation) {
        case GELU: return NAME(gelu)(x);
        case GELU_TANH: return NAME(gelu_tanh)(x);
        case SILU: return NAME(silu)(x);
        default: return x;
    }
}

/* The range of a row, 0 included, in 255 steps. The scale is not a number if one of the row's is not
 * finite. */
TARGET(FEATURES)
static Units NAME(quantize)(const Rows *x, int row, int size, uint8_t *bytes) {
    const int64_t start = row * x->stride;
    const int wide = size / WIDTH * WIDTH;
    INTEGERS bits = ZERO_INTEGERS;
    VEC low = OP(setzero_ps)(), high = low;
    for (int c = 0; c < wide; c += WIDTH) {
        const VEC y = NAME(load)(x->numbers, start + c, x->is_bfloat16);
        bits = NAME(larger)(bits, y);
        low = OP(min_ps)(low, y);
        high = OP(max_ps)(high, y);
    }
    int32_t largest = NAME(largest)(bits);
    float from = NAME(smallest)(low), to = -NAME(smallest)(OP(sub_ps)(OP(setzero_ps)(), high));
    const int has_rest = wide < size;
    const __m256 rest =
        has_rest ? load_avx2(x->numbers, start + wide, x->is_bfloat16) : _mm256_setzero_ps();
    if (has_rest) {
        const int32_t other = largest_avx2(larger_avx2(_mm256_setzero_si256(), rest));
        const float other_from = smallest_avx2(rest);
        const float other_to = -smallest_avx2(_mm256_sub_ps(_mm256_setzero_ps(), rest));
        largest = other > largest ? other : largest;
        from = other_from < from ? other_from : from;
        to = other_to > to ? other_to : to;
    }
    const float range = to - from;
    if (largest >= 0x7f800000) return (Units){__builtin_nanf(""), 0};
    const float inverse = range > 0.0f ? 255.0f / range : 0.0f;
    const int32_t zero = _mm_cvtss_si32(_mm_set_ss(-from * inverse));
    for (int c = 0; c < wide; c += WIDTH) {
        const VEC y = NAME(load)(x->numbers, start + c, x->is_bfloat16);
        NAME(store_bytes)(bytes + c, OP(mul_ps)(y, OP(set1_ps)(inverse)), zero);
    }
    if (has_rest)
        store_bytes_avx2(bytes + wide, _mm256_mul_ps(rest, _mm256_set1_ps(inverse)), zero);
    return (Units){range / 255.0f, zero};
}

TARGET(FEATURES)
static void NAME(write)(const Ending *e, const Block *block, const Units *units) {
    const Weights *w = e->weights;
    int i = 0;
    for (; i + WIDTH <= block->columns; i += WIDTH) {
        const int c = block->column + i;
        const INTEGERS total = LOAD_INTEGERS(w->total + c);
        const VEC column_scale = OP(loadu_ps)(w->scale + c);
        const VEC bias = w->bias ? OP(loadu_ps)(w->bias + c) : OP(setzero_ps)();
        for (int r = 0; r < block->rows; r++) {
            const int64_t row = block->row + r;
            const INTEGERS sum = LOAD_INTEGERS(block->sums + r * block->stride + i);
            const INTEGERS offset = OP(mullo_epi32)(total, OP(set1_epi32)(units[r].zero));
            const VEC scale = OP(mul_ps)(column_scale, OP(set1_ps)(units[r].scale));
            VEC y = OP(cvtepi32_ps)(OP(sub_epi32)(sum, offset));
            y = NAME(activated)(OP(add_ps)(OP(mul_ps)(y, scale), bias), e->activation);
            if (e->operation != NOTHING) {
                const Rows *other = &e->other;
                const VEC z =
                    NAME(load)(other->numbers, row * other->stride + c, other->is_bfloat16);
                y = e->operation == ADD ? OP(add_ps)(y, z) : OP(mul_ps)(y, z);
            }
            NAME(store)(e->out.numbers, row * e->out.stride + c, y, e->out.is_bfloat16);
        }
    }
#if WIDTH > 8
    if (i < block->columns) {
        Block rest = *block;
        rest.column += i, rest.columns -= i, rest.sums += i;
        write_avx2(e, &rest, units);
    }
#endif
}

/* (x - mean) / sqrt(variance + epsilon) * weight + bias; `size` is a multiple of 8. */
TARGET(FEATURES)
static void NAME(norm)(const ProductWork *w, const float *x, int size, const Rows *out, int row) {
    const int wide = size / WIDTH * WIDTH;
    const int64_t start = row * out->stride;
    VEC sum = OP(setzero_ps)(), squares = sum;
    for (int c = 0; c < wide; c += WIDTH) sum = OP(add_ps)(sum, OP(loadu_ps)(x + c));
    __m256 rest = wide < size ? _mm256_loadu_ps(x + wide) : _mm256_setzero_ps();
    const float mean = (NAME(sum)(sum) + sum_avx2(rest)) / (float)size;
    for (int c = 0; c < wide; c += WIDTH) {
        const VEC y = OP(sub_ps)(OP(loadu_ps)(x + c), OP(set1_ps)(mean));
        squares = OP(fmadd_ps)(y, y, squares);
    }
    rest = _mm256_sub_ps(rest, _mm256_set1_ps(mean));
    const float more = wide < size ? sum_avx2(_mm256_mul_ps(rest, rest)) : 0.0f;
    const float variance = (NAME(sum)(squares) + more) / (float)size;
    const float scale = 1.0f / sqrtf(variance + w->epsilon);
    for (int c = 0; c < wide; c += WIDTH) {
        const VEC y = OP(sub_ps)(OP(loadu_ps)(x + c), OP(set1_ps)(mean));
        const VEC weight = OP(mul_ps)(OP(loadu_ps)(w->norm_weight + c), OP(set1_ps)(scale));
        const VEC bias = w->norm_bias ? OP(loadu_ps)(w->norm_bias + c) : OP(setzero_ps)();
        NAME(store)(out->numbers, start + c, OP(fmadd_ps)(y, weight, bias), out->is_bfloat16);
    }
    if (wide == size) return;
    const __m256 weight =
        _mm256_mul_ps(_mm256_loadu_ps(w->norm_weight + wide), _mm256_set1_ps(scale));
    const __m256 bias =
        w->norm_bias ? _mm256_loadu_ps(w->norm_bias + wide) : _mm256_setzero_ps();
    store_avx2(
        out->numbers, start + wide, _mm256_fmadd_ps(rest, weight, bias), out->is_bfloat16);
}

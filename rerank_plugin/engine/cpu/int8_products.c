/* Products of rows with 8-bit weights, on AVX2, AVX-VNNI, AVX512-VNNI or AMX.
 *
 * A call has one product, or two of which the second multiplies what the first returns, and may end
 * with a layer norm. All of it is done for a few rows at a time, which stay in the cache.
 *
 * A row of numbers is quantised to 8 bits with a scale and a zero point of its own, multiplied by
 * weights of 7 bits with a scale for each column, and summed in 32 bits. Weights of 7 bits keep the
 * 16-bit sums of AVX2 from overflowing (2 * 255 * 63 < 32768), so that all processors compute the
 * same integers.
 * Bias, activation and another tensor are applied while the sums are in the cache.
 *
 * Weights are packed in panels of 16 columns: [columns / 16][inner / 4][16 columns][4 numbers],
 * with zeros up to a multiple of 64 in both directions.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { AVX2 = 1, AVX_VNNI, AVX512_VNNI, AMX }; /* the kernels */

#if defined(__x86_64__) && defined(__GNUC__) && (__GNUC__ >= 11 || defined(__clang__))

#include <immintrin.h>

#include "kernels.h"
#if defined(__linux__)
#include "tiles.h"
#endif

#define MULTIPLE 64 /* of packed columns and of the inner size */
#define ROWS 96     /* that a thread takes at once: a multiple of every kernel's */
#define TILE 1024   /* sums that a kernel computes at once, at most */

enum { NONE, GELU, GELU_TANH, SILU }; /* activations */
enum { NOTHING, ADD, TIMES };         /* what is done with the other tensor */

typedef struct {
    const int8_t *weight; /* packed; none if there is no second product */
    const float *scale;   /* of each column */
    const int32_t *total; /* of each column: the sum of its weights */
    const float *bias;    /* of each column, or none */
    int32_t inner, columns;
} Weights;

typedef struct {
    void *x, *other, *out; /* rows of numbers; the other tensor may be none */
    int64_t x_row, other_row, out_row; /* the strides of rows, in numbers */
    Weights first, second;
    const float *norm_weight, *norm_bias; /* of the layer norm at the end, or none */
    float epsilon;
    int32_t rows;
    int32_t is_bfloat16; /* the numbers of x, other and out; float32 if not */
    int32_t activation;  /* after the first product */
    int32_t operation;   /* after the last product */
    int32_t kernel;
    int32_t failed;
    int64_t next; /* the next row that a thread takes */
    int64_t size; /* the rows that it takes */
} ProductWork;

/* Sums of a tile: rows of `x`, `depth` bytes each, times the columns of panels. */
typedef void (*Tile)(const uint8_t *x, const int8_t *weight, int64_t depth, int32_t *sums);

INLINE int round_up(int64_t number, int multiple) {
    return (int)((number + multiple - 1) / multiple * multiple);
}

/* ---- kernels ---- */

INLINE int32_t four_bytes(const uint8_t *from) {
    int32_t bytes;
    memcpy(&bytes, from, 4);
    return bytes;
}

/* A kernel has two vectors of sums for each of its rows, in registers: the names are written out,
 * and IN_REGISTERS keeps the compiler from computing all products before it adds any. */
#define IN_REGISTERS(a, b) __asm__("" : "+x"(a), "+x"(b))
#define ZERO(r) a##r = zero, b##r = zero,
#define ADD_ROW(r)                                                \
    {                                                             \
        const Vector bytes = REPEAT(four_bytes(x + r * depth + k)); \
        a##r = ADD_PRODUCTS(a##r, bytes, w0);                     \
        b##r = ADD_PRODUCTS(b##r, bytes, w1);                     \
        IN_REGISTERS(a##r, b##r);                                 \
    }
#define STORE(r)                                          \
    SAVE(sums + r * COLUMNS, a##r);                       \
    SAVE(sums + r * COLUMNS + COLUMNS / 2, b##r);
#define SIX(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define TWELVE(DO) SIX(DO) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)

#define TILE_FUNCTION(NAME, FEATURES, EACH_ROW)                                               \
    TARGET(FEATURES)                                                                          \
    static void NAME(const uint8_t *x, const int8_t *weight, int64_t depth, int32_t *sums) {  \
        const Vector zero = EMPTY();                                                          \
        Vector EACH_ROW(ZERO) w0, w1;                                                         \
        for (int64_t k = 0; k < depth; k += 4) {                                              \
            w0 = LOAD(weight + k * 16);                                                       \
            w1 = LOAD(weight + SECOND + k * 16);                                              \
            EACH_ROW(ADD_ROW)                                                                 \
        }                                                                                     \
        EACH_ROW(STORE)                                                                       \
    }

#define Vector __m256i
#define COLUMNS 16
#define SECOND 32
#define EMPTY _mm256_setzero_si256
#define REPEAT _mm256_set1_epi32
#define LOAD(from) _mm256_loadu_si256((const __m256i *)(from))
#define SAVE(to, vector) _mm256_storeu_si256((__m256i *)(to), vector)
#define ADD_PRODUCTS(sum, bytes, w) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, w), _mm256_set1_epi16(1)))
TILE_FUNCTION(avx2_tile, "avx2,fma", SIX)
#undef ADD_PRODUCTS
#define ADD_PRODUCTS _mm256_dpbusd_avx_epi32
TILE_FUNCTION(avx_vnni_tile, "avx2,fma,avxvnni", SIX)
#undef Vector
#undef COLUMNS
#undef SECOND
#undef EMPTY
#undef REPEAT
#undef LOAD
#undef SAVE
#undef ADD_PRODUCTS

#define Vector __m512i
#define COLUMNS 32
#define SECOND (depth * 16)
#define EMPTY _mm512_setzero_si512
#define REPEAT _mm512_set1_epi32
#define LOAD _mm512_loadu_si512
#define SAVE _mm512_storeu_si512
#define ADD_PRODUCTS _mm512_dpbusd_epi32
TILE_FUNCTION(avx512_vnni_tile, "avx512f,avx512bw,avx512vl,avx512vnni", TWELVE)

#if defined(__linux__)

/* Tiles 0 to 3 are sums, 4 and 5 rows of x, 6 and 7 panels: each 16 rows of 64 bytes. */
TARGET("amx-tile,amx-int8")
static void amx_tile(const uint8_t *x, const int8_t *weight, int64_t depth, int32_t *sums) {
    const int64_t panel = depth * 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += 64) {
        _tile_loadd(4, x + k, depth);
        _tile_loadd(5, x + 16 * depth + k, depth);
        _tile_loadd(6, weight + k * 16, 64);
        _tile_loadd(7, weight + panel + k * 16, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
}

#endif

/* ---- numbers ---- */

/* A byte is its number divided by the scale, plus the zero point. */
typedef struct {
    float scale;
    int32_t zero;
} Units;

/* Rows of numbers, float32 or bfloat16, counted from the first one of a thread's turn. */
typedef struct {
    void *numbers;
    int64_t stride;
    int is_bfloat16;
} Rows;

/* What is done with the sums of a product. */
typedef struct {
    const Weights *weights;
    int activation, operation;
    Rows other, out;
} Ending;

/* Sums of rows and columns. */
typedef struct {
    const int32_t *sums;
    int row, rows, column, columns, stride;
} Block;

/* Quantise a row of numbers. */
typedef Units (*Quantize)(const Rows *x, int row, int size, uint8_t *bytes);

/* Write sums times scales, with bias, activation and the other tensor. */
typedef void (*Write)(const Ending *ending, const Block *block, const Units *units);

/* Write the layer norm of a row of float32 to a row of `out`. */
typedef void (*Norm)(const ProductWork *w, const float *numbers, int size, const Rows *out, int row);

#define WIDTH 8
#include "vectors.h"

TARGET(FEATURES) INLINE __m256 load_avx2(const void *from, int64_t index, int is_bfloat16) {
    if (!is_bfloat16) return _mm256_loadu_ps((const float *)from + index);
    const __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)from + index));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* bfloat16 is rounded to the nearest, a half to even; what is not a number keeps its first bits. */
TARGET(FEATURES) INLINE void store_avx2(void *to, int64_t index, __m256 y, int is_bfloat16) {
    if (!is_bfloat16) {
        _mm256_storeu_ps((float *)to + index, y);
        return;
    }
    const __m256i bits = _mm256_castps_si256(y);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256 rounded = _mm256_castsi256_ps(_mm256_add_epi32(bits, half));
    const __m256 kept = _mm256_blendv_ps(rounded, y, _mm256_cmp_ps(y, y, _CMP_UNORD_Q));
    const __m256i first = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, first), 0x88);
    _mm_storeu_si128((__m128i *)((uint16_t *)to + index), _mm256_castsi256_si128(packed));
}

/* The bits of the largest absolute value of each lane: their order is that of the values. */
TARGET(FEATURES) INLINE __m256i larger_avx2(__m256i largest, __m256 x) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    return _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(x), magnitude));
}

TARGET(FEATURES) INLINE int32_t largest_avx2(__m256i x) {
    __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xb1)));
}

TARGET(FEATURES) INLINE float smallest_avx2(__m256 x) {
    __m128 y = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_min_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_min_ss(y, _mm_movehdup_ps(y)));
}

TARGET(FEATURES) INLINE float sum_avx2(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

TARGET(FEATURES) INLINE void store_bytes_avx2(uint8_t *to, __m256 x, int32_t zero) {
    const __m256i numbers = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(zero));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}

#define INTEGERS __m256i
#define ZERO_INTEGERS _mm256_setzero_si256()
#define LOAD_INTEGERS(from) _mm256_loadu_si256((const __m256i *)(from))
#include "int8_rows.h"
#undef INTEGERS
#undef ZERO_INTEGERS
#undef LOAD_INTEGERS
#undef WIDTH

#define WIDTH 16
#include "vectors.h"

TARGET(FEATURES) INLINE __m512 load_avx512(const void *from, int64_t index, int is_bfloat16) {
    if (!is_bfloat16) return _mm512_loadu_ps((const float *)from + index);
    const __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)from + index));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

TARGET(FEATURES)
INLINE void store_avx512(void *to, int64_t index, __m512 y, int is_bfloat16) {
    if (!is_bfloat16) {
        _mm512_storeu_ps((float *)to + index, y);
        return;
    }
    const __m512i bits = _mm512_castps_si512(y);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __mmask16 number = _mm512_cmp_ps_mask(y, y, _CMP_ORD_Q);
    const __m512i rounded = _mm512_mask_add_epi32(bits, number, bits, half);
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_storeu_si256((__m256i *)((uint16_t *)to + index), packed);
}

TARGET(FEATURES) INLINE __m512i larger_avx512(__m512i largest, __m512 x) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    return _mm512_max_epi32(largest, _mm512_and_si512(_mm512_castps_si512(x), magnitude));
}

TARGET(FEATURES) INLINE int32_t largest_avx512(__m512i x) {
    return _mm512_reduce_max_epi32(x);
}

TARGET(FEATURES) INLINE float smallest_avx512(__m512 x) { return _mm512_reduce_min_ps(x); }

TARGET(FEATURES) INLINE float sum_avx512(__m512 x) { return _mm512_reduce_add_ps(x); }

TARGET(FEATURES) INLINE void store_bytes_avx512(uint8_t *to, __m512 x, int32_t zero) {
    const __m512i numbers = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(zero));
    const __m512i positive = _mm512_max_epi32(numbers, _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(positive));
}

#define INTEGERS __m512i
#define ZERO_INTEGERS _mm512_setzero_si512()
#define LOAD_INTEGERS _mm512_loadu_si512
#include "int8_rows.h"

/* ---- products ---- */

typedef struct {
    Tile tile;
    int rows, columns;
    Quantize quantize;
    Write write;
    Norm norm;
} Kernel;

static Kernel kernel_of(int which) {
    switch (which) {
        case AVX_VNNI: return (Kernel){avx_vnni_tile, 6, 16, quantize_avx2, write_avx2, norm_avx2};
        case AVX512_VNNI:
            return (Kernel){avx512_vnni_tile, 12, 32, quantize_avx512, write_avx512, norm_avx512};
#if defined(__linux__)
        case AMX: return (Kernel){amx_tile, 32, 32, quantize_avx512, write_avx512, norm_avx512};
#endif
        default: return (Kernel){avx2_tile, 6, 16, quantize_avx2, write_avx2, norm_avx2};
    }
}

/* The buffers of a thread, for the rows of a turn: bytes of a product, numbers of its result. */
typedef struct {
    uint8_t *bytes;
    float *numbers;
} Buffers;

static void multiply(
    const Kernel *kernel, const Rows *x, int rows, const Ending *ending, uint8_t *bytes) {
    const Weights *weights = ending->weights;
    const int64_t depth = round_up(weights->inner, MULTIPLE);
    Units units[ROWS];
    int32_t sums[TILE];
    for (int r = 0; r < rows; r++)
        units[r] = kernel->quantize(x, r, weights->inner, bytes + r * depth);
    for (int column = 0; column < weights->columns; column += kernel->columns) {
        const int left = weights->columns - column;
        const int columns = left < kernel->columns ? left : kernel->columns;
        for (int row = 0; row < rows; row += kernel->rows) {
            kernel->tile(bytes + row * depth, weights->weight + column * depth, depth, sums);
            const Block block = {
                .sums = sums,
                .row = row,
                .rows = rows - row < kernel->rows ? rows - row : kernel->rows,
                .column = column,
                .columns = columns,
                .stride = kernel->columns,
            };
            kernel->write(ending, &block, units + row);
        }
    }
}

INLINE Rows rows_from(void *numbers, int64_t first, int64_t stride, int is_bfloat16) {
    void *start = (char *)numbers + first * stride * (is_bfloat16 ? 2 : 4);
    return (Rows){numbers ? start : NULL, stride, is_bfloat16};
}

/* Compute rows of the result, from `first` on. */
static void compute(
    const ProductWork *w, const Kernel *kernel, int64_t first, int rows, const Buffers *buffers) {
    const Rows x = rows_from(w->x, first, w->x_row, w->is_bfloat16);
    const Rows out = rows_from(w->out, first, w->out_row, w->is_bfloat16);
    const Weights *last = w->second.weight ? &w->second : &w->first;
    /* The second product reads what the first has written, before it writes there itself. */
    const Rows between = {buffers->numbers, w->first.columns, 0};
    const Rows summed = {buffers->numbers, last->columns, 0};
    Ending ending = {
        .weights = last,
        .activation = last == &w->first ? w->activation : NONE,
        .operation = w->operation,
        .other = rows_from(w->other, first, w->other_row, w->is_bfloat16),
        .out = w->norm_weight ? summed : out,
    };
    if (last == &w->second) {
        const Ending start = {.weights = &w->first, .activation = w->activation, .out = between};
        multiply(kernel, &x, rows, &start, buffers->bytes);
    }
    multiply(kernel, last == &w->second ? &between : &x, rows, &ending, buffers->bytes);
    if (!w->norm_weight) return;
    for (int r = 0; r < rows; r++)
        kernel->norm(w, buffers->numbers + (int64_t)r * last->columns, last->columns, &out, r);
}

INLINE int larger(int a, int b) { return a > b ? a : b; }

static int allocate(const ProductWork *w, Buffers *buffers) {
    const int inner = larger(w->first.inner, w->second.weight ? w->second.inner : 0);
    const int columns = larger(w->first.columns, w->second.weight ? w->second.columns : 0);
    const size_t numbers = w->second.weight || w->norm_weight ? (size_t)ROWS * columns : 1;
    /* The weights of numbers that are not there are zero, whatever the bytes are. */
    buffers->bytes = calloc(ROWS, (size_t)round_up(inner, MULTIPLE));
    buffers->numbers = malloc(numbers * sizeof(float));
    return buffers->bytes && buffers->numbers;
}

static void share(void *work) {
    ProductWork *w = work;
    const Kernel kernel = kernel_of(w->kernel);
    Buffers buffers;
    if (allocate(w, &buffers)) {
#if defined(__linux__)
        Tiles before;
        if (w->kernel == AMX) set_tiles(&before);
#endif
        for (;;) {
            const int64_t first = __atomic_fetch_add(&w->next, w->size, __ATOMIC_RELAXED);
            if (first >= w->rows) break;
            const int64_t left = w->rows - first;
            compute(w, &kernel, first, (int)(left < w->size ? left : w->size), &buffers);
        }
#if defined(__linux__)
        if (w->kernel == AMX) reset_tiles(&before);
#endif
    } else {
        w->failed = 1;
    }
    free(buffers.bytes);
    free(buffers.numbers);
}

/* The caller compares it with its own: a library that is older than the package has another. */
int int8_products_work_size(void) { return (int)sizeof(ProductWork); }

/* Multiply all rows; return whether there was too little memory. */
int int8_products(ProductWork *work, Parallel parallel, int threads) {
    const int multiple = kernel_of(work->kernel).rows;
    const int count = parallel && threads > 1 ? threads : 1;
    const int64_t shares = (work->rows + (int64_t)ROWS * count - 1) / ((int64_t)ROWS * count) * count;
    work->size = round_up((work->rows + shares - 1) / (shares ? shares : 1), multiple);
    work->next = work->failed = 0;
    run_in_parallel(share, work, parallel, count);
    return work->failed;
}

#else

int int8_products_work_size(void) { return 0; }
int int8_products(void *work, void *parallel, int threads) { return 2; }

#endif

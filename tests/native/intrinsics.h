/* The intrinsics of AVX-512 and AMX in portable C, for tests on machines that lack the instructions: the vectors are
   SIMDe's, the matrices are written down here from their description in Intel's manual. */
#ifndef FF_TEST_INTRINSICS
#define FF_TEST_INTRINSICS

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Those that SIMDe lacks: conversions, element by element, and a few others. */
#define TEST_CONVERT(name, made_type, made_element, given_type, given_element, lanes) \
    static inline made_type test_##name(given_type given) {                           \
        given_element from[lanes];                                                    \
        made_element to[lanes];                                                       \
        made_type made;                                                               \
        memcpy(from, &given, sizeof from);                                            \
        for (int i = 0; i < lanes; i++) to[i] = (made_element)from[i];                \
        memcpy(&made, to, sizeof made);                                               \
        return made;                                                                  \
    }
TEST_CONVERT(cvtepi32_ps, simde__m512, float, simde__m512i, int32_t, 16)
TEST_CONVERT(cvtepi32_pd, simde__m512d, double, simde__m256i, int32_t, 8)
TEST_CONVERT(cvtepi8_epi32, simde__m512i, int32_t, simde__m128i, int8_t, 16)
TEST_CONVERT(cvtepu8_epi32, simde__m512i, int32_t, simde__m128i, uint8_t, 16)
TEST_CONVERT(cvtepu16_epi32, simde__m512i, int32_t, simde__m256i, uint16_t, 16)
TEST_CONVERT(cvtpd_ps, simde__m256, float, simde__m512d, double, 8)
TEST_CONVERT(cvtps_pd, simde__m512d, double, simde__m256, float, 8)
static inline simde__m512i test_cvtps_epi32(simde__m512 v) {
    float from[16];
    int32_t to[16];
    simde__m512i made;
    memcpy(from, &v, sizeof from);
    for (int i = 0; i < 16; i++) to[i] = (int32_t)lrintf(from[i]);
    memcpy(&made, to, sizeof made);
    return made;
}
static inline simde__m512 test_cvtph_ps(simde__m256i v) {
    simde__m128i halves[2];
    simde__m256 made[2];
    simde__m512 whole;
    memcpy(halves, &v, sizeof v);
    for (int i = 0; i < 2; i++) made[i] = simde_mm256_cvtph_ps(halves[i]);
    memcpy(&whole, made, sizeof whole);
    return whole;
}
static inline simde__m256 test_extractf32x8_ps(simde__m512 v, int half) {
    simde__m256 made;
    memcpy(&made, (const char *)&v + 32 * half, sizeof made);
    return made;
}
static inline simde__m512 test_shuffle_f32x4(simde__m512 a, simde__m512 b, int order) {
    simde__m512 made;
    for (int i = 0; i < 4; i++)
        memcpy((char *)&made + 16 * i, (const char *)(i < 2 ? &a : &b) + 16 * (order >> 2 * i & 3), 16);
    return made;
}
static inline simde__m512i test_srai_epi32(simde__m512i v, int by) {
    int32_t values[16];
    memcpy(values, &v, sizeof values);
    for (int i = 0; i < 16; i++) values[i] >>= by;
    memcpy(&v, values, sizeof v);
    return v;
}
static inline simde__m512i test_madd_epi16(simde__m512i a, simde__m512i b) {
    int16_t x[32], y[32];
    int32_t sums[16];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++) sums[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    memcpy(&a, sums, sizeof a);
    return a;
}
static inline double test_reduce_add_pd(simde__m512d v) {
    double values[8], sum = 0.0;
    memcpy(values, &v, sizeof values);
    for (int i = 0; i < 8; i++) sum += values[i];
    return sum;
}
#undef _mm512_srai_epi32
#undef _mm512_madd_epi16
#undef _mm512_extractf32x8_ps
#undef _mm512_shuffle_f32x4
#define _mm512_cvtepi32_ps test_cvtepi32_ps
#define _mm512_cvtepi32_pd test_cvtepi32_pd
#define _mm512_cvtepi8_epi32 test_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 test_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 test_cvtepu16_epi32
#define _mm512_cvtps_epi32 test_cvtps_epi32
#define _mm512_cvtpd_ps test_cvtpd_ps
#define _mm512_cvtps_pd test_cvtps_pd
#define _mm512_cvtph_ps test_cvtph_ps
#define _mm512_extractf32x8_ps test_extractf32x8_ps
#define _mm512_shuffle_f32x4 test_shuffle_f32x4
#define _mm512_srai_epi32 test_srai_epi32
#define _mm512_madd_epi16 test_madd_epi16
#define _mm512_reduce_add_pd test_reduce_add_pd

/* The tests look for this line: that matrices were used at all. */
static _Atomic long products_of_matrices;
__attribute__((destructor)) static void show_products(void) {
    fprintf(stderr, "products of matrices: %ld\n", products_of_matrices);
}

static _Thread_local struct {
    int configured;
    unsigned char rows[8][16][64];
} matrices;

static inline void load_matrix(int to, const void *from, int64_t stride) {
    if (!matrices.configured) __builtin_trap();
    for (int i = 0; i < 16; i++) memcpy(matrices.rows[to][i], (const char *)from + i * stride, 64);
}

static inline void store_matrix(int from, void *to, int64_t stride) {
    if (!matrices.configured) __builtin_trap();
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, matrices.rows[from][i], 64);
}

/* Even and odd elements are summed apart, and then added; what is below 2^-126 is zero. */
static inline void multiply_matrix(int sum, int rows, int columns) {
    if (!matrices.configured) __builtin_trap();
    products_of_matrices++;
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float parts[2] = {0.0f, 0.0f}, total;
            for (int k = 0; k < 16; k++)
                for (int i = 0; i < 2; i++) {
                    uint32_t a = 0, b = 0;
                    float x, y;
                    memcpy((char *)&a + 2, matrices.rows[rows][m] + 4 * k + 2 * i, 2);
                    memcpy((char *)&b + 2, matrices.rows[columns][k] + 4 * n + 2 * i, 2);
                    memcpy(&x, &a, 4);
                    memcpy(&y, &b, 4);
                    if (__builtin_fabsf(x) < 0x1p-126f || __builtin_fabsf(y) < 0x1p-126f) continue;
                    parts[i] += x * y; /* the product is exact */
                }
            memcpy(&total, matrices.rows[sum][m] + 4 * n, 4);
            total += parts[0] + parts[1];
            memcpy(matrices.rows[sum][m] + 4 * n, &total, 4);
        }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbuud
#undef _tile_dpbusd
#undef _tile_dpbssd
#define _tile_dpbuud(sum, rows, columns) multiply_bytes(sum, rows, columns, 0, 0)
#define _tile_dpbusd(sum, rows, columns) multiply_bytes(sum, rows, columns, 0, 1)
#define _tile_dpbssd(sum, rows, columns) multiply_bytes(sum, rows, columns, 1, 1)
/* Fours of bytes of either sign. */
static inline void multiply_bytes(int sum, int rows, int columns, int rows_signed, int columns_signed) {
    if (!matrices.configured) __builtin_trap();
    products_of_matrices++;
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            int32_t total;
            memcpy(&total, matrices.rows[sum][m] + 4 * n, 4);
            for (int k = 0; k < 64; k++) {
                const unsigned char a = matrices.rows[rows][m][k], b = matrices.rows[columns][k / 4][4 * n + k % 4];
                total += (rows_signed ? (int8_t)a : a) * (columns_signed ? (int8_t)b : b);
            }
            memcpy(matrices.rows[sum][m] + 4 * n, &total, 4);
        }
}

#define _tile_loadconfig(shapes) ((void)(shapes), (void)(matrices.configured = 1))
#define _tile_release() ((void)memset(&matrices, 0, sizeof matrices))
#define _tile_zero(to) ((void)memset(matrices.rows[to], 0, sizeof matrices.rows[to]))
#define _tile_loadd(to, from, stride) load_matrix(to, from, stride)
#define _tile_stored(from, to, stride) store_matrix(from, to, stride)
#define _tile_dpbf16ps(sum, rows, columns) multiply_matrix(sum, rows, columns)

#endif

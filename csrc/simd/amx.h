/* Matrices (AMX) of bfloat16, beside the vectors of AVX-512: eight registers of 16 rows of 64 bytes. Compilers do not
   know what memory these instructions read and write, hence the barrier. */
#ifndef FF_SIMD_AMX_H
#define FF_SIMD_AMX_H

#include "avx512.h"

/* The shape of all eight registers, in the layout that the processor reads. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} matrix_shapes __attribute__((aligned(64))) = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#define MATRIX_BEGIN() _tile_loadconfig(&matrix_shapes)
#define MATRIX_END() _tile_release() /* what is left in the registers would be saved at every switch of threads */
#define MATRIX_ZERO(to) _tile_zero(to)
#define MATRIX_LOAD(to, from, stride) _tile_loadd(to, from, stride)
#define MATRIX_STORE(from, to, stride) _tile_stored(from, to, stride)
#define MATRIX_MULTIPLY(sum, rows, columns) _tile_dpbf16ps(sum, rows, columns)
#define MATRIX_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* The upper halves of float32, which are bfloat16 cut off: as float32, and of two vectors as pairs (low_i, high_i). */
static inline f32v f32_upper_halves(f32v v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(-65536)));
}
static inline void f32_store_upper_halves(ff_bf16 *to, f32v low, f32v high) {
    const __m512i lower = _mm512_srli_epi32(_mm512_castps_si512(low), 16);
    _mm512_storeu_si512(to, _mm512_or_si512(lower, _mm512_castps_si512(f32_upper_halves(high))));
}

/* 16 rows of 16 become columns: within blocks of 4 rows and 4 columns, then of the blocks. */
static inline void f32_transpose(f32v v[16]) {
    f32v pairs[16], fours[16];
    FF_UNROLL
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    FF_UNROLL
    for (int i = 0; i < 16; i += 4)
        FF_UNROLL
        for (int half = 0; half < 2; half++) {
            const f64v a = _mm512_castps_pd(pairs[i + half]), b = _mm512_castps_pd(pairs[i + 2 + half]);
            fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    FF_UNROLL
    for (int c = 0; c < 4; c++) { /* columns c, c + 4, c + 8, c + 12 */
        const f32v even0 = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0x88);
        const f32v odd0 = _mm512_shuffle_f32x4(fours[c], fours[4 + c], 0xdd);
        const f32v even1 = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0x88);
        const f32v odd1 = _mm512_shuffle_f32x4(fours[8 + c], fours[12 + c], 0xdd);
        v[c] = _mm512_shuffle_f32x4(even0, even1, 0x88);
        v[c + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
        v[c + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
        v[c + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
}

#endif

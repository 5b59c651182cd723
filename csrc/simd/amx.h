/* Matrices (AMX) of bytes and of bfloat16, beside the vectors of AVX-512: eight registers of 16 rows of 64 bytes. Compilers do not
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
#define MATRIX_bf16_bf16(sum, rows, columns) _tile_dpbf16ps(sum, rows, columns)
#define MATRIX_u8_u8(sum, rows, columns) _tile_dpbuud(sum, rows, columns)
#define MATRIX_u8_i8(sum, rows, columns) _tile_dpbusd(sum, rows, columns)
#define MATRIX_i8_i8(sum, rows, columns) _tile_dpbssd(sum, rows, columns)
#define MATRIX_MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* Bring a matrix near, before it is loaded; it need not be readable memory. */
static inline void matrix_fetch(const void *from) {
    FF_UNROLL
    for (int row = 0; row < 16; row++) __builtin_prefetch((const char *)from + 64 * row);
}

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

/* More of whole numbers of 32 bits. */
static inline i32v i32_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline void i32_store(void *p, i32v v) { _mm512_storeu_si512(p, v); }
static inline i32v i32_least(i32v v, int32_t bound) { return _mm512_min_epi32(v, _mm512_set1_epi32(bound)); }
static inline i32v i32_rounded(f32v v) { return _mm512_cvtps_epi32(v); }
static inline void i32_transpose(i32v v[16]) {
    f32v as[16];
    FF_UNROLL
    for (int i = 0; i < 16; i++) as[i] = _mm512_castsi512_ps(v[i]);
    f32_transpose(as);
    FF_UNROLL
    for (int i = 0; i < 16; i++) v[i] = _mm512_castps_si512(as[i]);
}
/* The bytes at bit `shift` of four vectors, beside each other. */
static inline i32v i32_bytes(const i32v v[4], unsigned shift) {
    const i32v byte = _mm512_set1_epi32(255);
    i32v bytes = _mm512_and_si512(_mm512_srli_epi32(v[0], shift), byte);
    FF_UNROLL
    for (unsigned i = 1; i < 4; i++)
        bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(v[i], shift), byte), 8 * i));
    return bytes;
}
/* sum plus the four bytes of each element */
static inline i32v i32_add_bytes(i32v sum, i32v bytes) {
    const i32v even = _mm512_set1_epi32(0x00ff00ff);
    const i32v pairs = _mm512_add_epi32(_mm512_and_si512(bytes, even), _mm512_and_si512(_mm512_srli_epi32(bytes, 8), even));
    return _mm512_add_epi32(sum, _mm512_add_epi32(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)), _mm512_srli_epi32(pairs, 16)));
}

/* Three products by pieces of 8 bits, 256 numbers apart, as one number; and the same, each less centre times the total of its
   piece, totals 16 numbers apart. */
static inline f32v f32_of_three(i32v high, i32v middle, i32v low) {
    const f32v digit = f32_set1(256.0f);
    return f32_fma(f32_fma(_mm512_cvtepi32_ps(high), digit, _mm512_cvtepi32_ps(middle)), digit, _mm512_cvtepi32_ps(low));
}
static inline f32v f32_of_pieces(const int32_t *p) {
    return f32_of_three(i32_load(p), i32_load(p + 256), i32_load(p + 512));
}
static inline f32v f32_of_pieces_less(const int32_t *p, const int32_t *centre, const int32_t *total) {
    i32v less[3];
    FF_UNROLL
    for (int i = 0; i < 3; i++)
        less[i] = _mm512_sub_epi32(i32_load(p + 256 * i), _mm512_mullo_epi32(i32_load(centre), i32_set1(total[16 * i])));
    return f32_of_three(less[0], less[1], less[2]);
}

/* Four rows of 64 bytes as fours of one column: columns k with k % 16 / 4 = b become row b, of which the first two go to `to`
   and `next` further on, the others `half` further on. */
static inline void store_fours(unsigned char *to, int64_t next, int64_t half, const void *const rows[4]) {
    i32v r[4];
    FF_UNROLL
    for (int i = 0; i < 4; i++) r[i] = _mm512_loadu_si512(rows[i]);
    const i32v low0 = _mm512_unpacklo_epi8(r[0], r[1]), low1 = _mm512_unpacklo_epi8(r[2], r[3]);
    const i32v high0 = _mm512_unpackhi_epi8(r[0], r[1]), high1 = _mm512_unpackhi_epi8(r[2], r[3]);
    i32_store(to, _mm512_unpacklo_epi16(low0, low1));
    i32_store(to + next, _mm512_unpackhi_epi16(low0, low1));
    i32_store(to + half, _mm512_unpacklo_epi16(high0, high1));
    i32_store(to + half + next, _mm512_unpackhi_epi16(high0, high1));
}
/* The other way for a row of float32 of such columns: fours go 16 apart. */
static inline void f32_store_fours(float *to, f32v v) {
    _mm_storeu_ps(to, _mm512_extractf32x4_ps(v, 0));
    _mm_storeu_ps(to + 16, _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps(to + 32, _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps(to + 48, _mm512_extractf32x4_ps(v, 3));
}

#endif

/* Everything that one instruction set consists of: its kernels for every storage and compute type, and the table of
   them. Included by csrc/isa/<isa>.c after its simd header, with FF_ISA its token. */
#include "common.inc.h"

#define FF_T f32
#include "multiply.inc.h"
#undef FF_T
#define FF_T f64
#include "multiply.inc.h"
#undef FF_T

#define FF_S f32
#include "storages.inc.h"
#undef FF_S
#define FF_S f64
#define FF_WIDE /* never computed in float32 */
#include "storages.inc.h"
#undef FF_WIDE
#undef FF_S
#define FF_S f16
#include "storages.inc.h"
#undef FF_S
#include "matrix_storages.inc.h"

/* clang-format off */
#define LOW(s) {FF_LOW_LANES, LOW_BLOCK, NARROW_LANES, LOW_BLOCK, LOW_BLOCK, low_chunk, sum_values, \
                low_packed_bytes, low_scratch_bytes, NULL, OF(low_begin, s), low_compute, low_merge, NULL}
#define LOW_FEW(s) {1, LOW_FEW_QUERIES, LOW_FEW_QUERIES, LOW_FEW_QUERIES, LOW_FEW_QUERIES, low_few_chunk, sum_values, \
                    low_packed_bytes, low_few_scratch_bytes, NULL, OF(low_few_begin, s), low_few_compute, low_few_merge, NULL}
#define FEW(s, t) {1, FEW_QUERIES, FEW_QUERIES, FEW_QUERIES, FEW_QUERIES, few_chunk, sum_values, few_packed_bytes, \
                   few_scratch_bytes, OF(few_pack, s##_##t), NULL, OF(few_compute, s##_##t), few_merge, NULL}
#define GENERAL(s) {GL, GENERAL_PANELS * GL, GL, GL, GL, general_chunk, general_values, general_packed_bytes, \
                    general_scratch_bytes, general_pack, OF(general_begin, s), general_compute, general_merge, \
                    general_write}

const ff_target FF_PASTE(ff_target_, FF_ISA) = {
    .name = STRING(FF_ISA),
#define EVERY_STORAGE(row) \
    {[FF_FLOAT32] = row(f32), [FF_FLOAT64] = row(f64), [FF_FLOAT16] = row(f16), [FF_BFLOAT16] = row(bf16), \
     [FF_UINT8] = row(u8), [FF_INT8] = row(i8)}
    .low = EVERY_STORAGE(LOW),
    .low_few = EVERY_STORAGE(LOW_FEW),
#define PAIRS(kernel) \
    {[FF_FLOAT32] = {kernel(f32, f32), kernel(f32, f64)}, [FF_FLOAT64] = {{0}, kernel(f64, f64)}, \
     [FF_FLOAT16] = {kernel(f16, f32), kernel(f16, f64)}, [FF_BFLOAT16] = {kernel(bf16, f32), kernel(bf16, f64)}, \
     [FF_UINT8] = {kernel(u8, f32), kernel(u8, f64)}, [FF_INT8] = {kernel(i8, f32), kernel(i8, f64)}}
    .few = PAIRS(FEW),
    .batch = PAIRS(BATCH),
    .general = EVERY_STORAGE(GENERAL),
#define LOGITS(s) OF(logits, s)
    .logits = EVERY_STORAGE(LOGITS),
#define GENERAL_LOGITS(s) OF(general_logits, s)
    .general_logits = EVERY_STORAGE(GENERAL_LOGITS),
    .write = write_moments,
#define SQUARES(s) OF(squares, s)
    .squares = EVERY_STORAGE(SQUARES),
};

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
#include "storage.inc.h"
#include "low.inc.h"
#include "low_few.inc.h"
#include "general.inc.h"
#define FF_T f32
#include "pair.inc.h"
#undef FF_T
#define FF_T f64
#include "pair.inc.h"
#undef FF_T
#undef FF_S

#define FF_S f64
#include "storage.inc.h"
#include "low.inc.h"
#include "low_few.inc.h"
#include "general.inc.h"
#define FF_T f64
#include "pair.inc.h"
#undef FF_T
#undef FF_S

/* clang-format off */
#define OF(operation, types) FF_PASTE3(operation, types, FF_ISA)
#define LOW(s) {FF_LOW_LANES, LOW_BLOCK, low_chunk, sum_values, low_packed_bytes, low_scratch_bytes, NULL, \
                OF(low_begin, s), low_compute, low_merge, NULL}
#define LOW_FEW(s) {1, FEW_QUERIES, low_chunk, sum_values, low_packed_bytes, low_few_scratch_bytes, NULL, \
                    OF(low_few_begin, s), low_few_compute, low_few_merge, NULL}
#define FEW(st) {1, FEW_QUERIES, few_chunk, sum_values, few_packed_bytes, few_scratch_bytes, NULL, NULL, \
                 OF(few_compute, st), few_merge, NULL}
#define BATCH(s, t) {OF(LANES, t), BATCH_PANELS * OF(LANES, t), batch_chunk, sum_values, \
                     OF(batch_packed_bytes, s##_##t), OF(batch_scratch_bytes, s##_##t), OF(batch_pack, s##_##t), \
                     OF(batch_begin, s##_##t), OF(batch_compute, s##_##t), OF(batch_merge, s##_##t), NULL}
#define GENERAL(s) {GL, GENERAL_PANELS * GL, general_chunk, general_values, general_packed_bytes, \
                    general_scratch_bytes, general_pack, OF(general_begin, s), general_compute, general_merge, \
                    general_write}
#define STRING_(a) #a
#define STRING(a) STRING_(a)

const ff_target FF_PASTE(ff_target_, FF_ISA) = {
    .name = STRING(FF_ISA),
    .low = {LOW(f32), LOW(f64)},
    .low_few = {LOW_FEW(f32), LOW_FEW(f64)},
    .few = {{FEW(f32_f32), FEW(f32_f64)}, {{0}, FEW(f64_f64)}},
    .batch = {{BATCH(f32, f32), BATCH(f32, f64)}, {{0}, BATCH(f64, f64)}},
    .general = {GENERAL(f32), GENERAL(f64)},
    .logits = {OF(logits, f32), OF(logits, f64)},
    .general_logits = {OF(general_logits, f32), OF(general_logits, f64)},
    .squares = {OF(squares, f32), OF(squares, f64)},
};

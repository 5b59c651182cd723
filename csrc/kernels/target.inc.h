/* Everything that one instruction set consists of: its kernels for every storage and compute type, and the table of
   them. Included by csrc/isa/<isa>.c after its simd header, with FF_ISA its token. */
#include "common.inc.h"

#define FF_S f32
#include "storage.inc.h"
#include "low.inc.h"
#include "few.inc.h"
#define FF_T f32
#define FF_LANES_T F32_LANES
#include "batch.inc.h"
#undef FF_T
#undef FF_LANES_T
#define FF_T f64
#define FF_LANES_T F64_LANES
#include "batch.inc.h"
#undef FF_S

#define FF_S f64
#include "storage.inc.h"
#include "low.inc.h"
#include "few.inc.h"
#include "batch.inc.h"
#undef FF_T
#undef FF_LANES_T
#undef FF_S

/* clang-format off */
#define LOW(s) {FF_LOW_LANES, LOW_BLOCK, low_chunk, low_packed_bytes, low_scratch_bytes, NULL, \
                FF_PASTE3(low_begin, s, FF_ISA), low_compute, low_merge}
#define FEW(s) {1, FEW_QUERIES, few_chunk, few_packed_bytes, few_scratch_bytes, NULL, NULL, \
                FF_PASTE3(few_compute, s, FF_ISA), few_merge}
#define OF(operation, st) FF_PASTE3(operation, st, FF_ISA)
#define BATCH(st) {OF(LANES, st), BATCH_PANELS * OF(LANES, st), batch_chunk, OF(batch_packed_bytes, st), \
                   OF(batch_scratch_bytes, st), OF(batch_pack, st), OF(batch_begin, st), OF(batch_compute, st), \
                   OF(batch_merge, st)}
#define STRING_(a) #a
#define STRING(a) STRING_(a)

/* float64 points are never computed in float32: batch[FF_FLOAT64][FF_FLOAT32] stays empty. */
const ff_target FF_PASTE(ff_target_, FF_ISA) = {
    .name = STRING(FF_ISA),
    .low = {LOW(f32), LOW(f64)},
    .few = {FEW(f32), FEW(f64)},
    .batch = {{BATCH(f32_f32), BATCH(f32_f64)}, {{0}, BATCH(f64_f64)}},
    .logits = {FF_PASTE3(logits, f32, FF_ISA), FF_PASTE3(logits, f64, FF_ISA)},
    .squares = {FF_PASTE3(squares, f32, FF_ISA), FF_PASTE3(squares, f64, FF_ISA)},
};

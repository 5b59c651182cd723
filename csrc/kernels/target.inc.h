/* Everything that one instruction set consists of: its kernels for every storage and compute type, and the table of
   them. Included by csrc/isa/<isa>.c after its simd header, with FF_ISA its token. */
#include "common.inc.h"

#define FF_S f32
#include "storage.inc.h"
#include "low.inc.h"
#include "low_few.inc.h"
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
#define FF_T f64
#include "pair.inc.h"
#undef FF_T
#undef FF_S

/* clang-format off */
#define OF(operation, types) FF_PASTE3(operation, types, FF_ISA)
#define LOW(s) {FF_LOW_LANES, LOW_BLOCK, low_chunk, low_packed_bytes, low_scratch_bytes, NULL, \
                OF(low_begin, s), low_compute, low_merge}
#define LOW_FEW(s) {1, FEW_QUERIES, low_chunk, low_packed_bytes, low_few_scratch_bytes, NULL, OF(low_few_begin, s), \
                    low_few_compute, low_few_merge}
#define FEW(st) {1, FEW_QUERIES, few_chunk, few_packed_bytes, few_scratch_bytes, NULL, NULL, \
                 OF(few_compute, st), few_merge}
#define BATCH(st) {OF(LANES, st), BATCH_PANELS * OF(LANES, st), batch_chunk, OF(batch_packed_bytes, st), \
                   OF(batch_scratch_bytes, st), OF(batch_pack, st), OF(batch_begin, st), OF(batch_compute, st), \
                   OF(batch_merge, st)}
#define STRING_(a) #a
#define STRING(a) STRING_(a)

const ff_target FF_PASTE(ff_target_, FF_ISA) = {
    .name = STRING(FF_ISA),
    .low = {LOW(f32), LOW(f64)},
    .low_few = {LOW_FEW(f32), LOW_FEW(f64)},
    .few = {{FEW(f32_f32), FEW(f32_f64)}, {{0}, FEW(f64_f64)}},
    .batch = {{BATCH(f32_f32), BATCH(f32_f64)}, {{0}, BATCH(f64_f64)}},
    .logits = {OF(logits, f32), OF(logits, f64)},
    .squares = {OF(squares, f32), OF(squares, f64)},
};

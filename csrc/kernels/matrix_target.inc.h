/* What an instruction set with matrices adds to another, FF_BASE: the batch kernel of the storage types that matrices
   hold exactly. Included by csrc/isa/<isa>.c after its simd header, with FF_ISA its token. */
#define FF_MATRIX
#pragma GCC diagnostic ignored "-Wunused-function" /* of what all kernels share, this one needs a part */
#include "common.inc.h"

#define FF_T f32
#include "multiply.inc.h"
#undef FF_T

#include "matrix_storages.inc.h"

const ff_target FF_PASTE(ff_target_, FF_ISA) = {
    .name = STRING(FF_ISA),
    .base = &FF_PASTE(ff_target_, FF_BASE),
    .matrix = {[FF_BFLOAT16] = BATCH(bf16, f32), [FF_UINT8] = BATCH(u8, f32), [FF_INT8] = BATCH(i8, f32)},
};

/* AVX-512 with matrices of bytes and of bfloat16 (AMX, Sapphire Rapids and later).
   cflags x86_64: -march=x86-64 -mtune=generic -mavx2 -mfma -mf16c -mavx512f -mavx512dq -mavx512vl -mavx512bw -mamx-tile -mamx-int8 -mamx-bf16 -mprefer-vector-width=512 */
#if defined(__x86_64__)
#define FF_ISA amx
#include "../ff_internal.h"
#ifndef FF_BASE /* the tests put another one here, for machines without AVX-512 */
#define FF_BASE avx512
#endif
#include "../simd/amx.h"
#include "../kernels/matrix_target.inc.h"
#else
typedef int ff_no_amx_here; /* a translation unit must not be empty */
#endif

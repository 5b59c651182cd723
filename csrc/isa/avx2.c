/* AVX2 and FMA (Haswell, Zen and later).
   cflags x86_64: -march=x86-64 -mtune=generic -mavx2 -mfma -mf16c */
#if defined(__x86_64__)
#define FF_ISA avx2
#include "../ff_internal.h"
#include "../simd/avx2.h"
#include "../kernels/target.inc.h"
#else
typedef int ff_no_avx2_here; /* a translation unit must not be empty */
#endif

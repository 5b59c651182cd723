/* AVX-512 (Skylake server, Zen 4 and later).
   cflags x86_64: -march=x86-64 -mtune=generic -mavx2 -mfma -mf16c -mavx512f -mavx512dq -mavx512vl -mavx512bw -mprefer-vector-width=512 */
#if defined(__x86_64__)
#define FF_ISA avx512
#include "../ff_internal.h"
#include "../simd/avx512.h"
#include "../kernels/target.inc.h"
#else
typedef int ff_no_avx512_here; /* a translation unit must not be empty */
#endif

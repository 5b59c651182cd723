/* NEON, the floor of arm64. */
#if defined(__aarch64__)
#define FF_ISA neon
#include "../ff_internal.h"
#include "../simd/neon.h"
#include "../kernels/target.inc.h"
#else
typedef int ff_no_neon_here; /* a translation unit must not be empty */
#endif

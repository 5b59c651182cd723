/* The floor of the platform: always built, and pinned there whatever flags the rest is built with.
   cflags x86_64: -march=x86-64 -mtune=generic */
#define FF_ISA plain
#include "../ff_internal.h"
#include "../simd/plain.h"
#include "../kernels/target.inc.h"

/* Which instruction sets this machine, and its operating system, can run. */
#include <string.h>

#include "ff_internal.h"

int ff_cpu_runs(const char *isa) {
    if (strcmp(isa, "plain") == 0) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init(); /* the checks below also ask whether the operating system saves the registers */
    /* every processor with AVX2 converts from half precision too */
    if (strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (strcmp(isa, "avx512") == 0)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return 0;
}

/* Which instruction sets this machine, and its operating system, can run. */
#include <string.h>

#include "ff_internal.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Matrices of bytes and bfloat16: leaf 7 of the processor's description, and Linux's leave to use registers so large, which holds
   for all threads of the process. */
static int matrices_run(void) {
    static _Atomic int known = -1; /* asking takes long in virtual machines */
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, ALL = AMX_BF16 | AMX_TILE | AMX_INT8, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d;
    if (known < 0)
        known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & ALL) == ALL &&
                syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return known;
}
#elif defined(__x86_64__)
static int matrices_run(void) { return 0; }
#endif

int ff_cpu_runs(const char *isa) {
#ifdef FF_INTRINSICS /* see simd/avx512.h */
    return 1;
#endif
    if (strcmp(isa, "plain") == 0) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init(); /* the checks below also ask whether the operating system saves the registers */
    /* every processor with AVX2 converts from half precision too */
    if (strcmp(isa, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (strcmp(isa, "avx512") == 0) return avx512;
    if (strcmp(isa, "amx") == 0) return avx512 && matrices_run();
#elif defined(__aarch64__)
    if (strcmp(isa, "neon") == 0) return 1;
#endif
    return 0;
}

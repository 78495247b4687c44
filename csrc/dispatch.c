/* Which inner loops the processor can run, and whose threads they use. */
#include "gaussiank.h"

typedef void (*gk_runtime)(void (*)(void *), void *, unsigned, unsigned);

static gk_runtime runtime; /* GOMP_parallel of the OpenMP that torch has loaded */

GK_EXPORT int32_t gk_abi(void) { return GK_ABI; }

/* The library is not linked with OpenMP: a second runtime would bring a second pool of threads. */
GK_EXPORT void gk_set_parallel(void *gomp_parallel) { runtime = (gk_runtime)gomp_parallel; }

void gk_parallel(void (*body)(void *), void *data, int32_t threads)
{
    if (threads > 1 && runtime)
        runtime(body, data, (unsigned)threads, 0);
    else
        body(data);
}

const gk_isa *gk_isa_of(int32_t number)
{
    switch (number) {
    case 0:
        return &gk_portable;
#if defined(__x86_64__)
    case 1:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi")
                   ? &gk_avx2
                   : NULL;
    case 2:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("popcnt")
                   ? &gk_avx512
                   : NULL;
#endif
    default:
        return NULL;
    }
}

/* Name of a backend, or NULL when this processor cannot run it. */
GK_EXPORT const char *gk_backend(int32_t number)
{
    const gk_isa *isa = gk_isa_of(number);
    return isa ? isa->name : NULL;
}

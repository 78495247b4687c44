/* Inner loops in plain C. The compiler vectorises them for the platform's baseline: NEON on arm64, SSE2 on x86-64. */
#include "gaussiank.h"

#define GK_INLINE inline __attribute__((always_inline))
#define GK_NAME(name) gk_portable##name
#define GK_PAST_CACHE GK_STORE
#define GK_ASK_BOTH 0
#if defined(__aarch64__)
#define GK_LABEL "neon"
#else
#define GK_LABEL "scalar"
#endif

static GK_INLINE float gk_sum(const gk_job *job, int64_t i, int kind);

/* In place, out is residual: each entry is read before it is written, so iterations are independent all the same. */
#if defined(__clang__)
#define GK_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define GK_INDEPENDENT _Pragma("GCC ivdep")
#endif

static GK_INLINE int gk_group_any(const gk_job *job, int64_t group, int kind, int mode)
{
    int32_t any = 0, low = job->low;
    float *out = job->out;
    GK_INDEPENDENT
    for (int64_t i = group; i < group + GK_GROUP; i++) {
        float entry = gk_sum(job, i, kind);
        any |= low - (gk_bits(entry) & GK_MAGNITUDE); /* negative for a hit; cannot overflow, low >= -1 */
        if (mode != GK_READ)
            out[i] = entry;
    }
    return any < 0;
}

static GK_INLINE uint64_t gk_group_mask(const gk_job *job, int64_t group, int kind)
{
    uint64_t mask = 0;
    for (int i = 0; i < GK_GROUP; i++)
        mask |= (uint64_t)((gk_bits(gk_sum(job, group + i, kind)) & GK_MAGNITUDE) > job->low) << i;
    return mask;
}

static GK_INLINE void gk_lanes(const gk_job *job, int64_t begin, int64_t end, gk_sums *sums, int kind, int mode)
{
    const float *vector = mode == GK_READ ? job->residual : job->out;
    (void)kind;
    for (int64_t line = begin; line < end; line += GK_LINE)
        for (int lane = 0; lane < GK_LINE; lane++) {
            double wide = vector[line + lane];
            int32_t bits = gk_bits(vector[line + lane]) & GK_MAGNITUDE;
            sums->sum[lane] += wide;
            sums->square[lane] += wide * wide;
            sums->absolute[lane] += wide < 0 ? -wide : wide;
            sums->max_bits = bits > sums->max_bits ? bits : sums->max_bits;
        }
}

static int64_t GK_NAME(band)(const int32_t *bits, int64_t count, int32_t low, int32_t high, int32_t *out,
                             int64_t *above)
{
    return gk_band_tail(bits, 0, count, low, high, out, 0, 0, above);
}

static int64_t GK_NAME(choose)(const gk_choice *choice, int64_t begin, int64_t end, int64_t taken, int32_t *wrong,
                               int64_t *wrongs)
{
    return gk_choose_tail(choice, begin, end, taken, wrong, wrongs);
}

static void GK_NAME(drain)(float *restrict tile, int64_t count, float factor, float *restrict out, int32_t stream)
{
    int64_t i = 0;
    (void)stream;
    for (; i < count; i++) {
        out[i] = tile[i] * factor;
        tile[i] = 0.0f;
    }
}

#include "sweep.inc"

/* Sums, largest magnitude and counts of a vector, in one pass; chunks are added up in their order. */
#include "gaussiank.h"

#include <string.h>

typedef struct {
    const gk_isa *isa;
    const float *vector;
    int64_t numel, chunks;
    gk_totals *totals;
    float threshold;
    _Atomic int64_t next, above;
} gk_reading;

static int64_t end_of(const gk_reading *reading, int64_t chunk)
{
    int64_t end = (chunk + 1) * GK_CHUNK;
    return end < reading->numel ? end : reading->numel;
}

static void measure(void *data)
{
    gk_reading *reading = data;
    for (;;) {
        int64_t c = atomic_fetch_add(&reading->next, 1);
        if (c >= reading->chunks)
            return;
        gk_sums sums;
        memset(&sums, 0, sizeof sums);
        reading->isa->measure(reading->vector, c * GK_CHUNK, end_of(reading, c), &sums);
        gk_add_lanes(&sums, reading->totals + c);
    }
}

static void count(void *data)
{
    gk_reading *reading = data;
    for (;;) {
        int64_t c = atomic_fetch_add(&reading->next, 1);
        if (c >= reading->chunks)
            return;
        int64_t begin = c * GK_CHUNK;
        int64_t above =
            reading->isa->count_above(reading->vector + begin, end_of(reading, c) - begin, reading->threshold);
        atomic_fetch_add(&reading->above, above);
    }
}

/* mean, unbiased std, mean |x|, max |x|, 1 if all is finite. The square of a float32 is exact in double, so the
   difference of squares loses nothing that float32 could show, unless mean / std is beyond 1e4. */
void gk_summarize(const gk_totals *totals, int64_t chunks, int64_t numel, double *moments)
{
    gk_totals all = {0, 0, 0, 0};
    for (int64_t c = 0; c < chunks; c++) {
        all.sum += totals[c].sum;
        all.square += totals[c].square;
        all.absolute += totals[c].absolute;
        all.max_bits = totals[c].max_bits > all.max_bits ? totals[c].max_bits : all.max_bits;
    }
    double count = (double)numel, mean = all.sum / count;
    double variance = numel > 1 ? (all.square - all.sum * mean) / (count - 1) : 0;
    moments[0] = mean;
    moments[1] = __builtin_sqrt(variance < 0 ? 0 : variance);
    moments[2] = all.absolute / count;
    moments[3] = gk_float(all.max_bits);
    moments[4] = all.max_bits < GK_INFINITE;
}

GK_EXPORT int64_t gk_moments_bytes(int64_t numel) { return gk_size(numel / GK_CHUNK + 1, sizeof(gk_totals)); }

GK_EXPORT int32_t gk_moments(int32_t backend, const float *vector, int64_t numel, double *moments, void *scratch,
                             int64_t scratch_bytes, int32_t threads)
{
    gk_reading reading = {.isa = gk_isa_of(backend), .vector = vector, .numel = numel};
    gk_arena arena = {scratch, (char *)scratch + scratch_bytes};
    if (!reading.isa || numel < 1)
        return GK_ARGUMENT;
    reading.chunks = (numel + GK_CHUNK - 1) / GK_CHUNK;
    reading.totals = gk_cut(&arena, reading.chunks, sizeof(gk_totals));
    if (!reading.totals)
        return GK_SCRATCH;
    gk_parallel(measure, &reading, threads);
    gk_summarize(reading.totals, reading.chunks, numel, moments);
    return GK_OK;
}

/* Entries of vector (not of |vector|) above threshold; -1 for a wrong argument. */
GK_EXPORT int64_t gk_count_above(int32_t backend, const float *vector, int64_t numel, float threshold, int32_t threads)
{
    gk_reading reading = {.isa = gk_isa_of(backend), .vector = vector, .numel = numel, .threshold = threshold};
    if (!reading.isa || numel < 0)
        return -1;
    reading.chunks = (numel + GK_CHUNK - 1) / GK_CHUNK;
    gk_parallel(count, &reading, threads);
    return reading.above;
}

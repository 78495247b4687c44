/* Top_k chunk by chunk: the largest entries of each stretch of a vector. */
#include "gaussiank.h"

enum { ALL = -1 }; /* as a limit: below every key */

typedef struct {
    const float *vector;
    int64_t numel, chunk, chunks;
    const int64_t *ends; /* [chunks]: entries taken up to each chunk's end */
    int32_t *index_out;
    const gk_isa *isa;
    int32_t *scratch; /* [threads, 3, chunk + GK_SLACK] */
    _Atomic int64_t next;
    _Atomic int32_t slots;
} gk_chunks;

/* Collect the entries of a chunk with bits > low. */
static int64_t collect(const gk_chunks *run, int64_t begin, int64_t end, int32_t low, int32_t *index, float *value)
{
    if (run->chunk % GK_GROUP == 0) {
        const gk_job job = {.residual = run->vector, .low = low, .clear = GK_MAGNITUDE};
        return run->isa->sweep[GK_NONE][GK_READ](&job, begin, end, index, value, NULL);
    }
    int64_t found = 0;
    for (int64_t i = begin; i < end; i++) {
        index[found] = (int32_t)i;
        value[found] = run->vector[i];
        found += (gk_bits(run->vector[i]) & GK_MAGNITUDE) > low;
    }
    return found;
}

/* Take a chunk's share: what lies above its limit, and of what equals it the first. Neighbours are alike, so entries
   well below the limit of the chunk before are not looked at, unless that leaves too few. Returns the limit. */
static int32_t take(const gk_chunks *run, int64_t number, int32_t before, int32_t *index)
{
    int64_t begin = number * run->chunk, end = begin + run->chunk, room = run->chunk + GK_SLACK;
    int64_t at = number ? run->ends[number - 1] : 0, share = run->ends[number] - at, above, equal;
    if (!share)
        return before;
    end = end < run->numel ? end : run->numel;
    int32_t *tmp = index + room, *out = run->index_out + at, *last = run->index_out + run->ends[number];
    float *value = (float *)(tmp + room);
    const int32_t low = before == ALL ? ALL : gk_bits(gk_float(before) * 0.75f);
    int64_t found = collect(run, begin, end, low, index, value);
    if (found < share)
        found = collect(run, begin, end, ALL, index, value);
    const int32_t limit = gk_kth((const int32_t *)value, found, share, tmp, &above, &equal);
    int64_t spare = share - above;
    for (int64_t i = 0; i < found && out < last; i++) {
        int32_t key = gk_key(gk_bits(value[i])), tied = key == limit;
        *out = index[i];
        out += key > limit || (tied && spare > 0);
        spare -= tied;
    }
    return limit < GK_INFINITE ? limit : ALL;
}

static void work(void *data)
{
    gk_chunks *run = data;
    int32_t *own = run->scratch + atomic_fetch_add(&run->slots, 1) * 3 * (run->chunk + GK_SLACK);
    int32_t limit = ALL;
    for (int64_t number; (number = atomic_fetch_add(&run->next, 1)) < run->chunks;)
        limit = take(run, number, limit, own);
}

GK_EXPORT int64_t gk_chunk_topk_bytes(int64_t chunk, int32_t threads)
{
    return 3 * (chunk + GK_SLACK) * (int64_t)sizeof(int32_t) * threads;
}

/* ends [chunks], ascending, at most a chunk's entries apart; index_out [ends[chunks - 1]], ascending. */
GK_EXPORT int32_t gk_chunk_topk(int32_t backend, const float *vector, int64_t numel, int64_t chunk,
                                const int64_t *ends, int32_t *index_out, void *scratch, int64_t bytes, int32_t threads)
{
    const gk_isa *isa = gk_isa_of(backend);
    if (!isa || numel < 1 || chunk < 1 || threads < 1 || threads > GK_MAX_THREADS)
        return GK_ARGUMENT;
    if (bytes < gk_chunk_topk_bytes(chunk, threads))
        return GK_SCRATCH;
    gk_chunks run = {.vector = vector, .numel = numel, .chunk = chunk, .chunks = (numel + chunk - 1) / chunk,
                     .ends = ends, .index_out = index_out, .isa = isa, .scratch = scratch};
    gk_parallel(work, &run, threads);
    return GK_OK;
}

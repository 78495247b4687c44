/* Add, take what is above a known threshold, leave the rest, and measure the sum on the way: one pass over memory. */
#include "gaussiank.h"

typedef struct {
    gk_pass pass;
    float *target;
    int32_t *index_out;
    float *value_out;
    int32_t last_key; /* entries with larger keys are counted, not taken: NaN, where only numbers are wanted */
    int64_t kept, capacity;
} gk_above;

static int64_t room_for(int64_t numel, int64_t capacity)
{
    int64_t room = capacity + 2 * GK_CHUNK, most = numel / 16 + 2 * GK_CHUNK;
    room = room < most ? room : most;
    return (room < numel ? room : numel) + GK_SLACK;
}

/* The lowest indices are kept; what is over the capacity goes back to where it was. */
static void take(gk_above *run, const int32_t *index, const float *value, int64_t count, int cleared)
{
    for (int64_t i = 0; i < count; i++) {
        int wanted = (gk_bits(value[i]) & GK_MAGNITUDE) <= run->last_key;
        if (wanted && run->kept < run->capacity) {
            run->index_out[run->kept] = index[i];
            run->value_out[run->kept++] = value[i];
            if (run->target && !cleared)
                run->target[index[i]] = 0.0f;
        } else if (cleared) {
            run->target[index[i]] = value[i];
        }
    }
}

/* A chunk that found the pool full is read again, 4 bytes an element, from where its sum stands. */
static void take_again(gk_above *run, int64_t chunk)
{
    gk_pass *pass = &run->pass;
    gk_job job = {.residual = run->target ? run->target : pass->job.residual, .low = pass->job.low,
                  .clear = GK_MAGNITUDE};
    int64_t begin = chunk * GK_CHUNK, end = begin + GK_CHUNK < pass->numel ? begin + GK_CHUNK : pass->numel;
    int64_t count = pass->isa->sweep[GK_NONE][GK_READ](&job, begin, end, pass->local_index, pass->local_value, NULL);
    take(run, pass->local_index, pass->local_value, count, 0);
}

GK_EXPORT int64_t gk_threshold_bytes(int64_t numel, int64_t capacity, int32_t threads)
{
    return gk_pass_bytes(numel, room_for(numel, capacity), threads, 1);
}

/* residual + grad to out, entries above threshold to index and value, at most `capacity` of them. A negative
   threshold takes everything. grad NULL: select from residual, write nothing. last_key: largest magnitude bits that
   are taken. moments NULL: no statistics. counts: kept, and how many are above the threshold. */
GK_EXPORT int32_t gk_threshold_take(int32_t backend, const float *residual, const void *grad, int32_t kind, float *out,
                                    int32_t stream, int64_t numel, float threshold, int32_t last_key,
                                    int64_t capacity, int32_t *index, float *value, int64_t *counts, double *moments,
                                    void *scratch, int64_t scratch_bytes, int32_t threads)
{
    const gk_isa *isa = gk_isa_of(backend);
    if (!isa || numel < 1 || numel > INT32_MAX || capacity < 0 || threads < 1 || threads > GK_MAX_THREADS ||
        threshold != threshold)
        return GK_ARGUMENT;
    gk_above run = {.target = out, .index_out = index, .value_out = value, .last_key = last_key, .capacity = capacity};
    gk_pass *pass = &run.pass;
    pass->isa = isa;
    pass->kind = grad ? kind : GK_NONE;
    pass->mode = !grad ? GK_READ : stream && out != residual ? GK_STREAM : GK_STORE;
    pass->numel = numel;
    pass->threads = threads;
    pass->room = room_for(numel, capacity);
    pass->job = (gk_job){.residual = residual, .grad = grad, .out = out};
    pass->job.low = threshold < 0 ? -1 : gk_bits(threshold) & GK_MAGNITUDE;
    if (pass->job.low == GK_INFINITE)
        pass->job.low = GK_MAGNITUDE; /* nothing is above infinity, NaN is its equal */
    pass->job.clear = pass->job.low;
    gk_totals wanted;
    pass->totals = moments ? &wanted : NULL;
    gk_arena arena = {scratch, (char *)scratch + scratch_bytes};
    if (gk_lay_out(pass, &arena))
        return GK_SCRATCH;
    gk_run(pass);
    /* Then serially, chunk by chunk: copy up to the capacity, and put back in the sum what is beyond it. */
    for (int64_t c = 0; c < pass->chunks; c++) {
        const gk_part *part = pass->parts + c;
        if (part->stored)
            take(&run, pass->index + part->offset, pass->value + part->offset, part->count, pass->mode != GK_READ);
        else if (run.kept < capacity)
            take_again(&run, c);
    }
    counts[0] = run.kept;
    counts[1] = gk_found(pass);
    if (moments)
        gk_summarize(pass->totals, pass->chunks, numel, moments);
    return GK_OK;
}

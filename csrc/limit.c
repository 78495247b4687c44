/* Where to look for the k largest: above a limit from the last step's hint, from a sample, or from counting all keys. */
#include "topk.h"

#include <string.h>

enum { EXPECTED = 32, MAX_SAMPLE = 1 << 20, MAX_CHEAP = 1 << 16 };

/* Entries to sample so that about EXPECTED of the k largest are among them; whole cache lines. */
int64_t gk_sample_size(int64_t numel, int64_t k)
{
    int64_t cheap = least(numel / 256, MAX_CHEAP); /* a larger one finds a closer limit, and this costs next to nothing */
    int64_t wanted = least(most(most(EXPECTED * (numel / k + 1), cheap), GK_SMALL), MAX_SAMPLE);
    return least(wanted, numel / 16) / GK_LINE * GK_LINE;
}

/* ---------------------------------------------------------------------- the limit from a sample */

static uint32_t scramble(uint32_t x)
{
    x *= 0x9e3779b1u;
    x ^= x >> 15;
    x *= 0x85ebca77u;
    return x ^ (x >> 13);
}

static void read_line(const gk_job *job, int64_t start, int32_t kind, int32_t *keys)
{
#define LINE(entry)                                                                                                    \
    for (int i = 0; i < GK_LINE; i++)                                                                                  \
        keys[i] = gk_key(gk_bits(entry));
    switch (kind) {
    case GK_NONE:
        LINE(job->residual[start + i]) break;
    case GK_F32:
        LINE(job->residual[start + i] + gk_convert(job->grad, start + i, GK_F32)) break;
    case GK_BF16:
        LINE(job->residual[start + i] + gk_convert(job->grad, start + i, GK_BF16)) break;
    default:
        LINE(job->residual[start + i] + gk_convert(job->grad, start + i, GK_F16))
    }
#undef LINE
}

/* Read one line of 16 from each of `lines` equal stretches, at a scattered place, so that no period in the data can
   hide from the sample. Neighbours are alike in real gradients, so it counts for less than its size: the low limit
   stands at twice the expected rank and 16 more. */
static void read_sample(gk_topk *run)
{
    enum { AHEAD = 16 };
    const gk_job *job = &run->pass.job;
    int64_t lines = run->sampled / GK_LINE, stretch = run->pass.numel / GK_LINE / lines;
    int64_t ahead[AHEAD];
    int64_t grad_bytes = run->pass.kind == GK_NONE ? 0 : run->pass.kind == GK_F32 ? 4 : 2;
    for (int64_t line = -AHEAD; line < lines; line++) {
        if (line >= 0)
            read_line(job, ahead[line % AHEAD], run->pass.kind, run->sample + line * GK_LINE);
        int64_t next = line + AHEAD;
        if (next < lines) {
            int64_t start = (next * stretch + scramble((uint32_t)next) % stretch) * GK_LINE;
            ahead[next % AHEAD] = start;
            __builtin_prefetch(job->residual + start);
            if (grad_bytes)
                __builtin_prefetch((const char *)job->grad + start * grad_bytes);
        }
    }
}

/* The rank-th largest of the sample. A coarse limit from every 16th key leaves few for the exact rank. */
static void sample_limits(gk_topk *run)
{
    gk_job *job = &run->pass.job;
    read_sample(run);
    int64_t above, equal, count = run->sampled;
    int64_t rank = most(1, count * run->k / run->pass.numel);
    int64_t low_rank = least(count, rank + least(rank, 10 * root(rank)) + 16);
    const int32_t *keys = run->sample;
    if (count >= 2048) {
        int64_t coarse = count / 16;
        for (int64_t i = 0; i < coarse; i++)
            run->tmp[i] = run->sample[i * 16 + (i & 15)];
        int64_t coarse_rank = least(coarse, low_rank * coarse / count * 2 + 16);
        int32_t limit = gk_kth(run->tmp, coarse, coarse_rank, run->more, &above, &equal) - 1;
        int64_t sieved = run->pass.isa->band(run->sample, count, limit, GK_INFINITE, run->sieved, &above);
        if (sieved >= low_rank) {
            keys = run->sieved;
            count = sieved;
        }
    }
    job->clear = gk_kth(keys, count, rank, run->tmp, &above, &equal);
    job->low = gk_kth(keys, count, low_rank, run->tmp, &above, &equal) - 1;
    job->low = (int32_t)least(job->low, GK_INFINITE - 1); /* infinities and NaN are equals */
    job->low = (int32_t)most(job->low, 0);
    job->clear = (int32_t)most(job->clear, job->low);
}

/* ---------------------------------------------------------------------- the limit from counting all keys */

/* One level: count the keys that share the prefix, by their next bits; each thread in a table of its own. */
static void count_keys(void *data)
{
    gk_topk *run = data;
    int32_t own[GK_BUCKETS];
    memset(own, 0, sizeof own);
    const float *vector = run->pass.job.residual;
    for (;;) {
        int64_t c = atomic_fetch_add(&run->next, 1);
        if (c >= run->pass.chunks)
            break;
        int64_t end = least((c + 1) * GK_CHUNK, run->pass.numel);
        for (int64_t i = c * GK_CHUNK; i < end; i++) {
            int32_t key = gk_key(gk_bits(vector[i]));
            if (key >> run->last_shift == run->prefix)
                own[(key >> run->shift) & run->mask]++;
        }
    }
    for (int b = 0; b < GK_BUCKETS; b++)
        if (own[b])
            __atomic_fetch_add(run->tables + b, own[b], __ATOMIC_RELAXED);
}

/* The k-th largest key: its upper 11 bits, then 10, then 10, each from a count of all keys that share the rest. */
static int32_t exact_limit(gk_topk *run)
{
    static const int32_t shifts[] = {31, 20, 10, 0};
    int64_t k = run->k;
    run->prefix = 0;
    for (int level = 0; level < 3; level++) {
        run->last_shift = shifts[level];
        run->shift = shifts[level + 1];
        run->mask = (1 << (run->last_shift - run->shift)) - 1;
        memset(run->tables, 0, GK_BUCKETS * sizeof *run->tables);
        atomic_init(&run->next, 0);
        gk_parallel(count_keys, run, run->pass.threads);
        int32_t bucket = run->mask;
        for (; run->tables[bucket] < k; bucket--)
            k -= run->tables[bucket];
        run->prefix = (int32_t)((uint32_t)run->prefix << (run->last_shift - run->shift)) | bucket;
    }
    return run->prefix;
}

/* ---------------------------------------------------------------------- which of them */

/* Set what the next pass collects above (low) and clears above (clear). Returns the exact limit where it was counted: then
   only what is larger is collected, and the equals are found behind the pass (emit_all). A short vector is collected
   whole. A hint lets 5 % of the magnitude down, which is room for the residual to have grown or shrunk in a step. */
int32_t gk_next_limits(gk_topk *run, gk_stage *stage, const float *hint)
{
    gk_job *job = &run->pass.job;
    int64_t numel = run->pass.numel;
    if (numel <= GK_SMALL) {
        job->low = -1;
        job->clear = GK_MAGNITUDE;
    } else if (*stage == FROM_HINT && hint && *hint > 0 && gk_bits(*hint) < GK_INFINITE) {
        job->clear = gk_bits(*hint);
        job->low = (int32_t)most(0, gk_bits(*hint * 0.95f) - 1);
    } else if (*stage <= FROM_SAMPLE) {
        *stage = FROM_SAMPLE;
        sample_limits(run);
    } else {
        int32_t limit = exact_limit(run);
        job->low = limit == GK_INFINITE ? GK_MAGNITUDE : limit;
        job->clear = GK_MAGNITUDE;
        return limit;
    }
    return 0;
}

/* Add, take exactly the k largest, leave the rest: one pass over memory, then work on about 2 k candidates.

   The pass collects what is above a limit that is safely too low, and clears what is above the limit that it expects
   to be right. The exact k-th magnitude then comes from the candidates; of them only those that lie between the
   expected and the right limit must be cleared or put back. A limit that let too few through costs a second pass that
   reads 4 bytes an element. Where a sample says nothing (ties everywhere), the limit comes from counting all keys. */
#include "topk.h"

enum { RANK_ALL = 1024 };

static int64_t room_for(int64_t numel, int64_t k)
{
    return least(numel, most(most(4 * k, numel / 32), GK_SMALL)) + GK_SLACK;
}

/* ---------------------------------------------------------------------- from candidates to the k chosen */

/* Entries whose place holds the wrong thing: chosen and not cleared, or cleared and not chosen. */
static void mend(gk_topk *run, const int32_t *list, int64_t count)
{
    enum { AHEAD = 16 };
    const gk_pass *pass = &run->pass;
    for (int64_t i = 0; i < count; i++) {
        if (i + AHEAD < count)
            __builtin_prefetch(run->target + pass->index[list[i + AHEAD]], 1);
        float value = pass->value[list[i]];
        int cleared = pass->mode != GK_READ && (gk_bits(value) & GK_MAGNITUDE) > pass->job.clear;
        run->target[pass->index[list[i]]] = cleared ? value : 0.0f;
    }
}

/* The k-th largest of the candidates. A sample of them says where it is, give or take three standard deviations of its
   rank: only the candidates in between are ranked. */
static int32_t candidate_limit(gk_topk *run, int64_t found, int64_t *ties, int64_t *equal)
{
    const int32_t *bits = (const int32_t *)run->pass.value;
    int64_t above = 0, inside = 0, above_inside, unused, sampled = least(most(found / 16, 256), 2048);
    if (found > RANK_ALL) {
        int64_t step = found / sampled, rank = most(1, run->k * sampled / found);
        int64_t doubt = 3 * root(rank * (sampled - least(rank, sampled)) / sampled) + 4;
        for (int64_t i = 0; i < sampled; i++)
            run->more[i] = bits[i * step];
        int32_t low = gk_kth(run->more, sampled, least(sampled, rank + doubt), run->tmp, &unused, equal);
        int32_t high = rank > doubt ? gk_kth(run->more, sampled, rank - doubt, run->tmp, &unused, equal) : GK_INFINITE;
        low = rank + doubt < sampled ? low : 0;
        if (high < GK_INFINITE)
            inside = run->pass.isa->band(bits, found, low - 1, high, run->tmp, &above);
    }
    if (above >= run->k || above + inside < run->k) {
        inside = found;
        above = 0;
    } else {
        bits = run->tmp;
    }
    int32_t limit = gk_kth(bits, inside, run->k - above, run->tmp, &above_inside, equal);
    *ties = run->k - above - above_inside;
    return limit;
}

/* In the chunk where the ties run out, only the first of the candidates equal to the limit are taken. */
static int64_t choose_ties(const gk_choice *choice, const gk_part *part, int32_t limit, int64_t taken, int64_t *ties,
                           int32_t *wrong, int64_t *wrongs)
{
    for (int64_t at = part->offset; at < part->offset + part->count; at++) {
        int32_t bits = gk_bits(choice->value[at]) & GK_MAGNITUDE, key = gk_key(bits);
        int tie = key == limit && *ties > 0, take = (key > limit || tie) && taken < choice->k;
        *ties -= tie;
        if (take) {
            choice->index_out[taken] = choice->index[at];
            choice->value_out[taken++] = choice->value[at];
        }
        wrong[*wrongs] = (int32_t)at;
        *wrongs += take != (bits > choice->clear);
    }
    return taken;
}

/* Write the k chosen in ascending order: chunks in order, and in each the candidates in order. Above the limit all are
   taken; equal to it, `ties` of `equal`, from the front, so that one chunk at most has some of both. Where the expected
   limit was not the right one, what stands in target is mended at the end. */
static void emit(gk_topk *run, int32_t limit, int64_t ties, int64_t equal)
{
    const gk_pass *pass = &run->pass;
    gk_choice choice = {.index = pass->index, .value = pass->value, .floor = limit - 1, .k = run->k,
                        .clear = pass->mode == GK_READ ? GK_MAGNITUDE : pass->job.clear,
                        .index_out = run->index_out, .value_out = run->value_out};
    int64_t taken = 0, wrongs = 0, over;
    int32_t top = limit == GK_INFINITE ? GK_MAGNITUDE : limit; /* a NaN is a tie of infinity */
    for (int64_t c = 0; c < pass->chunks; c++) {
        const gk_part *part = pass->parts + c;
        if (ties < equal) { /* not all of them are taken */
            int64_t here = pass->isa->band((const int32_t *)pass->value + part->offset, part->count, limit - 1, top, run->tmp,
                                           &over);
            if (ties > 0 && ties < here) {
                taken = choose_ties(&choice, part, limit, taken, &ties, run->more, &wrongs);
                equal -= here;
                continue;
            }
            choice.floor = ties ? limit - 1 : top;
            ties -= ties ? here : 0;
            equal -= here;
        }
        taken = pass->isa->choose(&choice, part->offset, part->offset + part->count, taken, run->more, &wrongs);
    }
    if (run->target)
        mend(run, run->more, wrongs);
}

/* Up to `ties` entries equal to the limit between two candidates; they were no candidates, so the vector is read. */
static int64_t emit_ties(gk_topk *run, int32_t limit, int64_t from, int64_t to, int64_t n, int64_t *ties)
{
    const float *vector = run->target ? run->target : run->pass.job.residual;
    for (int64_t i = from; i < to && *ties > 0; i++)
        if (gk_key(gk_bits(vector[i])) == limit) {
            run->index_out[n] = (int32_t)i;
            run->value_out[n++] = vector[i];
            (*ties)--;
            if (run->target)
                run->target[i] = 0.0f;
        }
    return n;
}

/* All candidates are chosen, and as many entries equal to `limit` as are missing, from the front. */
static void emit_all(gk_topk *run, int32_t limit, int64_t found)
{
    const gk_pass *pass = &run->pass;
    int64_t n = 0, from = 0, ties = run->k - found;
    for (int64_t c = 0; c < pass->chunks; c++)
        for (int64_t i = 0; i < pass->parts[c].count; i++) {
            int64_t at = pass->parts[c].offset + i;
            int32_t place = pass->index[at];
            n = emit_ties(run, limit, from, place, n, &ties);
            run->index_out[n] = place;
            run->value_out[n++] = pass->value[at];
            if (run->target)
                run->target[place] = 0.0f;
            from = (int64_t)place + 1;
        }
    emit_ties(run, limit, from, pass->numel, n, &ties);
}

/* ---------------------------------------------------------------------- the op */

/* After the first pass the sum stands in target: search there, 4 bytes an element. */
static void read_from_target(gk_topk *run)
{
    gk_pass *pass = &run->pass;
    if (pass->mode == GK_READ)
        return;
    pass->job.residual = run->target;
    pass->kind = GK_NONE;
    pass->mode = GK_READ;
}

/* Passes until one has collected at least k candidates within the room. Each stage has a surer limit than the one before:
   the last step's k-th magnitude, the rank of a sample, and the exact limit from counting, after which nothing can fail.
   The first pass adds and stores the sum, whatever becomes of its limit; what it cleared in vain is restored, and the
   passes after it read the sum where it now stands. */
static int32_t search(gk_topk *run, const float *hint, int64_t *report)
{
    gk_pass *pass = &run->pass;
    gk_stage stage = FROM_HINT;
    if (pass->numel > GK_SMALL && run->k > pass->numel / 4) { /* so many candidates that counting is cheaper */
        if (pass->mode != GK_READ) {
            pass->job.low = pass->job.clear = GK_MAGNITUDE;
            gk_run(pass);
            read_from_target(run);
        }
        stage = FROM_COUNTS;
    }
    for (;; stage++) {
        int32_t limit = gk_next_limits(run, &stage, hint);
        gk_run(pass);
        int64_t found = gk_found(pass), ties, equal;
        report[0]++;
        report[1] = found;
        report[2] = stage;
        if (!pass->full && found >= run->k) {
            limit = candidate_limit(run, found, &ties, &equal);
            emit(run, limit, ties, equal);
            return limit;
        }
        if (!pass->full && (stage == FROM_COUNTS || pass->job.low == 0)) {
            emit_all(run, limit, found);
            return limit;
        }
        gk_restore(pass);
        read_from_target(run);
    }
}

GK_EXPORT int64_t gk_topk_bytes(int64_t numel, int64_t k, int32_t threads)
{
    int64_t room = room_for(numel, k), sampled = gk_sample_size(numel, k) + GK_SLACK;
    return gk_pass_bytes(numel, room, threads, 0) + 2 * gk_size(most(room, sampled), 4) + 2 * gk_size(sampled, 4) +
           gk_size(GK_BUCKETS, 4);
}

/* residual + grad to out, k entries to index and value (ascending), the k-th magnitude to next_hint. grad NULL:
   select from residual and write nothing. report: passes, candidates, what the last limit came from. */
GK_EXPORT int32_t gk_topk_take(int32_t backend, const float *residual, const void *grad, int32_t kind, float *out,
                               int32_t stream, int64_t numel, int64_t k, const float *hint, float *next_hint,
                               int32_t *index, float *value, void *scratch, int64_t scratch_bytes, int32_t threads,
                               int64_t *report)
{
    const gk_isa *isa = gk_isa_of(backend);
    if (!isa || numel < 1 || numel > INT32_MAX || k < 1 || k > numel || threads < 1 || threads > GK_MAX_THREADS)
        return GK_ARGUMENT;
    gk_topk run = {.k = k, .target = out, .index_out = index, .value_out = value};
    gk_pass *pass = &run.pass;
    pass->isa = isa;
    pass->kind = grad ? kind : GK_NONE;
    pass->mode = !grad ? GK_READ : stream && out != residual ? GK_STREAM : GK_STORE;
    pass->numel = numel;
    pass->threads = threads;
    pass->stop_when_full = 1;
    pass->room = room_for(numel, k);
    pass->job = (gk_job){.residual = residual, .grad = grad, .out = out};
    gk_arena arena = {scratch, (char *)scratch + scratch_bytes};
    if (gk_lay_out(pass, &arena))
        return GK_SCRATCH;
    run.sampled = gk_sample_size(numel, k);
    run.tmp = gk_cut(&arena, most(pass->room, run.sampled + GK_SLACK), 4);
    run.more = gk_cut(&arena, most(pass->room, run.sampled + GK_SLACK), 4);
    run.sample = gk_cut(&arena, run.sampled + GK_SLACK, 4);
    run.sieved = gk_cut(&arena, run.sampled + GK_SLACK, 4);
    run.tables = gk_cut(&arena, GK_BUCKETS, 4);
    if (!run.tables)
        return GK_SCRATCH;
    report[0] = 0;
    *next_hint = gk_float(search(&run, hint, report));
    return GK_OK;
}

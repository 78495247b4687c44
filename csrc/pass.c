/* One sweep over a vector, chunk by chunk, on one thread or several. */
#include "gaussiank.h"

#include <string.h>

/* In a build with AddressSanitizer, a gap that must not be touched stands behind each cut: otherwise a step beyond one
   would land in the next and go unseen. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
enum { GAP = 64 };
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
enum { GAP = 0 };
#endif

int64_t gk_size(int64_t count, int64_t size) { return (count * size + 63) / 64 * 64 + GAP; }

void *gk_cut(gk_arena *arena, int64_t count, int64_t size)
{
    int64_t bytes = gk_size(count, size), used = count * size;
    if (bytes > arena->end - arena->at)
        return NULL;
    char *block = arena->at;
    arena->at += bytes;
    ASAN_UNPOISON_MEMORY_REGION(block, (size_t)used);
    ASAN_POISON_MEMORY_REGION(block + used, (size_t)(bytes - used));
    return block;
}

static int64_t local_room(int64_t numel) { return (numel < GK_CHUNK ? numel : GK_CHUNK) + GK_SLACK; }

int64_t gk_pass_bytes(int64_t numel, int64_t room, int32_t threads, int32_t statistics)
{
    int64_t chunks = (numel + GK_CHUNK - 1) / GK_CHUNK;
    return gk_size(chunks, sizeof(gk_part)) + (statistics ? gk_size(chunks, sizeof(gk_totals)) : 0) +
           2 * gk_size(room, 4) + 2 * gk_size(threads * local_room(numel), 4);
}

int gk_lay_out(gk_pass *pass, gk_arena *arena)
{
    pass->chunks = (pass->numel + GK_CHUNK - 1) / GK_CHUNK;
    pass->local_room = local_room(pass->numel);
    pass->parts = gk_cut(arena, pass->chunks, sizeof(gk_part));
    if (pass->totals)
        pass->totals = gk_cut(arena, pass->chunks, sizeof(gk_totals));
    pass->index = gk_cut(arena, pass->room, 4);
    pass->value = gk_cut(arena, pass->room, 4);
    pass->local_index = gk_cut(arena, pass->threads * pass->local_room, 4);
    pass->local_value = gk_cut(arena, pass->threads * pass->local_room, 4);
    return pass->local_value ? GK_OK : GK_SCRATCH;
}

/* The sweep leaves zeros where it found entries above `clear`; this undoes it. */
static void put_back(const gk_pass *pass, const int32_t *index, const float *value, int64_t count)
{
    if (pass->mode == GK_READ)
        return;
    for (int64_t i = 0; i < count; i++)
        if ((gk_bits(value[i]) & GK_MAGNITUDE) > pass->job.clear)
            pass->job.out[index[i]] = value[i];
}

void gk_restore(const gk_pass *pass)
{
    for (int64_t c = 0; c < pass->chunks; c++)
        if (pass->parts[c].stored)
            put_back(pass, pass->index + pass->parts[c].offset, pass->value + pass->parts[c].offset,
                     pass->parts[c].count);
}

/* Move what a chunk gave to the pool, or put it back when the pool is full. */
static void keep(gk_pass *pass, gk_part *part, const int32_t *index, const float *value)
{
    int64_t offset = atomic_fetch_add(&pass->used, part->count);
    part->stored = offset + part->count <= pass->room;
    part->offset = offset;
    if (part->stored) {
        memcpy(pass->index + offset, index, (size_t)part->count * 4);
        memcpy(pass->value + offset, value, (size_t)part->count * 4);
    } else {
        put_back(pass, index, value, part->count);
        atomic_store(&pass->full, 1);
    }
}

void gk_add_lanes(const gk_sums *sums, gk_totals *totals)
{
    gk_totals all = {0, 0, 0, sums->max_bits};
    for (int lane = 0; lane < 16; lane++) {
        all.sum += sums->sum[lane];
        all.square += sums->square[lane];
        all.absolute += sums->absolute[lane];
    }
    *totals = all;
}

/* What each thread runs: take the next chunk, sweep it, hand over what was found, until none is left. Chunks come in any
   order; a part says where its chunk's entries lie in the pool, so that whoever reads goes through the parts in order. */
static void work(void *data)
{
    gk_pass *pass = data;
    int32_t slot = atomic_fetch_add(&pass->slots, 1);
    if (slot >= pass->threads)
        return;
    int32_t *index = pass->local_index + slot * pass->local_room;
    float *value = pass->local_value + slot * pass->local_room;
    gk_job job = pass->job;
    gk_sums sums;
    for (;;) {
        int64_t c = atomic_fetch_add(&pass->next, 1);
        if (c >= pass->chunks)
            break;
        int64_t begin = c * GK_CHUNK;
        int64_t end = begin + GK_CHUNK < pass->numel ? begin + GK_CHUNK : pass->numel;
        if (pass->stop_when_full && atomic_load_explicit(&pass->full, memory_order_relaxed))
            job.low = job.clear = GK_MAGNITUDE; /* the sum is still due, the search has failed */
        if (pass->totals)
            memset(&sums, 0, sizeof sums);
        /* One thread writes to the pool itself, while any chunk has room there; several would have to know first how
           much the chunks before theirs hold. */
        int64_t used = atomic_load_explicit(&pass->used, memory_order_relaxed);
        int direct = pass->threads == 1 && used + GK_CHUNK + GK_SLACK <= pass->room;
        int64_t count = pass->isa->sweep[pass->kind][pass->mode](&job, begin, end, direct ? pass->index + used : index,
                                                                 direct ? pass->value + used : value,
                                                                 pass->totals ? &sums : NULL);
#if defined(__x86_64__)
        if (pass->mode == GK_STREAM)
            __builtin_ia32_sfence(); /* stores past the cache may otherwise overtake what is put back */
#endif
        if (pass->totals)
            gk_add_lanes(&sums, pass->totals + c);
        pass->parts[c].count = (int32_t)count;
        if (direct) {
            pass->parts[c].offset = atomic_fetch_add(&pass->used, count);
            pass->parts[c].stored = 1;
        } else {
            keep(pass, pass->parts + c, index, value);
        }
    }
}

void gk_run(gk_pass *pass)
{
    atomic_init(&pass->next, 0);
    atomic_init(&pass->used, 0);
    atomic_init(&pass->slots, 0);
    atomic_init(&pass->full, 0);
    gk_parallel(work, pass, pass->threads);
}

int64_t gk_found(const gk_pass *pass)
{
    int64_t found = 0;
    for (int64_t c = 0; c < pass->chunks; c++)
        found += pass->parts[c].count;
    return found;
}

/* The mean of P sparse vectors as a dense one, and their sum as a sparse one: tile by tile, in the order of the parts.

   All parts are added to a tile while it is in cache, so the dense vector goes to memory once. Every entry is added
   to 0.0 in the order of the parts, which gives each worker the same bits. */
#include "gaussiank.h"

#include <string.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { TILE = 32768 };

typedef struct {
    int64_t numel, parts, tiles;
    const int32_t *const *index;
    const float *const *value;
    const int64_t *kept;
    float *out; /* dense result, or NULL */
    int32_t *index_out;
    float *value_out;
    int64_t *offsets, *counts; /* of each tile's entries in the sparse result */
    float *tile_room; /* one tile, its marks and its cursors for each thread */
    uint64_t *mark_room;
    int64_t *cursor_room;
    int32_t stream, threads;
    _Atomic int64_t next, total;
    _Atomic int32_t slots;
} gk_scatter;

/* First position whose index is not below `index`. */
static int64_t position(const int32_t *indices, int64_t count, int64_t index)
{
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (indices[middle] < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Add the parts' entries in [begin, end) to the tile and mark them; cursors say where they begin, and move on.
   An index out of order would fall outside the tile: it is found before anything is written. Each entry belongs to
   one tile only, so when all tiles together found as many as there are, every entry was in order. */
static int64_t gather(gk_scatter *run, int64_t begin, int64_t end, int64_t *cursors, float *tile, uint64_t *marks)
{
    int64_t entries = 0;
    for (int64_t p = 0; p < run->parts; p++) {
        const int32_t *index = run->index[p];
        const float *value = run->value[p];
        int64_t i = cursors[p], kept = run->kept[p], last = begin - 1;
        for (; i < kept && index[i] < end; i++) {
            if (index[i] <= last)
                return -1;
            last = index[i];
            int64_t at = last - begin;
            tile[at] += value[i];
            marks[at / 64] |= (uint64_t)1 << (at % 64);
        }
        entries += i - cursors[p];
        cursors[p] = i;
    }
    return entries;
}

/* Divide what was touched; untouched entries are 0 / parts = 0. */
static void divide(float *tile, const uint64_t *marks, int64_t length, int64_t entries, float divisor)
{
    if (entries > length / 8) {
        for (int64_t i = 0; i < length; i++)
            tile[i] /= divisor;
        return;
    }
    for (int64_t word = 0; word < (length + 63) / 64; word++)
        for (uint64_t mask = marks[word]; mask; mask &= mask - 1)
            tile[word * 64 + __builtin_ctzll(mask)] /= divisor;
}

static void compact(gk_scatter *run, int64_t tile_number, int64_t before, const float *tile, const uint64_t *marks,
                    int64_t length)
{
    int64_t n = before;
    for (int64_t word = 0; word < (length + 63) / 64; word++)
        for (uint64_t mask = marks[word]; mask; mask &= mask - 1) {
            int64_t at = word * 64 + __builtin_ctzll(mask);
            run->index_out[n] = (int32_t)(tile_number * TILE + at);
            run->value_out[n++] = tile[at];
        }
    run->offsets[tile_number] = before;
    run->counts[tile_number] = n - before;
}

/* Past the cache: the dense vector is larger than it, and nothing of it needs to be read before it is written. */
static void copy_out(float *out, const float *tile, int64_t length, int32_t stream)
{
    int64_t done = 0;
#if defined(__x86_64__)
    if (stream)
        for (; done + 4 <= length; done += 4)
            _mm_stream_ps(out + done, _mm_load_ps(tile + done));
#else
    (void)stream;
#endif
    memcpy(out + done, tile + done, (size_t)(length - done) * sizeof *out);
}

/* Make the tile and its marks zero again, where they are not. */
static void wipe(float *tile, uint64_t *marks, int64_t length)
{
    for (int64_t word = 0; word < (length + 63) / 64; word++) {
        for (uint64_t mask = marks[word]; mask; mask &= mask - 1)
            tile[word * 64 + __builtin_ctzll(mask)] = 0.0f;
        marks[word] = 0;
    }
}

static void work(void *data)
{
    gk_scatter *run = data;
    int32_t slot = atomic_fetch_add(&run->slots, 1);
    if (slot >= run->threads)
        return;
    float *tile = run->tile_room + slot * TILE;
    uint64_t *marks = run->mark_room + slot * (TILE / 64);
    int64_t *cursors = run->cursor_room + slot * run->parts;
    memset(tile, 0, TILE * sizeof *tile);
    memset(marks, 0, TILE / 8);
    int64_t total = 0, expected = -1;
    for (;;) {
        int64_t t = atomic_fetch_add(&run->next, 1);
        if (t >= run->tiles)
            break;
        int64_t begin = t * TILE, end = begin + TILE < run->numel ? begin + TILE : run->numel, before = 0;
        for (int64_t p = 0; p < run->parts; p++) {
            if (t != expected)
                cursors[p] = position(run->index[p], run->kept[p], begin);
            before += cursors[p];
        }
        expected = t + 1;
        int64_t entries = gather(run, begin, end, cursors, tile, marks);
        if (entries < 0)
            break;
        total += entries;
        if (run->out) {
            divide(tile, marks, end - begin, entries, (float)run->parts);
            copy_out(run->out + begin, tile, end - begin, run->stream);
        } else {
            compact(run, t, before, tile, marks, end - begin);
        }
        wipe(tile, marks, end - begin);
    }
#if defined(__x86_64__)
    _mm_sfence();
#endif
    atomic_fetch_add(&run->total, total);
}

static int64_t bytes(int64_t numel, int64_t parts, int32_t threads)
{
    int64_t tiles = (numel + TILE - 1) / TILE;
    return threads * (TILE * 4 + TILE / 8 + parts * 8) + 2 * tiles * 8 + 5 * 64;
}

static int32_t start(gk_scatter *run, void *scratch, int64_t scratch_bytes)
{
    gk_arena arena = {scratch, (char *)scratch + scratch_bytes};
    run->tiles = (run->numel + TILE - 1) / TILE;
    run->tile_room = gk_cut(&arena, run->threads * TILE, 4);
    run->mark_room = gk_cut(&arena, run->threads * (TILE / 64), 8);
    run->cursor_room = gk_cut(&arena, run->threads * run->parts, 8);
    run->offsets = gk_cut(&arena, run->tiles, 8);
    run->counts = gk_cut(&arena, run->tiles, 8);
    if (!run->counts)
        return GK_SCRATCH;
    gk_parallel(work, run, run->threads);
    int64_t expected = 0;
    for (int64_t p = 0; p < run->parts; p++)
        expected += run->kept[p];
    return run->total == expected ? GK_OK : GK_ORDER;
}

GK_EXPORT int64_t gk_scatter_bytes(int64_t numel, int64_t parts, int32_t threads)
{
    return bytes(numel, parts, threads);
}

/* The mean of the parts to out; GK_ORDER when the indices of one do not ascend within [0, numel). */
GK_EXPORT int32_t gk_scatter_mean(const int32_t *const *index, const float *const *value, const int64_t *kept,
                                  int64_t parts, float *out, int64_t numel, int32_t stream, void *scratch,
                                  int64_t scratch_bytes, int32_t threads)
{
    if (numel < 1 || numel > INT32_MAX || parts < 1 || threads < 1 || threads > GK_MAX_THREADS)
        return GK_ARGUMENT;
    gk_scatter run = {.numel = numel, .parts = parts, .index = index, .value = value, .kept = kept, .out = out,
                      .stream = stream && (uintptr_t)out % 16 == 0, .threads = threads};
    return start(&run, scratch, scratch_bytes);
}

/* The sum of the parts, sparse: index and value have room for all entries of all parts; count gets how many are used. */
GK_EXPORT int32_t gk_union(const int32_t *const *index, const float *const *value, const int64_t *kept, int64_t parts,
                           int64_t numel, int32_t *index_out, float *value_out, int64_t *count, void *scratch,
                           int64_t scratch_bytes, int32_t threads)
{
    if (numel < 1 || numel > INT32_MAX || parts < 1 || threads < 1 || threads > GK_MAX_THREADS)
        return GK_ARGUMENT;
    gk_scatter run = {.numel = numel, .parts = parts, .index = index, .value = value, .kept = kept,
                      .index_out = index_out, .value_out = value_out, .threads = threads};
    int32_t status = start(&run, scratch, scratch_bytes);
    if (status)
        return status;
    *count = 0;
    for (int64_t t = 0; t < run.tiles; t++) {
        memmove(index_out + *count, index_out + run.offsets[t], (size_t)run.counts[t] * 4);
        memmove(value_out + *count, value_out + run.offsets[t], (size_t)run.counts[t] * 4);
        *count += run.counts[t];
    }
    return GK_OK;
}

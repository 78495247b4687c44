/* The mean of P sparse vectors as a dense one, and their sum as a sparse one: tile by tile, in the order of the parts.

   All parts are added to a tile while it is in cache, so the dense vector goes to memory once. Every entry is added
   to 0.0 in the order of the parts, which gives each worker the same bits. */
#include "gaussiank.h"

#include <string.h>

enum { TILE = 16384, IN_PLACE_BELOW = 32 }; /* with more entries the sums are better kept in a tile of their own */

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
    const gk_isa *isa;
    int32_t stream, in_place, threads;
    _Atomic int64_t next, total;
    _Atomic int32_t slots, overflown;
} gk_scatter;

/* A power of two that entries are multiplied by while they are added, with the same bits as a division of the sum, unless
   one of them is odd: so small that the product is denormal, so large that a sum may overflow, zero, or no number. */
typedef struct {
    float factor;
    uint32_t low, span; /* keys from low to low + span are not odd */
    uint32_t odd;
} gk_scale;

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

/* Add the parts' entries in [begin, end) to the tile; cursors say where they begin, and move on. `largest`, if wanted, is raised
   to the largest magnitude of all sums on the way: what is not finite once never is again. An index out of order
   would fall outside the tile: it is found before anything is written. Each entry belongs to one tile only, so when
   all tiles together found as many as there are, every entry was in order. */
static inline __attribute__((always_inline)) int64_t gather(gk_scatter *run, int64_t begin, int64_t end,
                                                            int64_t *cursors, float *tile, uint64_t *marks,
                                                            gk_scale *scale, uint32_t *largest)
{
    int64_t entries = 0;
    const float factor = scale ? scale->factor : 1.0f; /* copies stay in registers: no store can change them */
    const uint32_t low = scale ? scale->low : 0, span = scale ? scale->span : 0;
    uint32_t odd = 0, most = 0;
    for (int64_t p = 0; p < run->parts; p++) {
        const int32_t *index = run->index[p];
        const float *value = run->value[p];
        int64_t i = cursors[p], kept = run->kept[p], last = begin - 1;
        for (; i < kept && index[i] < end; i++) {
            if (index[i] <= last)
                return -1;
            last = index[i];
            int64_t at = last - begin;
            float sum = tile[at] + value[i] * factor;
            tile[at] = sum;
            if (largest) {
                uint32_t magnitude = (uint32_t)gk_bits(sum) & GK_MAGNITUDE;
                most = magnitude > most ? magnitude : most;
            }
            if (scale)
                odd |= (uint32_t)(gk_bits(value[i]) & GK_MAGNITUDE) - low >= span;
            if (marks)
                marks[at / 64] |= (uint64_t)1 << (at % 64);
        }
        entries += i - cursors[p];
        cursors[p] = i;
    }
    if (scale)
        scale->odd = odd;
    if (largest && most > *largest)
        *largest = most;
    return entries;
}

/* Divide what was touched: the rest is 0 / parts = 0. */
static void divide(float *tile, uint64_t *marks, int64_t length, int64_t entries, const gk_isa *isa, float divisor)
{
    if (entries > length / 16)
        isa->divide(tile, length, divisor);
    for (int64_t word = 0; word < (length + 63) / 64; word++) {
        if (entries <= length / 16)
            for (uint64_t mask = marks[word]; mask; mask &= mask - 1)
                tile[word * 64 + __builtin_ctzll(mask)] /= divisor;
        marks[word] = 0;
    }
}

/* Sum up in a tile of zeros, send the mean to the dense result, and leave zeros again. Where the divisor is a power of
   two, a multiplication by its inverse gives the same bits, at no cost while the tile is sent. */
static int64_t mean_tile(gk_scatter *run, int64_t begin, int64_t end, int64_t *cursors, float *tile, uint64_t *marks,
                         uint32_t *largest)
{
    int64_t length = end - begin, power_of_two = (run->parts & (run->parts - 1)) == 0;
    int64_t entries = gather(run, begin, end, cursors, tile, power_of_two ? NULL : marks, NULL, largest);
    if (!power_of_two)
        divide(tile, marks, length, entries, run->isa, (float)run->parts);
    run->isa->drain(tile, length, power_of_two ? 1 / (float)run->parts : 1.0f, run->out + begin, run->stream);
    return entries;
}

/* The same for a dense result that stays in the cache: sum up in it directly. */
static int64_t mean_in_place(gk_scatter *run, int64_t begin, int64_t end, int64_t *cursors, float *tile, uint64_t *marks,
                             uint32_t *largest)
{
    int32_t power = __builtin_ctzll((unsigned long long)run->parts);
    gk_scale scale = {.factor = 1 / (float)run->parts, .low = (uint32_t)(1 + power) << 23,
                      .span = (uint32_t)(254 - 2 * power) << 23};
    int64_t *before = cursors + run->threads * run->parts;
    memcpy(before, cursors, (size_t)run->parts * sizeof *before);
    memset(run->out + begin, 0, (size_t)(end - begin) * sizeof *run->out);
    int64_t entries = gather(run, begin, end, cursors, run->out + begin, NULL, &scale, NULL);
    if (entries < 0 || !scale.odd) /* what is not odd adds up to something finite */
        return entries;
    memcpy(cursors, before, (size_t)run->parts * sizeof *before);
    return mean_tile(run, begin, end, cursors, tile, marks, largest);
}

/* Sum up in a tile of zeros, move what was touched to the sparse result, and leave zeros again. */
static int64_t union_tile(gk_scatter *run, int64_t number, int64_t begin, int64_t end, int64_t *cursors, float *tile,
                          uint64_t *marks)
{
    int64_t n = 0;
    for (int64_t p = 0; p < run->parts; p++)
        n += cursors[p];
    run->offsets[number] = n;
    int64_t entries = gather(run, begin, end, cursors, tile, marks, NULL, NULL);
    if (entries < 0)
        return -1;
    for (int64_t word = 0; word < (end - begin + 63) / 64; word++) {
        for (uint64_t mask = marks[word]; mask; mask &= mask - 1) {
            int64_t at = word * 64 + __builtin_ctzll(mask);
            run->index_out[n] = (int32_t)(begin + at);
            run->value_out[n++] = tile[at];
            tile[at] = 0.0f;
        }
        marks[word] = 0;
    }
    run->counts[number] = n - run->offsets[number];
    return entries;
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
    uint32_t largest = 0;
    for (;;) {
        int64_t t = atomic_fetch_add(&run->next, 1);
        if (t >= run->tiles)
            break;
        int64_t begin = t * TILE, end = begin + TILE < run->numel ? begin + TILE : run->numel;
        if (t != expected)
            for (int64_t p = 0; p < run->parts; p++)
                cursors[p] = position(run->index[p], run->kept[p], begin);
        expected = t + 1;
        int64_t entries = !run->out      ? union_tile(run, t, begin, end, cursors, tile, marks)
                          : run->in_place ? mean_in_place(run, begin, end, cursors, tile, marks, &largest)
                                          : mean_tile(run, begin, end, cursors, tile, marks, &largest);
        if (entries < 0)
            break;
        total += entries;
    }
#if defined(__x86_64__)
    if (run->stream)
        __builtin_ia32_sfence();
#endif
    atomic_fetch_add(&run->total, total);
    if (largest >= GK_INFINITE)
        atomic_store(&run->overflown, 1);
}

GK_EXPORT int64_t gk_scatter_bytes(int64_t numel, int64_t parts, int32_t threads)
{
    int64_t tiles = (numel + TILE - 1) / TILE;
    return gk_size(threads * TILE, 4) + gk_size(threads * (TILE / 64), 8) + 2 * gk_size(threads * parts, 8) +
           2 * gk_size(tiles, 8);
}

static int32_t start(gk_scatter *run, void *scratch, int64_t scratch_bytes)
{
    gk_arena arena = {scratch, (char *)scratch + scratch_bytes};
    run->tiles = (run->numel + TILE - 1) / TILE;
    run->tile_room = gk_cut(&arena, run->threads * TILE, 4);
    run->mark_room = gk_cut(&arena, run->threads * (TILE / 64), 8);
    run->cursor_room = gk_cut(&arena, 2 * run->threads * run->parts, 8); /* and where they stood before a tile */
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

/* The mean of the parts to out, and whether all of it is finite; GK_ORDER when the indices of one do not ascend within
   [0, numel). */
GK_EXPORT int32_t gk_scatter_mean(int32_t backend, const int32_t *const *index, const float *const *value,
                                  const int64_t *kept, int64_t parts, float *out, uint8_t *finite, int64_t numel,
                                  int32_t stream, void *scratch, int64_t scratch_bytes, int32_t threads)
{
    const gk_isa *isa = gk_isa_of(backend);
    if (!isa || numel < 1 || numel > INT32_MAX || parts < 1 || threads < 1 || threads > GK_MAX_THREADS)
        return GK_ARGUMENT;
    gk_scatter run = {.numel = numel, .parts = parts, .index = index, .value = value, .kept = kept, .out = out,
                      .isa = isa, .stream = stream && (uintptr_t)out % 64 == 0, .threads = threads};
    int64_t entries = 0;
    for (int64_t p = 0; p < parts; p++)
        entries += kept[p];
    run.in_place = !run.stream && (parts & (parts - 1)) == 0 && parts <= 64 && entries < numel / IN_PLACE_BELOW;
    int32_t status = start(&run, scratch, scratch_bytes);
    *finite = !run.overflown;
    return status;
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
        if (run.counts[t] == 0)
            continue; /* without any entry, the results are null pointers */
        memmove(index_out + *count, index_out + run.offsets[t], (size_t)run.counts[t] * 4);
        memmove(value_out + *count, value_out + run.offsets[t], (size_t)run.counts[t] * 4);
        *count += run.counts[t];
    }
    return GK_OK;
}

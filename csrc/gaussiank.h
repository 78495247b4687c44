/* What every file of the kernels shares: sizes, the keys that order floats, the table of inner loops, threads. */
#ifndef GAUSSIANK_H
#define GAUSSIANK_H

#include <stddef.h>
#include <stdint.h>
#include <stdatomic.h>

#define GK_ABI 8 /* raise it with every change of an exported function; library.py compares */

#define GK_EXPORT __attribute__((visibility("default")))

/* Sizes in elements. A chunk is what a thread takes at a time; a tile is what stays in L1 between the loop that adds
   and the loop that picks; a group is what one hit flag covers. */
enum { GK_CHUNK = 65536, GK_TILE = 2048, GK_GROUP = 64, GK_LINE = 16, GK_SLACK = 16, GK_MAX_THREADS = 256 };

/* Dtype of the gradient; NONE: there is none, the vector is read as it is. */
enum { GK_NONE = 0, GK_F32 = 1, GK_BF16 = 2, GK_F16 = 3, GK_KINDS = 4 };

/* What happens to the sum. STREAM writes past the cache: for a separate, 64-byte aligned output. */
enum { GK_READ = 0, GK_STORE = 1, GK_STREAM = 2 };

enum { GK_OK = 0, GK_SCRATCH = 1, GK_ARGUMENT = 2, GK_ORDER = 3 };

/* Magnitudes are compared as integers: the bits of |x| ascend with |x|, and denormals need no care. Infinities and NaN
   share one key, above every finite one. */
#define GK_MAGNITUDE 0x7fffffff
#define GK_INFINITE 0x7f800000

static inline int32_t gk_bits(float value)
{
    union { float f; int32_t i; } both = {.f = value};
    return both.i;
}

static inline float gk_float(int32_t bits)
{
    union { int32_t i; float f; } both = {.i = bits};
    return both.f;
}

static inline int32_t gk_key(int32_t bits)
{
    int32_t magnitude = bits & GK_MAGNITUDE;
    return magnitude < GK_INFINITE ? magnitude : GK_INFINITE;
}

/* Entry i of a gradient as float32; exact, denormals included. */
static inline __attribute__((always_inline)) float gk_convert(const void *grad, int64_t i, int kind)
{
    if (kind == GK_F32)
        return ((const float *)grad)[i];
    if (kind == GK_BF16)
        return gk_float((int32_t)((uint32_t)((const uint16_t *)grad)[i] << 16));
    /* float16: a multiplication moves the exponent and gets denormals right; infinity and NaN by hand. */
    uint32_t half = ((const uint16_t *)grad)[i];
    uint32_t sign = (half & 0x8000u) << 16, rest = (half & 0x7fffu) << 13;
    uint32_t wide = (uint32_t)gk_bits(gk_float((int32_t)rest) * 0x1p112f);
    wide = rest >= 0x7c00u << 13 ? rest | GK_INFINITE : wide;
    return gk_float((int32_t)(sign | wide));
}

/* Sums over a chunk, in 16 lanes: element i goes to lane i % 16 on every processor, so that all get the same bits. */
typedef struct {
    double sum[16], square[16], absolute[16];
    int32_t max_bits; /* largest |x| as bits; a NaN is above infinity */
} gk_sums;

/* What a sweep reads, writes and looks for. Entries with |x| bits > low are collected, of these the ones with bits >
   clear become zero in out. */
typedef struct {
    const float *residual;
    const void *grad;
    float *out;
    int32_t low, clear;
} gk_job;

/* Candidates, and which of them to take: keys > floor, at most k. Those with keys > clear are zero in out by now. */
typedef struct {
    const int32_t *index;
    const float *value;
    int32_t floor, clear;
    int64_t k;
    int32_t *index_out;
    float *value_out;
} gk_choice;

/* Collect the keys in (low, high] and count those above; from entry i on, where whole lines end. */
static inline __attribute__((always_inline)) int64_t gk_band_tail(const int32_t *bits, int64_t i, int64_t count,
                                                                  int32_t low, int32_t high, int32_t *out,
                                                                  int64_t found, int64_t over, int64_t *above)
{
    for (; i < count; i++) {
        int32_t key = bits[i] & GK_MAGNITUDE;
        out[found] = key;
        found += key > low && key <= high;
        over += key > high;
    }
    *above = over;
    return found;
}

/* Take candidates [at, end), and list those whose place holds the wrong thing: taken and not cleared, or cleared and
   not taken. Returns how many are taken by now. */
static inline __attribute__((always_inline)) int64_t gk_choose_tail(const gk_choice *choice, int64_t at, int64_t end,
                                                                    int64_t taken, int32_t *wrong, int64_t *wrongs)
{
    int64_t bad = *wrongs;
    for (; at < end; at++) {
        int32_t key = gk_bits(choice->value[at]) & GK_MAGNITUDE;
        int take = key > choice->floor && taken < choice->k;
        if (taken < choice->k) {
            choice->index_out[taken] = choice->index[at];
            choice->value_out[taken] = choice->value[at];
        }
        taken += take;
        wrong[bad] = (int32_t)at;
        bad += take != (key > choice->clear);
    }
    *wrongs = bad;
    return taken;
}

/* Inner loops for one instruction set. Each works on [begin, end), which starts at a multiple of 64. */
typedef struct {
    const char *name;
    int64_t (*sweep[GK_KINDS][3])(const gk_job *, int64_t begin, int64_t end, int32_t *index, float *value,
                                  gk_sums *sums);
    void (*measure)(const float *vector, int64_t begin, int64_t end, gk_sums *sums);
    int64_t (*band)(const int32_t *bits, int64_t count, int32_t low, int32_t high, int32_t *out, int64_t *above);
    int64_t (*choose)(const gk_choice *choice, int64_t begin, int64_t end, int64_t taken, int32_t *wrong,
                      int64_t *wrongs);
    int64_t (*count_above)(const float *vector, int64_t count, float threshold);
    /* out = tile * factor, tile = 0; past the cache, if out is aligned to 64 bytes */
    void (*drain)(float *tile, int64_t count, float factor, float *out, int32_t stream);
    void (*divide)(float *vector, int64_t count, float divisor);
} gk_isa;

extern const gk_isa gk_portable;
#if defined(__x86_64__)
extern const gk_isa gk_avx2, gk_avx512;
#endif
const gk_isa *gk_isa_of(int32_t number);

/* The same, added up. */
typedef struct {
    double sum, square, absolute;
    int32_t max_bits;
} gk_totals;

/* Where the entries of one chunk lie in the pool; stored is 0 when the pool had no room, then out holds them all. */
typedef struct {
    int64_t offset;
    int32_t count, stored;
} gk_part;

/* One sweep over all chunks. Chunks are handed out dynamically; what they found is kept by chunk, so nothing depends
   on which thread was faster. */
typedef struct {
    gk_job job;
    const gk_isa *isa;
    int32_t kind, mode, threads;
    int64_t numel, chunks;
    gk_part *parts;     /* [chunks] */
    gk_totals *totals;  /* [chunks], or NULL: no statistics wanted */
    int32_t *index;     /* pool, [room] */
    float *value;
    int64_t room;
    int32_t *local_index; /* [threads, local_room] */
    float *local_value;
    int64_t local_room;
    int32_t stop_when_full;
    _Atomic int64_t next, used;
    _Atomic int32_t slots, full;
} gk_pass;

/* Memory of a pass, cut from one block that the caller lends. */
typedef struct {
    char *at, *end;
} gk_arena;
int64_t gk_size(int64_t count, int64_t size);               /* bytes that a cut takes */
void *gk_cut(gk_arena *arena, int64_t count, int64_t size); /* NULL when the block is too small */
int gk_lay_out(gk_pass *pass, gk_arena *arena);
int64_t gk_pass_bytes(int64_t numel, int64_t room, int32_t threads, int32_t statistics);

void gk_add_lanes(const gk_sums *sums, gk_totals *totals);
void gk_summarize(const gk_totals *totals, int64_t chunks, int64_t numel, double *moments);
void gk_run(gk_pass *pass);
int64_t gk_found(const gk_pass *pass);
/* Write the entries that the pass has cleared back to out. */
void gk_restore(const gk_pass *pass);

/* Run body(data) on `threads` threads of the process's OpenMP runtime; on this one when there is none. */
void gk_parallel(void (*body)(void *), void *data, int32_t threads);

/* The k-th largest key of `count` value bits; tmp holds count entries. Tells how many keys are above and equal. */
int32_t gk_kth(const int32_t *bits, int64_t count, int64_t k, int32_t *tmp, int64_t *above, int64_t *equal);

#endif

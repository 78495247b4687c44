/* What the exact Top_k of topk.c and its limits in limit.c share. */
#ifndef GAUSSIANK_TOPK_H
#define GAUSSIANK_TOPK_H

#include "gaussiank.h"

enum { GK_SMALL = 4096 }; /* so few entries are all candidates */

typedef enum { FROM_HINT, FROM_SAMPLE, FROM_COUNTS } gk_stage;

typedef struct {
    gk_pass pass;
    int64_t k;
    float *target; /* where chosen entries become zero; NULL for selection alone */
    int32_t *index_out;
    float *value_out;
    int32_t *tmp, *more, *sample, *sieved; /* tmp, more: [work] */
    int64_t sampled;
    int32_t *tables; /* [GK_BUCKETS], for counting all keys */
    _Atomic int64_t next;
    int32_t prefix, shift, last_shift, mask;
} gk_topk;

enum { GK_BUCKETS = 2048 };

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t root(int64_t of) { return (int64_t)__builtin_sqrt((double)of) + 1; }

/* Entries that limits from a sample look at. */
int64_t gk_sample_size(int64_t numel, int64_t k);

/* Set the pass's low and clear limits for this stage, or for a later one, which stage then tells. Returns the k-th
   largest key where it is known already, else 0. */
int32_t gk_next_limits(gk_topk *run, gk_stage *stage, const float *hint);

#endif

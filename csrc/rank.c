/* Order statistics of magnitudes: the k-th largest key of a short list, and of a whole vector. */
#include "gaussiank.h"

#include <string.h>

enum { BITS = 10, PLACES = 1 << BITS, TABLES = 4 };

static int32_t width(int32_t range)
{
    return range ? 32 - __builtin_clz((unsigned)range) : 0;
}

/* Narrow [low, high] to the bucket with the k-th largest key, until one key is left. Four tables, because equal keys
   in a row would wait for each other's increment. */
int32_t gk_kth(const int32_t *bits, int64_t count, int64_t k, int32_t *tmp, int64_t *above)
{
    int32_t low = GK_MAGNITUDE, high = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t key = gk_key(bits[i]);
        tmp[i] = key;
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    *above = 0;
    for (;;) {
        int32_t shift = width(high - low) > BITS ? width(high - low) - BITS : 0;
        int32_t tables[TABLES][PLACES];
        memset(tables, 0, sizeof tables);
        int64_t i = 0;
        for (; i + TABLES <= count; i += TABLES)
            for (int t = 0; t < TABLES; t++)
                tables[t][(tmp[i + t] - low) >> shift]++;
        for (; i < count; i++)
            tables[0][(tmp[i] - low) >> shift]++;
        int32_t bucket = (high - low) >> shift;
        int64_t here;
        for (;; bucket--) {
            here = (int64_t)tables[0][bucket] + tables[1][bucket] + tables[2][bucket] + tables[3][bucket];
            if (here >= k)
                break;
            k -= here;
            *above += here;
        }
        low += (int32_t)((uint32_t)bucket << shift);
        if (shift == 0)
            return low;
        int32_t top = low + (int32_t)((1u << shift) - 1);
        high = top < high ? top : high;
        if (here == count)
            continue;
        int64_t left = 0;
        for (i = 0; i < count; i++) {
            int32_t key = tmp[i];
            tmp[left] = key;
            left += key >= low && key <= high;
        }
        count = left;
    }
}

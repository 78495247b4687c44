/* The k-th largest key of a list. */
#include "gaussiank.h"

#include <string.h>

enum { FEW = 48, MANY = 8192, TABLES = 4, MOST_BITS = 10 };

static int32_t width(int32_t range) { return range ? 32 - __builtin_clz((unsigned)range) : 0; }

static void sort_down(int32_t *keys, int64_t count)
{
    for (int64_t i = 1; i < count; i++) {
        int32_t key = keys[i];
        int64_t at = i;
        for (; at > 0 && keys[at - 1] < key; at--)
            keys[at] = keys[at - 1];
        keys[at] = key;
    }
}

/* Narrow [low, high] to the bucket with the k-th largest key until few keys, or one value, are left. Four tables,
   because equal keys in a row would wait for each other's increment. */
static int64_t narrow(int32_t *keys, int64_t count, int32_t *low, int32_t *high, int64_t *k, int64_t *above)
{
    int32_t bits = count < MANY ? MOST_BITS - 2 : MOST_BITS;
    int32_t shift = width(*high - *low) > bits ? width(*high - *low) - bits : 0;
    int32_t bucket = (*high - *low) >> shift;
    int32_t tables[TABLES][1 << MOST_BITS];
    for (int t = 0; t < TABLES; t++)
        memset(tables[t], 0, (size_t)(bucket + 1) * sizeof tables[t][0]);
    int64_t i = 0;
    for (; i + TABLES <= count; i += TABLES)
        for (int t = 0; t < TABLES; t++)
            tables[t][(keys[i + t] - *low) >> shift]++;
    for (; i < count; i++)
        tables[0][(keys[i] - *low) >> shift]++;
    int64_t here;
    for (;; bucket--) {
        here = (int64_t)tables[0][bucket] + tables[1][bucket] + tables[2][bucket] + tables[3][bucket];
        if (here >= *k)
            break;
        *k -= here;
        *above += here;
    }
    int32_t from = *low + (int32_t)((uint32_t)bucket << shift), to = from + (int32_t)((1u << shift) - 1);
    *low = from;
    *high = to < *high ? to : *high;
    if (here < count) {
        int64_t left = 0;
        for (i = 0; i < count; i++) {
            int32_t key = keys[i];
            keys[left] = key;
            left += key >= *low && key <= *high;
        }
    }
    return here;
}

int32_t gk_kth(const int32_t *bits, int64_t count, int64_t k, int32_t *tmp, int64_t *above, int64_t *equal)
{
    int32_t low = GK_MAGNITUDE, high = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t key = gk_key(bits[i]);
        tmp[i] = key;
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    *above = 0;
    while (count > FEW && low < high)
        count = narrow(tmp, count, &low, &high, &k, above);
    if (low == high) {
        *equal = count;
        return low;
    }
    sort_down(tmp, count);
    int32_t limit = tmp[k - 1];
    int64_t first = k - 1, last = k;
    while (first > 0 && tmp[first - 1] == limit)
        first--;
    while (last < count && tmp[last] == limit)
        last++;
    *above += first;
    *equal = last - first;
    return limit;
}

/* Rice codes in blocks of 64 numbers, as indices and values use them: the parameter, and the stream of low bits. */
#ifndef GAUSSIANK_RICE_H
#define GAUSSIANK_RICE_H

#include "codec.h"

enum { BLOCK = 64 };

static inline int in_block(int64_t count, int64_t start)
{
    return (int)(count - start < BLOCK ? count - start : BLOCK);
}

/* Choose the parameter of a block of n numbers, and tell the sum of its quotients. The mean's logarithm bounds the size
 * for every input; one and two less are better where few numbers are much larger than the rest. Those past n are zero. */
static inline unsigned choose(const uint32_t *numbers, int n, uint32_t *quotients)
{
    uint32_t sum = 0, sum1 = 0, sum2 = 0, sum0 = 0;
    for (int i = 0; i < BLOCK; i++)
        sum += numbers[i];
    uint32_t mean = sum / (uint32_t)n;
    unsigned top = mean ? 31 - (unsigned)__builtin_clz(mean) : 0;
    unsigned less = top > 0 ? top - 1 : 0, least = top > 1 ? top - 2 : 0;
    for (int i = 0; i < BLOCK; i++) {
        sum0 += numbers[i] >> top;
        sum1 += numbers[i] >> less;
        sum2 += numbers[i] >> least;
    }
    unsigned best = top;
    *quotients = sum0;
    if (sum1 + less * (unsigned)n < *quotients + best * (unsigned)n) {
        best = less;
        *quotients = sum1;
    }
    if (sum2 + least * (unsigned)n < *quotients + best * (unsigned)n) {
        best = least;
        *quotients = sum2;
    }
    return best;
}

/* A stream of bits under way; `word` holds the `fill` bits, fewer than 8, that have not become a byte. */
struct low {
    uint8_t *to;
    uint64_t word;
    unsigned fill;
};

/* Append the lowest `width` bits of each number; up to 8 bytes past the stream are scribbled on. */
static inline void write_low(struct low *low, const uint32_t *numbers, int n, unsigned width)
{
    uint32_t mask = (1u << width) - 1;
    uint8_t *to = low->to;
    uint64_t word = low->word;
    unsigned fill = low->fill;
    for (int i = 0; width && i < n; i++) {
        word |= (uint64_t)(numbers[i] & mask) << fill;
        fill += width;
        store64(to, word);
        to += fill >> 3;
        word >>= fill & ~7u;
        fill &= 7;
    }
    *low = (struct low){to, word, fill};
}

#endif

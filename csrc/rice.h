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

static inline void append(struct low *low, uint64_t bits, unsigned width)
{
    low->word |= bits << low->fill;
    low->fill += width;
    store64(low->to, low->word);
    low->to += low->fill >> 3;
    low->word >>= low->fill & ~7u;
    low->fill &= 7;
}

/* Append the lowest `width` bits of each number; up to 8 bytes past the stream are scribbled on. */
static inline void write_low(struct low *stream, const uint32_t *numbers, int n, unsigned width)
{
    struct low low = *stream;
    uint64_t mask = (1u << width) - 1;
    int i = 0;
    for (; width <= 28 && i + 1 < n; i += 2) /* two at a time fit a word */
        append(&low, (numbers[i] & mask) | (numbers[i + 1] & mask) << width, 2 * width);
    for (; i < n; i++)
        append(&low, numbers[i] & mask, width);
    *stream = low;
}

#endif

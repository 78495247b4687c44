/* Rice or exponential Golomb codes of index gaps, whichever is shorter for a block of 64. Layout: docs/wire-format.md.
 *
 * Two streams run towards each other: low bits from the head of the section on, zeros and ones from its end back. So
 * both begin at known places, though neither has a known length, and both are written in one pass.
 */
#include "rice.h"

enum { HEAD_BITS = 6, GAMMA = 32, MOST = 31 }; /* of a block: 5 bits of parameter, then the kind; width of low bits */

/* ------------------------------------------------------------------ zeros and ones, from the end back */

struct back {
    const uint8_t *bytes;
    int64_t size;
    int64_t base;  /* bit that `word` begins at */
    uint64_t word; /* ones not yet read */
};

/* Load the 8 bytes before `end`, the last one lowest. */
static inline uint64_t word_back(const uint8_t *bytes, int64_t end)
{
    uint64_t word = 0;
    if (end >= 8)
        return __builtin_bswap64(load64(bytes + end - 8));
    for (int64_t i = 0; i < end; i++)
        word |= (uint64_t)bytes[end - 1 - i] << (8 * i);
    return word;
}

/* Return the position of the next one, or -1 at the end. */
static inline int64_t back_next(struct back *back)
{
    while (__builtin_expect(back->word == 0, 0)) {
        back->base += 64;
        if (back->base >= 8 * back->size)
            return -1;
        back->word = word_back(back->bytes, back->size - (back->base >> 3));
    }
    int64_t position = back->base + (unsigned)__builtin_ctzll(back->word);
    back->word &= back->word - 1;
    return position;
}

struct back_writer {
    uint8_t *to; /* where `word` ends */
    uint64_t word;
    uint32_t used; /* bits of it, 64 at most */
};

/* Write, for each number, so many zeros and a one. */
static inline void write_back(struct back_writer *back, const uint32_t *zeros, int n)
{
    uint8_t *to = back->to;
    uint64_t word = back->word;
    uint32_t used = back->used;
    for (int i = 0; i < n; i++) {
        used += zeros[i];
        while (__builtin_expect(used >= 64, 0)) {
            store64(to -= 8, __builtin_bswap64(word));
            word = 0;
            used -= 64;
        }
        word |= 1ull << used++;
    }
    *back = (struct back_writer){to, word, used};
}

/* ------------------------------------------------------------------ the code of a block */

/* Logarithm of x, 1 to 2**31 - 1, rounded down, and 127: the exponent of a float, so that loops become vector code. The
 * bit below the highest is cleared, so that nothing is rounded up. */
static inline uint32_t exponent(uint32_t x) { return (uint32_t)gk_bits((float)(int32_t)(x & ~(x >> 1))) >> 23; }

/* Fill in the width of gap + 2**r without its highest bit; returns their sum. Half of it fits a signed number. */
static inline uint32_t widths_of(const uint32_t *gaps, unsigned r, uint32_t *widths)
{
    uint32_t sum = 0, one = 1u << r, half = r > 0;
    for (int i = 0; i < BLOCK; i++) {
        widths[i] = exponent((gaps[i] + one) >> half) - (127 - half);
        sum += widths[i];
    }
    return sum;
}

/* Bits of a block of n gaps with parameter r, without the ones; those past n are zero and take r each. */
static inline uint32_t gamma_bits(const uint32_t *gaps, int n, unsigned r, uint32_t *widths)
{
    uint32_t past = (uint32_t)(BLOCK - n) * r;
    return 2 * (widths_of(gaps, r, widths) - past) - (uint32_t)n * r;
}

/* Choose kind and parameter, and tell the bits of a block without its ones. The mean logarithm is near the best parameter
 * of the second kind, which is tried only where that mean says that it may be shorter; its widths are left in `widths`. */
static inline unsigned choose_code(const uint32_t *gaps, int n, uint32_t *bits, uint32_t (*widths)[BLOCK], int *kept)
{
    uint32_t quotients, other;
    unsigned r = choose(gaps, n, &quotients);
    uint32_t logs = widths_of(gaps, 0, widths[0]);
    *bits = quotients + (uint32_t)n * r;
    if (*bits <= logs + (uint32_t)n)
        return r;
    unsigned best = logs / (uint32_t)n;
    uint32_t least = gamma_bits(gaps, n, best, widths[0]);
    if (least > *bits + (uint32_t)n / 4)
        return r;
    *kept = (other = gamma_bits(gaps, n, best + 1, widths[1])) < least;
    if (*kept) {
        least = other;
        best++;
    } else {
        while (best > 0 && (other = gamma_bits(gaps, n, best - 1, widths[!*kept])) < least) {
            least = other;
            best--;
            *kept = !*kept;
        }
    }
    if (least >= *bits)
        return r;
    *bits = least;
    return GAMMA | best;
}

static inline unsigned code_at(const uint8_t *in, int64_t size, int64_t block)
{
    int64_t bit = block * HEAD_BITS, at = bit >> 3;
    unsigned two = in[at] | (at + 1 < size ? (unsigned)in[at + 1] << 8 : 0);
    return (two >> (bit & 7)) & 63;
}

/* Append the lowest bits of each number, of each its own width. */
static inline void write_widths(struct low *stream, const uint32_t *numbers, const uint32_t *widths, int n)
{
    struct low low = *stream;
    uint32_t all = 0;
    int i = 0;
    for (int at = 0; at < BLOCK; at++)
        all |= numbers[at];
    for (; all >> 29 == 0 && i + 1 < n; i += 2) { /* two at a time fit a word */
        uint64_t one = numbers[i] & ((1ull << widths[i]) - 1), two = numbers[i + 1] & ((1ull << widths[i + 1]) - 1);
        append(&low, one | two << widths[i], widths[i] + widths[i + 1]);
    }
    for (; i < n; i++)
        append(&low, numbers[i] & ((1ull << widths[i]) - 1), widths[i]);
    *stream = low;
}

static inline void gaps_of(const int32_t *indices, int64_t start, int n, uint32_t *gaps)
{
    gaps[0] = (uint32_t)(indices[start] - (start ? indices[start - 1] : -1) - 1);
    for (int i = 1; i < n; i++)
        gaps[i] = (uint32_t)(indices[start + i] - indices[start + i - 1] - 1);
    memset(gaps + n, 0, sizeof(uint32_t) * (size_t)(BLOCK - n));
}

/* Encode `count` indices to `out`; returns the bytes written, at most room - SLACK, or a fault. */
GK_EXPORT int64_t gk_codec_rice_encode(const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room)
{
    int64_t blocks = (count + BLOCK - 1) / BLOCK, head = bytes_of((uint64_t)blocks * HEAD_BITS);
    uint64_t low_bits = 0, back_bits = 0;
    if (!ascending(indices, count, numel))
        return FAULT_INDICES;
    if (count == 0)
        return 0;
    if (head + SLACK > room)
        return FAULT_ROOM;
    struct low low = {out + head, 0, 0};
    struct back_writer back = {out + room, 0, 0};
    memset(out, 0, (size_t)head);
    for (int64_t block = 0; block < blocks; block++) {
        uint32_t gaps[BLOCK], zeros[BLOCK], widths[2][BLOCK], bits;
        int64_t start = block * BLOCK, bit = block * HEAD_BITS;
        int n = in_block(count, start), kept = 0;
        gaps_of(indices, start, n, gaps);
        unsigned code = choose_code(gaps, n, &bits, widths, &kept), r = code & 31;
        out[bit >> 3] |= (uint8_t)(code << (bit & 7));
        if ((bit & 7) > 2)
            out[(bit >> 3) + 1] |= (uint8_t)(code >> (8 - (bit & 7)));
        uint64_t own = (uint64_t)r * (unsigned)n; /* low bits; of the second kind half of the rest as well */
        uint64_t quotients = code & GAMMA ? (bits - own) / 2 : bits - own;
        low_bits += code & GAMMA ? own + quotients : own;
        back_bits += quotients + (unsigned)n;
        if (head + bytes_of(low_bits) + bytes_of(back_bits) + SLACK > room)
            return FAULT_ROOM;
        if (code & GAMMA) {
            for (int i = 0; i < BLOCK; i++) {
                zeros[i] = widths[kept][i] - r;
                gaps[i] += 1u << r;
            }
            write_widths(&low, gaps, widths[kept], n);
        } else {
            for (int i = 0; i < BLOCK; i++)
                zeros[i] = gaps[i] >> r;
            write_low(&low, gaps, n, r);
        }
        write_back(&back, zeros, n);
    }
    int64_t end = head + bytes_of(low_bits), size = bytes_of(back_bits);
    store64(back.to - 8, __builtin_bswap64(back.word));
    memmove(out + end, out + room - size, (size_t)size);
    return end + size;
}

/* Where a decoder is. */
struct place {
    struct back back;
    const uint8_t *low;
    int64_t left, before; /* bytes of both streams; position of the last one */
    uint64_t bit, index;  /* of the low stream; the last index */
};

/* Read a block of n gaps; returns 0, or a fault. `whole`: every 8 bytes that it can ask for are there. */
static inline __attribute__((always_inline)) int64_t read_block(struct place *place, unsigned r, int gamma, int whole,
                                                                int n, int64_t numel, int32_t *out)
{
    struct back back = place->back;
    int64_t before = place->before;
    uint64_t bit = place->bit, index = place->index;
    for (int i = 0; i < n; i++) {
        int64_t one = back_next(&back), at = (int64_t)(bit >> 3), left = place->left - at;
        if (one < 0)
            return FAULT_TRUNCATED;
        uint64_t word = whole || left >= 8 ? load64(place->low + at) : left > 0 ? load64_within(place->low + at, left) : 0;
        uint64_t zeros = (uint64_t)(one - before - 1), high = zeros << r;
        unsigned width = r;
        before = one;
        if (gamma) {
            if (zeros > MOST - r)
                return FAULT_RANGE;
            width += (unsigned)zeros;
            high = (1ull << width) - (1ull << r);
        }
        index += high + ((word >> (bit & 7)) & ((1ull << width) - 1)) + 1;
        bit += width;
        out[i] = (int32_t)index;
    }
    /* the first test bounds the sum of quotients, so that index did not wrap before the second */
    if ((!gamma && before - place->before - n > (numel >> r)) || index >= (uint64_t)numel)
        return FAULT_RANGE;
    place->back = back;
    place->before = before;
    place->bit = bit;
    place->index = index;
    return 0;
}

/* Decode `count` indices from exactly `size` bytes; returns `size`, or a fault. Aligned, because its loops took 1.4 or 1.7 ns
 * an index, by where other functions left them (gcc 12, AMD EPYC, 2026-11-29). */
__attribute__((aligned(64))) GK_EXPORT int64_t gk_codec_rice_decode(const uint8_t *in, int64_t size, int64_t count,
                                                                    int64_t numel, int32_t *out)
{
    int64_t blocks = (count + BLOCK - 1) / BLOCK, head = bytes_of((uint64_t)blocks * HEAD_BITS), left = size - head;
    if (count == 0)
        return size ? FAULT_SURPLUS : 0;
    if (head > size)
        return FAULT_TRUNCATED;
    struct place place = {{in + head, left, 0, word_back(in + head, left)}, in + head, left, -1, 0, UINT64_MAX};
    for (int64_t block = 0; block < blocks; block++) {
        unsigned code = code_at(in, head, block), r = code & 31;
        int n = in_block(count, block * BLOCK);
        int whole = left - (int64_t)((place.bit + (uint64_t)n * (code & GAMMA ? MOST : r)) >> 3) >= 8;
        int32_t *to = out + block * BLOCK;
        int64_t fault = whole ? (code & GAMMA ? read_block(&place, r, 1, 1, n, numel, to)
                                              : read_block(&place, r, 0, 1, n, numel, to))
                              : read_block(&place, r, code & GAMMA, 0, n, numel, to);
        if (fault < 0)
            return fault;
    }
    int64_t used = bytes_of(place.bit) + bytes_of((uint64_t)place.before + 1);
    return used == left ? size : used > left ? FAULT_TRUNCATED : FAULT_SURPLUS;
}

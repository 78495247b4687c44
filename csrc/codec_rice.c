/* Rice codes of index gaps, one parameter for each block of 64. Layout: docs/wire.md. */
#include "rice.h"

enum { PARAMETER_BITS = 5 };

static inline uint32_t gap_at(const int32_t *indices, int64_t i)
{
    return (uint32_t)(indices[i] - (i ? indices[i - 1] : -1) - 1);
}

static inline unsigned parameter_at(const uint8_t *in, int64_t size, int64_t block)
{
    int64_t bit = block * PARAMETER_BITS, at = bit >> 3;
    unsigned two = in[at] | (at + 1 < size ? (unsigned)in[at + 1] << 8 : 0);
    return (two >> (bit & 7)) & 31;
}

static void write_unary(const int32_t *indices, int64_t count, const uint8_t *parameters, int64_t size, uint8_t *unary)
{
    uint64_t word = 0;
    int64_t position = 0, at = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        unsigned r = parameter_at(parameters, size, start / BLOCK);
        int64_t end = start + in_block(count, start);
        for (int64_t i = start; i < end; i++) {
            position += gap_at(indices, i) >> r;
            if (position >> 6 != at) {
                store64(unary + 8 * at, word);
                at = position >> 6;
                word = 0;
            }
            word |= 1ull << (position++ & 63);
        }
    }
    store64(unary + 8 * at, word);
}

/* Encode `count` indices to `out`; returns the bytes written, at most room - SLACK, or a fault. */
GK_EXPORT int64_t gk_codec_rice_encode(const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room)
{
    int64_t blocks = (count + BLOCK - 1) / BLOCK, head = bytes_of((uint64_t)blocks * PARAMETER_BITS);
    uint64_t low_bits = 0, unary_bits = 0;
    struct low low_stream = {out + head, 0, 0};
    if (!ascending(indices, count, numel))
        return FAULT_INDICES;
    if (count == 0)
        return 0;
    if (head + SLACK > room)
        return FAULT_ROOM;
    memset(out, 0, (size_t)head);
    for (int64_t block = 0; block < blocks; block++) {
        uint32_t gaps[BLOCK];
        int64_t start = block * BLOCK, bit = block * PARAMETER_BITS;
        int n = in_block(count, start);
        int before = start ? indices[start - 1] : -1;
        gaps[0] = (uint32_t)(indices[start] - before - 1);
        for (int i = 1; i < n; i++)
            gaps[i] = (uint32_t)(indices[start + i] - indices[start + i - 1] - 1);
        for (int i = n; i < BLOCK; i++)
            gaps[i] = 0;
        uint32_t quotients;
        unsigned r = choose(gaps, n, &quotients);
        unary_bits += quotients + (uint64_t)n;
        out[bit >> 3] |= (uint8_t)(r << (bit & 7));
        if ((bit & 7) > 3)
            out[(bit >> 3) + 1] |= (uint8_t)(r >> (8 - (bit & 7)));
        low_bits += (uint64_t)r * (unsigned)n;
        if (head + bytes_of(low_bits) + SLACK > room)
            return FAULT_ROOM;
        write_low(&low_stream, gaps, n, r);
    }
    int64_t low = bytes_of(low_bits), unary = bytes_of(unary_bits);
    if (head + low + unary + SLACK > room)
        return FAULT_ROOM;
    memset(out + head + low, 0, (size_t)unary);
    write_unary(indices, count, out, head, out + head + low);
    return head + low + unary;
}

/* Decode `count` indices from exactly `size` bytes; returns `size`, or a fault. */
GK_EXPORT int64_t gk_codec_rice_decode(const uint8_t *in, int64_t size, int64_t count, int64_t numel, int32_t *out)
{
    int64_t blocks = (count + BLOCK - 1) / BLOCK, head = bytes_of((uint64_t)blocks * PARAMETER_BITS);
    uint64_t low_bits = 0, bit = 0;
    if (count == 0)
        return size ? FAULT_SURPLUS : 0;
    if (head > size)
        return FAULT_TRUNCATED;
    for (int64_t block = 0; block < blocks; block++)
        low_bits += (uint64_t)parameter_at(in, head, block) * (unsigned)in_block(count, block * BLOCK);
    int64_t low = bytes_of(low_bits);
    if (head + low > size)
        return FAULT_TRUNCATED;
    struct ones ones = ones_begin(in + head + low, size - head - low);
    int64_t before = -1; /* the last one read */
    uint64_t index = UINT64_MAX;
    for (int64_t start = 0; start < count; start += BLOCK) {
        unsigned r = parameter_at(in, head, start / BLOCK);
        uint64_t mask = (1ull << r) - 1;
        int n = in_block(count, start);
        int64_t begin = before, left = size - head; /* from the first low bit to the end of the section */
        int whole = left - (int64_t)((bit + (uint64_t)n * r) >> 3) >= 8;
        for (int i = 0; i < n; i++, bit += r) {
            const uint8_t *at = in + head + (bit >> 3);
            uint64_t word = whole ? load64(at) : load64_within(at, left - (int64_t)(bit >> 3));
            int64_t one = ones_next(&ones);
            if (one < 0)
                return FAULT_TRUNCATED;
            index += ((uint64_t)(one - before - 1) << r) + ((word >> (bit & 7)) & mask) + 1;
            out[start + i] = (int32_t)index;
            before = one;
        }
        /* the first test bounds the sum of quotients, so that index did not wrap before the second */
        if ((before - begin - n) > (numel >> r) || index >= (uint64_t)numel)
            return FAULT_RANGE;
    }
    return bytes_of((uint64_t)before + 1) == size - head - low ? size : FAULT_SURPLUS;
}

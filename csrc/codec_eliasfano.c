/* Elias-Fano: low bits as they are, high bits as gaps between ones. Layout: docs/wire-format.md. */
#include "codec.h"

/* Low bits of an index: the logarithm of numel / count, rounded down. */
static unsigned low_width(int64_t count, int64_t numel) { return 63 - (unsigned)__builtin_clzll((uint64_t)(numel / count)); }

/* Encode `count` indices to `out`; returns the bytes written, at most room - SLACK, or a fault. */
GK_EXPORT int64_t gk_codec_eliasfano_encode(const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room)
{
    if (!ascending(indices, count, numel))
        return FAULT_INDICES;
    if (count == 0)
        return 0;
    unsigned width = low_width(count, numel), fill = 0;
    int64_t low = bytes_of((uint64_t)count * width), high = bytes_of((uint64_t)(count + ((numel - 1) >> width)));
    if (low + high + SLACK > room)
        return FAULT_ROOM;
    uint32_t mask = (1u << width) - 1;
    uint64_t word = 0;
    uint8_t *to = out;
    for (int64_t i = 0; width && i < count; i++) {
        word |= (uint64_t)((uint32_t)indices[i] & mask) << fill;
        fill += width;
        store64(to, word);
        to += fill >> 3;
        word >>= fill & ~7u;
        fill &= 7;
    }
    memset(out + low, 0, (size_t)high);
    int64_t at = 0;
    word = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t position = (indices[i] >> width) + i;
        if (position >> 6 != at) {
            store64(out + low + 8 * at, word);
            at = position >> 6;
            word = 0;
        }
        word |= 1ull << (position & 63);
    }
    store64(out + low + 8 * at, word);
    return low + high;
}

/* Decode `count` indices from exactly `size` bytes; returns `size`, or a fault. */
GK_EXPORT int64_t gk_codec_eliasfano_decode(const uint8_t *in, int64_t size, int64_t count, int64_t numel, int32_t *out)
{
    if (count == 0)
        return size ? FAULT_SURPLUS : 0;
    unsigned width = low_width(count, numel);
    int64_t low = bytes_of((uint64_t)count * width), high = bytes_of((uint64_t)(count + ((numel - 1) >> width)));
    if (low + high != size)
        return low + high > size ? FAULT_TRUNCATED : FAULT_SURPLUS;
    struct ones ones = ones_begin(in + low, high);
    uint64_t mask = (1ull << width) - 1, bit = 0;
    for (int64_t i = 0; i < count; i++, bit += width) {
        int64_t at = (int64_t)(bit >> 3), one = ones_next(&ones);
        uint64_t word = load64_within(in + at, size - at);
        if (one < 0)
            return FAULT_TRUNCATED;
        /* no overflow: one - i is below 8 * high <= numel / 2**width + 8 */
        out[i] = (int32_t)(((uint64_t)(one - i) << width) | ((word >> (bit & 7)) & mask));
    }
    return ascending(out, count, numel) ? size : FAULT_RANGE;
}

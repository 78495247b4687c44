/* 16-bit offsets in chunks of 64 Ki: counts, full chunks, offsets. Layout: docs/wire-format.md. */
#include "codec.h"

enum { CHUNK_BITS = 16, CHUNK = 1 << CHUNK_BITS, LANE = 16 };

static inline int64_t chunks_of(int64_t numel) { return (numel + CHUNK - 1) >> CHUNK_BITS; }

/* Encode `count` indices to `out`; returns the bytes written, at most room - SLACK, or a fault. */
GK_EXPORT int64_t gk_codec_chunks_encode(const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room)
{
    int64_t chunks = chunks_of(numel), head = 2 * chunks + bytes_of((uint64_t)chunks);
    if (!ascending(indices, count, numel))
        return FAULT_INDICES;
    if (head + 2 * count + SLACK > room)
        return FAULT_ROOM;
    memset(out, 0, (size_t)head);
    uint8_t *full = out + 2 * chunks;
    int32_t chunk = -1;
    int64_t start = 0;
    for (int64_t i = 0; i < count; i++) { /* the count so far goes out each time: a store is cheaper than a branch */
        int32_t own = indices[i] >> CHUNK_BITS;
        start = own == chunk ? start : i;
        chunk = own;
        int64_t so_far = i + 1 - start;
        store16(out + 2 * own, (uint16_t)so_far);
        if (__builtin_expect(so_far == CHUNK, 0))
            full[own >> 3] |= (uint8_t)(1 << (own & 7));
    }
    uint8_t *offsets = out + head;
    for (int64_t i = 0; i < count; i++)
        store16(offsets + 2 * i, (uint16_t)indices[i]);
    return head + 2 * count;
}

/* Decode `count` indices; `size` may have room for more. Returns the bytes that were read, or a fault. */
GK_EXPORT int64_t gk_codec_chunks_decode(const uint8_t *in, int64_t size, int64_t count, int64_t numel, int32_t *out)
{
    int64_t chunks = chunks_of(numel), head = 2 * chunks + bytes_of((uint64_t)chunks), done = 0;
    if (head + 2 * count > size)
        return FAULT_TRUNCATED;
    if ((size - head) & 1)
        return FAULT_SURPLUS;
    const uint8_t *full = in + 2 * chunks, *offsets = in + head;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        int64_t n = load16(in + 2 * chunk) + ((int64_t)((full[chunk >> 3] >> (chunk & 7)) & 1) << CHUNK_BITS);
        int64_t end = done + n, base = chunk << CHUNK_BITS;
        if (n > CHUNK || end > count)
            return FAULT_RANGE;
        /* whole lanes while there is room for one: what is past the end is written again by the next chunk */
        for (; done < end && done + LANE <= count; done += LANE)
            for (int i = 0; i < LANE; i++)
                out[done + i] = (int32_t)(base | load16(offsets + 2 * (done + i)));
        for (; done < end; done++)
            out[done] = (int32_t)(base | load16(offsets + 2 * done));
        done = end;
    }
    if (done != count)
        return FAULT_TRUNCATED;
    return ascending(out, count, numel) ? head + 2 * count : FAULT_RANGE;
}

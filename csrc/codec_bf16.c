/* bfloat16, and Rice codes of its magnitudes: selected values lie close above a threshold. Layout: docs/wire-values.md.
 *
 * The bits of a float without its sign are a whole number that grows with the magnitude, about with its logarithm. What
 * the magnitudes have more than the smallest one is short in most places; it is coded as the gaps of indices are.
 */
#include "rice.h"

enum { BITS = 15, PLAIN = 15, HEAD = 6 }; /* of a magnitude; parameter of a block as it is; size and least magnitude */

GK_EXPORT void gk_codec_bf16_round(const float *values, int64_t count, float *out)
{
    for (int64_t i = 0; i < count; i++) { /* no branch, so that the loop becomes vector code */
        uint32_t bits = (uint32_t)gk_bits(values[i]), sign = bits & 0x80000000u, magnitude = bits & 0x7FFFFFFFu;
        uint32_t near = (magnitude + 0x7FFF + (magnitude >> 16 & 1)) & 0xFFFF0000u;
        near = magnitude < 0x7F800000u && near > 0x7F7F0000u ? 0x7F7F0000u : near; /* finite stays finite */
        near = magnitude == 0x7F800000u ? magnitude : near;
        out[i] = gk_float((int32_t)(magnitude > 0x7F800000u ? 0x7FC00000u : near | sign));
    }
}

static inline uint32_t half_of(float value)
{
    uint32_t bits = (uint32_t)gk_bits(value);
    return (bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0 : bits >> 16;
}

GK_EXPORT void gk_codec_bf16_encode(const float *values, int64_t count, int64_t slots, uint8_t *out)
{
    for (int64_t i = 0; i < count; i++)
        store16(out + 2 * i, (uint16_t)half_of(values[i]));
    memset(out + 2 * count, 0, (size_t)(2 * (slots - count)));
}

GK_EXPORT void gk_codec_bf16_decode(const uint8_t *in, int64_t count, int64_t slots, float *out)
{
    (void)slots;
    for (int64_t i = 0; i < count; i++)
        out[i] = gk_float((int32_t)((uint32_t)load16(in + 2 * i) << 16));
}

/* ------------------------------------------------------------------ Rice codes */

static inline unsigned parameter_at(const uint8_t *parameters, int64_t block)
{
    return parameters[block >> 1] >> (4 * (block & 1)) & 15;
}

static inline uint32_t over(float value, uint32_t base)
{
    return (half_of(value) & 0x7FFF) - base;
}

static inline uint32_t least(const float *values, int64_t count)
{
    uint32_t least = UINT32_MAX;
    for (int64_t i = 0; i < count; i++) {
        uint32_t magnitude = over(values[i], 0);
        least = magnitude < least ? magnitude : least;
    }
    return least;
}

/* Choose the parameters, write them, then what follows each: low bits and sign. Returns the bits of the quotients. */
static inline uint64_t write_blocks(const float *values, int64_t count, uint32_t base, uint8_t *out,
                                    uint64_t *low_bits)
{
    int64_t head = bytes_of((uint64_t)(count + BLOCK - 1) / BLOCK * 4);
    struct low stream = {out + head, 0, 0};
    uint64_t unary_bits = 0;
    memset(out, 0, (size_t)head);
    for (int64_t start = 0; start < count; start += BLOCK) {
        uint32_t halves[BLOCK], numbers[BLOCK], quotients;
        int n = in_block(count, start);
        for (int i = 0; i < n; i++)
            halves[i] = half_of(values[start + i]);
        for (int i = 0; i < n; i++)
            numbers[i] = (halves[i] & 0x7FFF) - base;
        memset(numbers + n, 0, sizeof(uint32_t) * (size_t)(BLOCK - n));
        unsigned r = choose(numbers, n, &quotients), width = r;
        if (quotients + (uint32_t)n * (r + 1) < (uint32_t)n * BITS) {
            unary_bits += quotients + (uint64_t)n;
        } else {
            r = PLAIN;
            width = BITS;
        }
        for (int i = 0; i < n; i++)
            numbers[i] = (numbers[i] & ((1u << width) - 1)) | halves[i] >> 15 << width;
        out[start / BLOCK >> 1] |= (uint8_t)(r << (4 * (start / BLOCK & 1)));
        *low_bits += (uint64_t)(width + 1) * (unsigned)n;
        write_low(&stream, numbers, n, width + 1);
    }
    return unary_bits;
}

static inline void write_quotients(const float *values, int64_t count, uint32_t base,
                                   const uint8_t *parameters, uint8_t *out)
{
    uint64_t word = 0;
    int64_t position = 0, at = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        unsigned r = parameter_at(parameters, start / BLOCK);
        int64_t end = r == PLAIN ? start : start + in_block(count, start);
        for (int64_t i = start; i < end; i++) {
            position += over(values[i], base) >> r;
            if (position >> 6 != at) { /* one store where no quotient has more than 64 bits */
                store64(out + 8 * at++, word);
                for (word = 0; position >> 6 != at; at++)
                    store64(out + 8 * at, 0);
            }
            word |= 1ull << (position++ & 63);
        }
    }
    store64(out + 8 * at, word);
}

/* Encode rounded values; returns the bytes written, at most room - SLACK, or a fault. */
GK_EXPORT int64_t gk_codec_bf16_rice_encode(const float *values, int64_t count, uint8_t *out, int64_t room)
{
    if (count == 0)
        return 0;
    int64_t head = bytes_of((uint64_t)(count + BLOCK - 1) / BLOCK * 4);
    int64_t most = HEAD + head + bytes_of((uint64_t)count * (BITS + 1)) + 1;
    if (most + SLACK > room || most > UINT32_MAX)
        return FAULT_ROOM;
    uint32_t base = least(values, count);
    uint64_t low_bits = 0;
    uint64_t unary_bits = write_blocks(values, count, base, out + HEAD, &low_bits);
    int64_t unary = HEAD + head + bytes_of(low_bits);
    write_quotients(values, count, base, out + HEAD, out + unary);
    store32(out, (uint32_t)(unary + bytes_of(unary_bits)));
    store16(out + 4, (uint16_t)base);
    return unary + bytes_of(unary_bits);
}

/* Decode `count` values from exactly `size` bytes; returns 0, or a fault. */
GK_EXPORT int64_t gk_codec_bf16_rice_decode(const uint8_t *in, int64_t size, int64_t count, float *out)
{
    if (count == 0)
        return size ? FAULT_SURPLUS : 0;
    int64_t head = HEAD + bytes_of((uint64_t)(count + BLOCK - 1) / BLOCK * 4);
    uint64_t low_bits = 0, bit = 0;
    if (head > size || load32(in) != size)
        return FAULT_TRUNCATED;
    for (int64_t start = 0; start < count; start += BLOCK) {
        unsigned r = parameter_at(in + HEAD, start / BLOCK);
        low_bits += (uint64_t)((r == PLAIN ? BITS : r) + 1) * (unsigned)in_block(count, start);
    }
    int64_t low = bytes_of(low_bits);
    if (head + low > size)
        return FAULT_TRUNCATED;
    struct ones ones = ones_begin(in + head + low, size - head - low);
    int64_t before = -1; /* the last one read */
    uint64_t base = load16(in + 4), seen = 0; /* all bits of magnitudes */
    for (int64_t start = 0; start < count; start += BLOCK) {
        unsigned r = parameter_at(in + HEAD, start / BLOCK), width = r == PLAIN ? BITS : r;
        uint64_t mask = (1ull << width) - 1;
        int n = in_block(count, start);
        int64_t left = size - head; /* from the first low bit to the end of the section */
        int whole = left - (int64_t)((bit + (uint64_t)n * (width + 1)) >> 3) >= 8;
        for (int i = 0; i < n; i++, bit += width + 1) {
            const uint8_t *at = in + head + (bit >> 3);
            uint64_t word = (whole ? load64(at) : load64_within(at, left - (int64_t)(bit >> 3))) >> (bit & 7);
            uint64_t magnitude = base + (word & mask);
            if (r != PLAIN) {
                int64_t one = ones_next(&ones);
                if (one < 0)
                    return FAULT_TRUNCATED;
                magnitude += (uint64_t)(one - before - 1) << r;
                before = one;
            }
            seen |= magnitude;
            out[start + i] = gk_float((int32_t)((uint32_t)(magnitude << 16) | (uint32_t)(word >> width & 1) << 31));
        }
    }
    if (seen >> BITS)
        return FAULT_LEVEL;
    return bytes_of((uint64_t)before + 1) == size - head - low ? 0 : FAULT_SURPLUS;
}

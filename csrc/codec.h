/* What the codec's C files share: fault numbers, little-endian access, and a look at the indices.
 *
 * Every entry point takes the size of each buffer and never reads or writes past it, whatever the bytes say. A
 * negative result is a fault, which Python turns into a ValueError; the buffers then hold nothing of use.
 */
#ifndef GAUSSIANK_CODEC_H
#define GAUSSIANK_CODEC_H

#include <stdint.h>
#include <string.h>

#include "gaussiank.h"

enum fault {
    FAULT_ROOM = -1,      /* the output buffer is too small: an error of ours */
    FAULT_INDICES = -2,   /* indices to encode do not ascend, or leave [0, numel) */
    FAULT_TRUNCATED = -3, /* a section ends before its last entry */
    FAULT_RANGE = -4,     /* a decoded index does not ascend, or leaves [0, numel) */
    FAULT_SURPLUS = -5,   /* a section is longer than what it holds */
    FAULT_VALUES = -6,    /* values to encode are not rounded to the code */
    FAULT_LEVEL = -7      /* a decoded value is none of the code */
};

#define SLACK 8 /* bytes past the result that an encoder may scribble on, so that it can store whole words */

/* unaligned, and aliasing whatever lies there */
typedef uint16_t __attribute__((aligned(1), may_alias)) u16_any;
typedef uint32_t __attribute__((aligned(1), may_alias)) u32_any;
typedef uint64_t __attribute__((aligned(1), may_alias)) u64_any;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LE16(x) (x)
#define LE32(x) (x)
#define LE64(x) (x)
#else
#define LE16(x) __builtin_bswap16(x)
#define LE32(x) __builtin_bswap32(x)
#define LE64(x) __builtin_bswap64(x)
#endif

static inline uint64_t load64(const uint8_t *at) { return LE64(*(const u64_any *)at); }
static inline void store64(uint8_t *at, uint64_t word) { *(u64_any *)at = LE64(word); }
static inline uint32_t load32(const uint8_t *at) { return LE32(*(const u32_any *)at); }
static inline void store32(uint8_t *at, uint32_t word) { *(u32_any *)at = LE32(word); }
static inline uint16_t load16(const uint8_t *at) { return LE16(*(const u16_any *)at); }
static inline void store16(uint8_t *at, uint16_t word) { *(u16_any *)at = LE16(word); }

/* Load 8 bytes of which only `left` exist; the rest reads as zero. */
static inline uint64_t load64_within(const uint8_t *at, int64_t left)
{
    uint64_t word = 0;
    if (left >= 8)
        return load64(at);
    for (int64_t i = 0; i < left; i++)
        word |= (uint64_t)at[i] << (8 * i);
    return word;
}

static inline int64_t bytes_of(uint64_t bits) { return (int64_t)((bits + 7) >> 3); }

/* Tell whether indices ascend without repeats in [0, numel). */
static inline int ascending(const int32_t *indices, int64_t count, int64_t numel)
{
    int bad = 0;
    if (count == 0)
        return 1;
    for (int64_t i = 1; i < count; i++)
        bad |= indices[i] <= indices[i - 1];
    return !bad && indices[0] >= 0 && indices[count - 1] < numel;
}

/* Ones in a stream of bits, lowest bit of each byte first. */
struct ones {
    const uint8_t *bytes;
    int64_t size;
    int64_t base;  /* bit that `word` begins at */
    uint64_t word; /* ones not yet read */
};

static inline struct ones ones_begin(const uint8_t *bytes, int64_t size)
{
    struct ones ones = {bytes, size, 0, load64_within(bytes, size)};
    return ones;
}

/* Return the position of the next one, or -1 at the end. */
static inline int64_t ones_next(struct ones *ones)
{
    while (__builtin_expect(ones->word == 0, 0)) {
        int64_t at = (ones->base >> 3) + 8;
        if (at >= ones->size)
            return -1;
        ones->base += 64;
        ones->word = load64_within(ones->bytes + at, ones->size - at);
    }
    int64_t position = ones->base + __builtin_ctzll(ones->word);
    ones->word &= ones->word - 1;
    return position;
}

/* What codec_payload.c puts together. */
#define INDEX_CODE(name)                                                                                               \
    int64_t gk_codec_##name##_encode(const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room); \
    int64_t gk_codec_##name##_decode(const uint8_t *in, int64_t size, int64_t count, int64_t numel, int32_t *out);
#define VALUE_CODE_OF(name)                                                                                            \
    void gk_codec_##name##_round(const float *values, int64_t count, float *out);                                      \
    void gk_codec_##name##_encode(const float *values, int64_t count, int64_t slots, uint8_t *out);                    \
    void gk_codec_##name##_decode(const uint8_t *in, int64_t count, int64_t slots, float *out);

INDEX_CODE(rice)
INDEX_CODE(eliasfano)
INDEX_CODE(chunks)
VALUE_CODE_OF(bf16)
VALUE_CODE_OF(8bit)
VALUE_CODE_OF(4bit)
VALUE_CODE_OF(2bit)
VALUE_CODE_OF(sign)
int64_t gk_codec_bf16_rice_encode(const float *values, int64_t count, uint8_t *out, int64_t room);
int64_t gk_codec_bf16_rice_decode(const uint8_t *in, int64_t size, int64_t count, float *out);
uint32_t gk_codec_crc32(uint32_t crc, const uint8_t *bytes, int64_t size);

#endif

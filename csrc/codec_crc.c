/* The CRC-32 of zlib (IEEE 802.3), by carry-less multiplication where the processor has it.
 *
 * Source: Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", in its
 * bit-reflected form; eight tables for the rest (Kounavis & Berry 2005).
 */
#include "codec.h"

static uint32_t tables[8][256];

__attribute__((constructor)) static void fill(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++)
            tables[table][byte] = tables[table - 1][byte] >> 8 ^ tables[0][tables[table - 1][byte] & 0xFF];
}

static uint32_t by_tables(uint32_t crc, const uint8_t *bytes, int64_t size)
{
    for (; size >= 8; size -= 8, bytes += 8) {
        uint64_t word = load64(bytes) ^ crc;
        crc = 0;
        for (int i = 0; i < 8; i++)
            crc ^= tables[7 - i][word >> (8 * i) & 0xFF];
    }
    for (; size > 0; size--, bytes++)
        crc = crc >> 8 ^ tables[0][(crc ^ *bytes) & 0xFF];
    return crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

/* Move what is folded on by as many bits as the two constants stand for, and add what comes there. */
__attribute__((target("pclmul,sse4.1"))) static inline __m128i fold(__m128i folded, __m128i by, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(folded, by, 0x00), high = _mm_clmulepi64_si128(folded, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static inline __m128i at(const uint8_t *bytes) { return _mm_loadu_si128((const __m128i *)bytes); }

/* Fold whole runs of 16 bytes, at least 64 of them in all, into 16 bytes with the same remainder; four at a time. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t by_folding(uint32_t crc, const uint8_t *bytes, int64_t size)
{
    const __m128i by_64 = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4); /* x^(512 -+ 32) mod P, reflected */
    const __m128i by_16 = _mm_set_epi64x(0x00ccaa009e, 0x01751997d0); /* x^(128 -+ 32) mod P */
    __m128i lanes[4];
    for (int i = 0; i < 4; i++)
        lanes[i] = at(bytes + 16 * i);
    lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128((int)crc));
    int64_t done = 64;
    for (; done + 64 <= size; done += 64)
        for (int i = 0; i < 4; i++)
            lanes[i] = fold(lanes[i], by_64, at(bytes + done + 16 * i));
    __m128i folded = lanes[0];
    for (int i = 1; i < 4; i++)
        folded = fold(folded, by_16, lanes[i]);
    for (; done + 16 <= size; done += 16)
        folded = fold(folded, by_16, at(bytes + done));
    uint8_t rest[16];
    _mm_storeu_si128((__m128i *)rest, folded);
    return by_tables(by_tables(0, rest, 16), bytes + done, size - done);
}
#endif

/* Go on with a CRC-32; 0 begins one. */
GK_EXPORT uint32_t gk_codec_crc32(uint32_t crc, const uint8_t *bytes, int64_t size)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (size >= 64 && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"))
        return ~by_folding(crc, bytes, size);
#endif
    return ~by_tables(crc, bytes, size);
}

/* Levels of 1, 2, 4 and 8 bits with a scale for each block of 64 values. Layout: docs/wire-values.md.
 *
 * `round` rounds to the nearest level, as the reference does. Encoders take rounded values; of others they write some bytes, and the caller finds that they decode to something
 * else. Decoders take any bytes. The sizes of all buffers follow from count and slots.
 */
#include "codec.h"

#include <math.h>

enum { BLOCK = 64, LEAST = -126, BROKEN = -128, NAN_SCALE = 0x7FC0 };

static inline int in_block(int64_t count, int64_t start)
{
    int64_t left = count - start;
    return (int)(left < 0 ? 0 : left < BLOCK ? left : BLOCK);
}

static inline int64_t level_bytes(int64_t slots, int bits) { return bytes_of((uint64_t)slots * (unsigned)bits); }

/* Write the codes of a block, `n` of `bits` bits; those past n are zero. A block begins at a whole byte. */
static inline void pack(uint8_t *out, const uint8_t *codes, int n, int bits)
{
    int each = 8 / bits, bytes = (int)bytes_of((uint64_t)n * (unsigned)bits);
    for (int byte = 0; byte < bytes; byte++) {
        unsigned packed = 0;
        for (int i = 0; i < each; i++)
            packed |= (unsigned)codes[byte * each + i] << (i * bits);
        out[byte] = (uint8_t)packed;
    }
}

static inline unsigned get(const uint8_t *in, int64_t i, int bits)
{
    return (unsigned)(in[i * bits >> 3] >> (i * bits & 7)) & ((1u << bits) - 1);
}

/* 2**e, for e in [-1022, 1023]; no call of the mathematics library. */
static inline double power_of_two(int e)
{
    union { uint64_t bits; double value; } power = {.bits = (uint64_t)(e + 1023) << 52};
    return power.value;
}

/* The least e with largest <= top * 2**e. */
static int exponent_of(float largest, int top)
{
    union { double value; uint64_t bits; } ratio = {.value = (double)largest / top};
    int exponent = (int)(ratio.bits >> 52) - 1022; /* a float by at most 127 is a normal double, or zero */
    if (ratio.bits << 12 == 0)
        exponent--; /* a power of two itself */
    return largest == 0 || exponent < LEAST ? LEAST : exponent;
}

static inline void power_encode(const float *values, int64_t count, int64_t slots, uint8_t *out, int bits, int top)
{
    uint8_t *scales = out + level_bytes(slots, bits);
    for (int64_t start = 0; start < slots; start += BLOCK) {
        const float *own = values + start;
        int n = in_block(count, start), broken = 0;
        uint8_t codes[BLOCK] = {0};
        float largest = 0;
        for (int i = 0; i < n; i++) {
            float magnitude = fabsf(own[i]);
            int finite = magnitude < INFINITY;
            broken |= !finite;
            largest = finite && magnitude > largest ? magnitude : largest;
        }
        int exponent = exponent_of(largest, top);
        double inverse = power_of_two(-exponent);
        for (int i = 0; i < n; i++) {
            int level;
            if (broken)
                level = isnan(own[i]) ? 2 : own[i] >= 1 ? 1 : own[i] <= -1 ? -1 : 0;
            else
                level = (int)(own[i] * inverse);
            codes[i] = (uint8_t)(level & ((1 << bits) - 1));
        }
        pack(out + level_bytes(start, bits), codes, in_block(slots, start), bits);
        scales[start / BLOCK] = (uint8_t)(broken ? BROKEN : exponent);
    }
}

static inline void power_decode(const uint8_t *in, int64_t count, int64_t slots, float *out, int bits)
{
    const uint8_t *scales = in + level_bytes(slots, bits);
    for (int64_t start = 0; start < count; start += BLOCK) {
        int n = in_block(count, start), exponent = (int8_t)scales[start / BLOCK];
        double scale = power_of_two(exponent);
        for (int i = 0; i < n; i++) {
            int code = (int)get(in, start + i, bits), level = code - (code >> (bits - 1) << bits);
            float signal = level == 0 ? 0 : level == 1 ? INFINITY : level == -1 ? -INFINITY : NAN;
            out[start + i] = exponent == BROKEN ? signal : (float)(level * scale);
        }
    }
}

/* To the nearest integer, ties to even, for |x| < 2**51. */
static inline double nearest(double x) { return x + 0x1.8p52 - 0x1.8p52; }

/* Round a block to levels at one exponent, and tell the sum of squared errors. */
static inline double round_at(const float *values, int n, float *out, int exponent, int top)
{
    double scale = power_of_two(exponent), inverse = power_of_two(-exponent), squares = 0;
    for (int i = 0; i < n; i++) {
        double level = nearest(values[i] * inverse);
        level = level > top ? top : level < -top ? -top : level;
        double rounded = level * scale + 0.0, error = rounded - values[i];
        squares += error * error;
        out[i] = (float)rounded;
    }
    return squares;
}

static inline void power_round(const float *values, int64_t count, float *out, int bits, int top)
{
    float most = (float)(top * power_of_two(bits == 8 ? 121 : 125)); /* so that no level overflows */
    for (int64_t start = 0; start < count; start += BLOCK) {
        const float *own = values + start;
        int n = in_block(count, start), broken = 0;
        float held[BLOCK], finer[BLOCK], largest = 0;
        for (int i = 0; i < n; i++) {
            int finite = fabsf(own[i]) < INFINITY;
            broken |= !finite;
            held[i] = !finite ? 0 : own[i] > most ? most : own[i] < -most ? -most : own[i];
            largest = fabsf(held[i]) > largest ? fabsf(held[i]) : largest;
        }
        int exponent = exponent_of(largest, top);
        double squares = round_at(held, n, out + start, exponent, top);
        if (exponent > LEAST && round_at(held, n, finer, exponent - 1, top) < squares)
            memcpy(out + start, finer, (size_t)n * sizeof *finer);
        for (int i = 0; broken && i < n; i++)
            out[start + i] = isnan(own[i]) ? NAN : isinf(own[i]) ? own[i] : 0;
    }
}

static inline float load_scale(const uint8_t *at)
{
    union { uint32_t bits; float value; } scale = {.bits = (uint32_t)load16(at) << 16};
    return scale.value;
}

static inline void scaled_encode(const float *values, int64_t count, int64_t slots, uint8_t *out, int bits)
{
    uint8_t *scales = out + level_bytes(slots, bits);
    for (int64_t start = 0; start < slots; start += BLOCK) {
        const float *own = values + start;
        int n = in_block(count, start), broken = 0;
        uint8_t codes[BLOCK] = {0};
        union { float value; uint32_t bits; } least = {.value = INFINITY};
        for (int i = 0; i < n; i++) {
            float magnitude = fabsf(own[i]);
            broken |= !(magnitude < INFINITY);
            least.value = magnitude > 0 && magnitude < least.value ? magnitude : least.value;
        }
        if (least.value == INFINITY)
            least.value = 0;
        for (int i = 0; i < n; i++) {
            float value = own[i];
            codes[i] = (uint8_t)((value < 0) | (bits == 2 && fabsf(value) > least.value) << 1);
        }
        for (int i = 0; broken && i < n; i++) {
            unsigned infinite = bits == 1 || !isinf(own[i]) ? 0 : own[i] > 0 ? 1 : 2;
            codes[i] = (uint8_t)(isnan(own[i]) ? (bits == 1 ? 1 : 3) : infinite);
        }
        pack(out + level_bytes(start, bits), codes, in_block(slots, start), bits);
        store16(scales + 2 * (start / BLOCK), broken ? NAN_SCALE : (uint16_t)(least.bits >> 16));
    }
}

static inline void scaled_decode(const uint8_t *in, int64_t count, int64_t slots, float *out, int bits)
{
    const uint8_t *scales = in + level_bytes(slots, bits);
    const float signals[2][4] = {{0, NAN, 0, 0}, {0, INFINITY, -INFINITY, NAN}};
    for (int64_t start = 0; start < count; start += BLOCK) {
        int n = in_block(count, start);
        float scale = load_scale(scales + 2 * (start / BLOCK));
        float levels[4] = {scale + 0.0f, -scale + 0.0f, 2 * scale + 0.0f, -2 * scale + 0.0f};
        const float *meant = isnan(scale) ? signals[bits - 1] : levels;
        for (int i = 0; i < n; i++)
            out[start + i] = meant[get(in, start + i, bits)];
    }
}

/* Round a double to bfloat16 through float32, as torch does; it is at most half of the largest one. */
static inline double bf16_of(double x)
{
    union { float value; uint32_t bits; } both = {.value = (float)x};
    both.bits += 0x7FFF + (both.bits >> 16 & 1);
    both.bits &= 0xFFFF0000u;
    return both.value;
}

static inline double far_or_near(double magnitude, double scale, int bits)
{
    return 1 + (bits == 2 && magnitude >= 1.5 * scale); /* no branch: it would be mispredicted */
}

static inline void scaled_round(const float *values, int64_t count, float *out, int bits)
{
    for (int64_t start = 0; start < count; start += BLOCK) {
        const float *own = values + start;
        int n = in_block(count, start), broken = 0;
        double magnitudes[BLOCK], sum = 0;
        for (int i = 0; i < n; i++) {
            int finite = fabsf(own[i]) < INFINITY;
            broken |= !finite;
            magnitudes[i] = finite ? fabs(own[i]) : 0;
            sum += magnitudes[i];
        }
        double scale = bits == 2 ? 0.75 * sum / n : sum / n;
        for (int turn = 0; bits == 2 && turn < 2; turn++) {
            double product = 0, square = 0;
            for (int i = 0; i < n; i++) {
                double multiple = far_or_near(magnitudes[i], scale, bits);
                product += magnitudes[i] * multiple;
                square += multiple * multiple;
            }
            scale = product / square;
        }
        scale = bf16_of(scale < 0x1.fep126 ? scale : 0x1.fep126);
        for (int i = 0; i < n; i++) {
            double value = scale * far_or_near(magnitudes[i], scale, bits);
            out[start + i] = (float)((own[i] < 0 ? -value : value) + 0.0);
        }
        for (int i = 0; broken && i < n; i++)
            out[start + i] = isnan(own[i]) || (bits == 1 && isinf(own[i])) ? NAN : isinf(own[i]) ? own[i] : 0;
    }
}

#define VALUE_CODE(name, round, encode, decode)                                                                        \
    GK_EXPORT void gk_codec_##name##_round(const float *values, int64_t count, float *out) { round; }                  \
    GK_EXPORT void gk_codec_##name##_encode(const float *values, int64_t count, int64_t slots, uint8_t *out)           \
    {                                                                                                                  \
        encode;                                                                                                        \
    }                                                                                                                  \
    GK_EXPORT void gk_codec_##name##_decode(const uint8_t *in, int64_t count, int64_t slots, float *out)               \
    {                                                                                                                  \
        decode;                                                                                                        \
    }

VALUE_CODE(8bit, power_round(values, count, out, 8, 127), power_encode(values, count, slots, out, 8, 127),
           power_decode(in, count, slots, out, 8))
VALUE_CODE(4bit, power_round(values, count, out, 4, 7), power_encode(values, count, slots, out, 4, 7),
           power_decode(in, count, slots, out, 4))
VALUE_CODE(2bit, scaled_round(values, count, out, 2), scaled_encode(values, count, slots, out, 2),
           scaled_decode(in, count, slots, out, 2))
VALUE_CODE(sign, scaled_round(values, count, out, 1), scaled_encode(values, count, slots, out, 1),
           scaled_decode(in, count, slots, out, 1))

/* A whole payload in one call: header, indices, values, checksum. Layout: docs/wire-format.md.
 *
 * What the sections hold is the other files' business; here they are put together, so that an exchange of a few hundred
 * entries costs one call and not a dozen. The caller falls back to the reference for whatever this refuses as foreign.
 */
#include "codec.h"

#include <math.h>

enum { HEADER = 20, VERSION = 2, UNCHECKED = 0x80, FOREIGN = -100 };
enum { RAW, ELIASFANO = 2, CHUNKS, RICE = 5 };           /* numbers of index codes */
enum { FP32, BF16 = 2, BITS8 = 4, BITS4, BITS2, SIGN, BF16_RICE }; /* and of value codes */

/* An empty tensor has no address, and memcpy wants one. */
static inline void copy(void *to, const void *from, int64_t bytes)
{
    if (bytes > 0)
        memcpy(to, from, (size_t)bytes);
}

/* ------------------------------------------------------------------ sections */

/* Size of the section of values that `in` begins with, more than `size` if it is not all there. */
static int64_t value_bytes(int code, const uint8_t *in, int64_t size, int64_t count, int64_t slots)
{
    int64_t blocks = (slots + 63) / 64;
    switch (code) {
    case FP32: return 4 * slots;
    case BF16: return 2 * slots;
    case BITS8: return slots + blocks;
    case BITS4: return bytes_of((uint64_t)slots * 4) + blocks;
    case BITS2: return bytes_of((uint64_t)slots * 2) + 2 * blocks;
    case SIGN: return bytes_of((uint64_t)slots) + 2 * blocks;
    default: return count == 0 ? 0 : size < 4 ? 4 : load32(in);
    }
}

static void round_values(int code, const float *values, int64_t count, float *out)
{
    switch (code) {
    case FP32: copy(out, values, 4 * count); break;
    case BF16: gk_codec_bf16_round(values, count, out); break;
    case BITS8: gk_codec_8bit_round(values, count, out); break;
    case BITS4: gk_codec_4bit_round(values, count, out); break;
    case BITS2: gk_codec_2bit_round(values, count, out); break;
    case BF16_RICE: gk_codec_bf16_round(values, count, out); break;
    default: gk_codec_sign_round(values, count, out);
    }
}

/* Write a section of values into `room` bytes; returns its size, or a fault. */
static int64_t encode_values(int code, const float *values, int64_t count, int64_t slots, uint8_t *out, int64_t room)
{
    if (code == BF16_RICE)
        return gk_codec_bf16_rice_encode(values, count, out, room);
    int64_t size = value_bytes(code, out, 0, count, slots);
    if (size > room)
        return FAULT_ROOM;
    switch (code) {
    case FP32:
        copy(out, values, 4 * count);
        memset(out + 4 * count, 0, (size_t)(4 * (slots - count)));
        break;
    case BF16: gk_codec_bf16_encode(values, count, slots, out); break;
    case BITS8: gk_codec_8bit_encode(values, count, slots, out); break;
    case BITS4: gk_codec_4bit_encode(values, count, slots, out); break;
    case BITS2: gk_codec_2bit_encode(values, count, slots, out); break;
    default: gk_codec_sign_encode(values, count, slots, out);
    }
    return size;
}

/* Read a section of exactly `size` bytes; returns 0, or a fault. */
static int64_t decode_values(int code, const uint8_t *in, int64_t size, int64_t count, int64_t slots, float *out)
{
    switch (code) {
    case FP32: copy(out, in, 4 * count); break;
    case BF16: gk_codec_bf16_decode(in, count, slots, out); break;
    case BF16_RICE: return gk_codec_bf16_rice_decode(in, size, count, out);
    case BITS8: gk_codec_8bit_decode(in, count, slots, out); break;
    case BITS4: gk_codec_4bit_decode(in, count, slots, out); break;
    case BITS2: gk_codec_2bit_decode(in, count, slots, out); break;
    default: gk_codec_sign_decode(in, count, slots, out);
    }
    return 0;
}

static int64_t encode_indices(int code, const int32_t *indices, int64_t count, int64_t numel, uint8_t *out, int64_t room)
{
    if (code == RICE)
        return gk_codec_rice_encode(indices, count, numel, out, room);
    if (code == ELIASFANO)
        return gk_codec_eliasfano_encode(indices, count, numel, out, room);
    if (code == CHUNKS)
        return gk_codec_chunks_encode(indices, count, numel, out, room);
    if (!ascending(indices, count, numel))
        return FAULT_INDICES;
    if (4 * count > room)
        return FAULT_ROOM;
    copy(out, indices, 4 * count);
    return 4 * count;
}

static int64_t decode_indices(int code, const uint8_t *in, int64_t size, int64_t count, int64_t numel, int32_t *out)
{
    if (code == RICE)
        return gk_codec_rice_decode(in, size, count, numel, out);
    if (code == ELIASFANO)
        return gk_codec_eliasfano_decode(in, size, count, numel, out);
    if (code == CHUNKS)
        return gk_codec_chunks_decode(in, size, count, numel, out);
    if (4 * count > size)
        return FAULT_TRUNCATED;
    copy(out, in, 4 * count);
    return ascending(out, count, numel) ? 4 * count : FAULT_RANGE;
}

/* Entries that the index section has room for: as many values follow it. */
static int64_t slots_of(int code, int64_t size, int64_t count, int64_t numel)
{
    int64_t chunks = (numel + 65535) / 65536, head = 2 * chunks + bytes_of((uint64_t)chunks);
    if (code == RAW)
        return size % 4 ? FAULT_SURPLUS : size / 4;
    if (code == CHUNKS)
        return size < head ? FAULT_TRUNCATED : (size - head) % 2 ? FAULT_SURPLUS : (size - head) / 2;
    return count;
}

/* ------------------------------------------------------------------ payloads */

static int known(int index, int values)
{
    return (index == RAW || index == RICE || index == ELIASFANO || index == CHUNKS) &&
           (values == FP32 || values == BF16 || (values >= BITS8 && values <= BF16_RICE));
}

static uint32_t checksum_of(const uint8_t *payload, int64_t size)
{
    return gk_codec_crc32(gk_codec_crc32(0, payload, HEADER - 4), payload + HEADER, size - HEADER);
}

/* Write `count` entries; returns the bytes of the payload, or a fault. `spare` has room for as many floats.
 *
 * With `rounding`, values are rounded first, and `spare` ends up with what that took off each. Without, they must be
 * rounded, which is found out by reading them back. `size` is the exact size of the index section for the codes that
 * have room for `slots`; it is 0 for the others, whose slots are their count. With `frame` > 0, a payload that is not
 * longer is filled up to it, and its size follows in 8 bytes. */
GK_EXPORT int64_t gk_codec_write(int64_t index, int64_t code, int64_t rounding, const int32_t *indices,
                                 const float *values, int64_t count, int64_t numel, int64_t slots, int64_t size,
                                 int64_t frame, uint8_t *out, int64_t room, float *spare)
{
    const float *sent = values;
    if (!known((int)index, (int)code))
        return FOREIGN;
    if (room < HEADER + SLACK + size || (frame > 0 && room < frame + 8))
        return FAULT_ROOM;
    int64_t written = encode_indices((int)index, indices, count, numel, out + HEADER, room - HEADER);
    if (written < 0)
        return written;
    int64_t index_bytes = size ? size : written, start = HEADER + index_bytes;
    if (index_bytes < written || start > room || index_bytes > UINT32_MAX)
        return FAULT_ROOM;
    memset(out + HEADER + written, 0, (size_t)(index_bytes - written));
    if (rounding && code != FP32) {
        round_values((int)code, values, count, spare);
        sent = spare;
    }
    int64_t value_size = encode_values((int)code, sent, count, slots, out + start, room - start);
    if (value_size < 0)
        return value_size;
    int64_t end = start + value_size;
    if (rounding && code != FP32) {
        for (int64_t i = 0; i < count; i++)
            spare[i] = values[i] - spare[i];
    } else if (code != FP32) {
        int same = 1;
        int64_t fault = decode_values((int)code, out + start, value_size, count, slots, spare);
        if (fault < 0)
            return fault;
        for (int64_t i = 0; i < count; i++)
            same &= (gk_bits(spare[i]) == gk_bits(values[i])) | (isnan(spare[i]) & isnan(values[i]));
        if (!same)
            return FAULT_VALUES;
    }
    out[0] = VERSION;
    out[1] = 'K';
    out[2] = 'G';
    out[3] = (uint8_t)(index | code << 3);
    store32(out + 4, (uint32_t)numel);
    store32(out + 8, (uint32_t)count);
    store32(out + 12, (uint32_t)index_bytes);
    store32(out + 16, checksum_of(out, end));
    if (frame > 0 && end <= frame) {
        memset(out + end, 0, (size_t)(frame - end));
        store64(out + frame, (uint64_t)end);
    }
    return end;
}

/* Read an untrusted payload with known codes and length of vector; returns its count, a fault, or FOREIGN: then the
 * reference has to look at it. `room` is how many entries fit into both buffers. */
GK_EXPORT int64_t gk_codec_read(const uint8_t *in, int64_t size, int64_t index, int64_t code, int64_t numel,
                                int32_t *indices, float *values, int64_t room)
{
    if (!known((int)index, (int)code) || size < HEADER || in[0] != VERSION || in[1] != 'K' || in[2] != 'G' ||
        in[3] != (index | code << 3) || load32(in + 4) != numel)
        return FOREIGN; /* unchecked ones too */
    int64_t count = load32(in + 8), index_bytes = load32(in + 12);
    if (count > numel || count > room || index_bytes > size - HEADER)
        return FOREIGN;
    int64_t slots = slots_of((int)index, index_bytes, count, numel);
    if (slots < count)
        return FOREIGN;
    const uint8_t *section = in + HEADER + index_bytes;
    int64_t value_size = value_bytes((int)code, section, size - HEADER - index_bytes, count, slots);
    int64_t end = HEADER + index_bytes + value_size;
    if (end > size || load32(in + 16) != checksum_of(in, end))
        return FOREIGN;
    int64_t fault = decode_indices((int)index, in + HEADER, index_bytes, count, numel, indices);
    if (fault >= 0)
        fault = decode_values((int)code, section, value_size, count, slots, values);
    return fault < 0 ? fault : count;
}

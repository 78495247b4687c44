/* Feed bytes to every decoder of the codec, and check what comes out. Built and run by `make fuzz`.
 *
 * Input: a byte that chooses the decoder, four of numel, four of count, then the section. Buffers have the exact size
 * that a decoder is promised, so that the address sanitizer sees every step past one.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t index_decoder(const uint8_t *, int64_t, int64_t, int64_t, int32_t *);
typedef int64_t index_encoder(const int32_t *, int64_t, int64_t, uint8_t *, int64_t);
typedef void value_decoder(const uint8_t *, int64_t, int64_t, float *);
typedef void value_encoder(const float *, int64_t, int64_t, uint8_t *);

index_decoder gk_codec_rice_decode, gk_codec_eliasfano_decode, gk_codec_chunks_decode;
index_encoder gk_codec_rice_encode, gk_codec_eliasfano_encode, gk_codec_chunks_encode;
int64_t gk_codec_bf16_rice_decode(const uint8_t *, int64_t, int64_t, float *);
int64_t gk_codec_bf16_rice_encode(const float *, int64_t, uint8_t *, int64_t);
value_decoder gk_codec_8bit_decode, gk_codec_4bit_decode, gk_codec_2bit_decode, gk_codec_sign_decode;
value_encoder gk_codec_8bit_encode, gk_codec_4bit_encode, gk_codec_2bit_encode, gk_codec_sign_encode;

static index_decoder *const index_decoders[] = {gk_codec_rice_decode, gk_codec_eliasfano_decode,
                                                gk_codec_chunks_decode};
static index_encoder *const index_encoders[] = {gk_codec_rice_encode, gk_codec_eliasfano_encode,
                                                gk_codec_chunks_encode};
static value_decoder *const value_decoders[] = {gk_codec_8bit_decode, gk_codec_4bit_decode, gk_codec_2bit_decode,
                                                gk_codec_sign_decode};
static value_encoder *const value_encoders[] = {gk_codec_8bit_encode, gk_codec_4bit_encode, gk_codec_2bit_encode,
                                                gk_codec_sign_encode};
static const int level_bits[] = {8, 4, 2, 1}, scale_bytes[] = {1, 1, 2, 2};

int64_t gk_codec_read(const uint8_t *, int64_t, int64_t, int64_t, int64_t, int32_t *, float *, int64_t);
uint32_t gk_codec_crc32(uint32_t, const uint8_t *, int64_t);

enum { HEAD = 9, HEADER = 20, SLACK = 8, BLOCK = 64 };

static void fail(const char *what)
{
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

static uint32_t number(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void *exactly(size_t size)
{
    void *block = malloc(size ? size : 1);
    if (block == NULL)
        fail("out of memory");
    return block;
}

/* The most that indices can take in Rice codes, as Python has it. */
static int64_t rice_bytes(int64_t count, int64_t numel)
{
    int64_t rest = numel - count, r = 0;
    while (count && rest / (2 * count) >> r)
        r++;
    return (6 * ((count + BLOCK - 1) / BLOCK) + 7) / 8 + (count * (r + 1) + (rest >> r)) / 8 + 2;
}

/* What decodes must ascend in [0, numel), and encode and decode to itself. */
static void check_indices(int which, const uint8_t *section, int64_t size, int64_t count, int64_t numel)
{
    int32_t *indices = exactly(4 * (size_t)count), *again = exactly(4 * (size_t)count);
    int64_t used = index_decoders[which](section, size, count, numel, indices);
    if (used >= 0) {
        if (used > size)
            fail("read more than there is");
        for (int64_t i = 0; i < count; i++)
            if (indices[i] < 0 || indices[i] >= numel || (i && indices[i] <= indices[i - 1]))
                fail("indices do not ascend");
        int64_t room = which ? size + SLACK : rice_bytes(count, numel) + SLACK;
        uint8_t *out = exactly((size_t)room);
        int64_t written = index_encoders[which](indices, count, numel, out, room);
        if (written < 0)
            fail("indices do not fit where any must");
        if (written > room - SLACK)
            fail("wrote more than there is room for");
        if (index_decoders[which](out, written, count, numel, again) < 0 ||
            memcmp(indices, again, 4 * (size_t)count) != 0)
            fail("indices did not come back");
        free(out);
    }
    free(indices);
    free(again);
}

static void check_values(int which, const uint8_t *section, int64_t size, int64_t count)
{
    int64_t slots = count, bytes = (slots * level_bits[which] + 7) / 8 + scale_bytes[which] * ((slots + 63) / BLOCK);
    if (bytes > size)
        return;
    uint8_t *own = exactly((size_t)bytes), *out = exactly((size_t)bytes);
    float *values = exactly(4 * (size_t)count);
    memcpy(own, section, (size_t)bytes);
    value_decoders[which](own, count, slots, values);
    value_encoders[which](values, count, slots, out);
    value_decoders[which](out, count, slots, values);
    free(own);
    free(out);
    free(values);
}

/* What decodes must encode and decode to itself: the size in front is put right, for else hardly an input passes it. */
static void check_rice(const uint8_t *section, int64_t size, int64_t count)
{
    uint8_t *own = exactly((size_t)size);
    float *values = exactly(4 * (size_t)count), *again = exactly(4 * (size_t)count);
    memcpy(own, section, (size_t)size);
    for (int i = 0; i < 4 && i < size; i++)
        own[i] = (uint8_t)(size >> (8 * i));
    if (gk_codec_bf16_rice_decode(own, size, count, values) >= 0) {
        int64_t room = 7 + (count + 2 * BLOCK - 1) / (2 * BLOCK) + 2 * count + SLACK;
        uint8_t *out = exactly((size_t)room);
        int64_t written = gk_codec_bf16_rice_encode(values, count, out, room);
        if (written < 0 || written > room - SLACK)
            fail("values do not fit where any must");
        if (gk_codec_bf16_rice_decode(out, written, count, again) < 0)
            fail("values that were written cannot be read");
        for (int64_t i = 0; i < count; i++)
            if (memcmp(values + i, again + i, 4) != 0 && (values[i] == values[i] || again[i] == again[i]))
                fail("values did not come back");
        free(out);
    }
    free(own);
    free(values);
    free(again);
}

/* A whole payload, with the checksum put right: without that hardly an input would be looked at. */
static void check_payload(const uint8_t *bytes, int64_t size, int64_t numel, int64_t count)
{
    if (size < HEADER)
        return;
    uint8_t *payload = exactly((size_t)size);
    memcpy(payload, bytes, (size_t)size);
    int index = payload[3] & 7, code = payload[3] >> 3 & 15;
    uint32_t index_bytes = number(payload + 12);
    memcpy(payload, "\2KG", 3);
    payload[3] &= 0x7f;
    for (int i = 0; i < 4; i++) {
        payload[4 + i] = (uint8_t)(numel >> (8 * i));
        payload[8 + i] = (uint8_t)(count >> (8 * i));
    }
    if (index_bytes > size - HEADER)
        payload[12] %= (uint8_t)(size - HEADER < 255 ? size - HEADER + 1 : 255), payload[13] = payload[14] = payload[15] = 0;
    int32_t *indices = exactly(4 * (size_t)count);
    float *values = exactly(4 * (size_t)count);
    for (int64_t end = size; end >= HEADER; end = end > HEADER + 32 ? end / 2 : end - 1) { /* of some end it is right */
        uint32_t sum = gk_codec_crc32(gk_codec_crc32(0, payload, 16), payload + HEADER, end - HEADER);
        for (int i = 0; i < 4; i++)
            payload[16 + i] = (uint8_t)(sum >> (8 * i));
        int64_t found = gk_codec_read(payload, size, index, code, numel, indices, values, count);
        if (found >= 0 && found != count)
            fail("another count than the header's");
        for (int64_t i = 0; i < found; i++)
            if (indices[i] < 0 || indices[i] >= numel || (i && indices[i] <= indices[i - 1]))
                fail("indices of a payload do not ascend");
    }
    free(payload);
    free(indices);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < HEAD)
        return 0;
    int64_t left = (int64_t)size - HEAD, numel = number(data + 1) & 0x7fffffff, count = number(data + 5);
    if (numel < 1)
        numel = 1;
    count %= 8 * left + 1; /* as the header's check allows: a bit for each entry */
    if (count > numel)
        count = numel;
    uint8_t *section = exactly((size_t)left);
    memcpy(section, data + HEAD, (size_t)left);
    int which = data[0] % 9;
    if (which == 7)
        check_payload(section, left, numel, count);
    else if (which == 8)
        check_rice(section, left, count);
    else if (which < 3)
        check_indices(which, section, left, count, numel);
    else
        check_values(which - 3, section, left, count);
    free(section);
    return 0;
}

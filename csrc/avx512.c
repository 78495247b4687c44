/* Inner loops for AVX-512 (F, BW, DQ, VL: every server processor that has it). */
#include "gaussiank.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,popcnt,prefer-vector-width=512")
#endif
#include <immintrin.h>

#define GK_INLINE inline __attribute__((always_inline))
#define GK_NAME(name) gk_avx512##name
#define GK_LABEL "avx512"

static GK_INLINE __m512 gk_load(const gk_job *job, int64_t i, int kind)
{
    __m512 residual = _mm512_loadu_ps(job->residual + i);
    if (kind == GK_NONE)
        return residual;
    if (kind == GK_F32)
        return _mm512_add_ps(residual, _mm512_loadu_ps((const float *)job->grad + i));
    __m256i narrow = _mm256_loadu_si256((const __m256i *)((const uint16_t *)job->grad + i));
    if (kind == GK_BF16)
        return _mm512_add_ps(residual, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16)));
    return _mm512_add_ps(residual, _mm512_cvtph_ps(narrow));
}

static GK_INLINE __m512i gk_magnitude(__m512 entries)
{
    return _mm512_and_si512(_mm512_castps_si512(entries), _mm512_set1_epi32(GK_MAGNITUDE));
}

static GK_INLINE int gk_group_any(const gk_job *job, int64_t group, int kind, int mode)
{
    __m512i most = _mm512_setzero_si512();
    __m512i clear = _mm512_set1_epi32(job->clear);
#pragma GCC unroll 4
    for (int i = 0; i < GK_GROUP; i += 16) {
        __m512 entries = gk_load(job, group + i, kind);
        __m512i keys = gk_magnitude(entries);
        most = _mm512_max_epi32(most, keys);
        if (mode == GK_STORE)
            _mm512_storeu_ps(job->out + group + i, entries);
        if (mode == GK_STREAM)
            _mm512_stream_ps(job->out + group + i, _mm512_maskz_mov_ps(_mm512_cmple_epi32_mask(keys, clear), entries));
    }
    return _mm512_cmpgt_epi32_mask(most, _mm512_set1_epi32(job->low)) != 0;
}

/* Compress in a register and store all of it: vpcompressd to memory is 18 times slower on Zen 4 (2026-11). */
static GK_INLINE int64_t gk_pick(const gk_job *job, int64_t group, int32_t *index, float *value, int64_t found,
                                 int kind, int mode)
{
    const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    gk_job stored = {.residual = job->out};
    const gk_job *source = mode == GK_STORE ? &stored : job;
#pragma GCC unroll 4
    for (int i = 0; i < GK_GROUP; i += 16) {
        __m512 entries = gk_load(source, group + i, mode == GK_STORE ? GK_NONE : kind);
        __m512i keys = gk_magnitude(entries);
        __mmask16 hit = _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(job->low));
        __m512i places = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(group + i)), iota);
        _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(hit, places));
        _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(hit, entries));
        found += __builtin_popcount(hit);
        if (mode == GK_STORE)
            _mm512_mask_storeu_ps(job->out + group + i, _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(job->clear)),
                                  _mm512_setzero_ps());
    }
    return found;
}

static GK_INLINE void gk_lanes(const gk_job *job, int64_t begin, int64_t end, gk_sums *sums, int kind, int mode)
{
    gk_job stored = {.residual = job->out};
    const gk_job *source = mode == GK_STORE ? &stored : job;
    __m512d sum[2], square[2], absolute[2];
    __m512i most = _mm512_setzero_si512();
    for (int half = 0; half < 2; half++) {
        sum[half] = _mm512_loadu_pd(sums->sum + 8 * half);
        square[half] = _mm512_loadu_pd(sums->square + 8 * half);
        absolute[half] = _mm512_loadu_pd(sums->absolute + 8 * half);
    }
    for (int64_t i = begin; i < end; i += GK_LINE) {
        __m512 entries = gk_load(source, i, mode == GK_STORE ? GK_NONE : kind);
        most = _mm512_max_epi32(most, gk_magnitude(entries));
        for (int half = 0; half < 2; half++) {
            __m256 eight = half ? _mm512_extractf32x8_ps(entries, 1) : _mm512_castps512_ps256(entries);
            __m512d wide = _mm512_cvtps_pd(eight);
            sum[half] = _mm512_add_pd(sum[half], wide);
            square[half] = _mm512_add_pd(square[half], _mm512_mul_pd(wide, wide));
            absolute[half] = _mm512_add_pd(absolute[half], _mm512_abs_pd(wide));
        }
    }
    for (int half = 0; half < 2; half++) {
        _mm512_storeu_pd(sums->sum + 8 * half, sum[half]);
        _mm512_storeu_pd(sums->square + 8 * half, square[half]);
        _mm512_storeu_pd(sums->absolute + 8 * half, absolute[half]);
    }
    int32_t largest = _mm512_reduce_max_epi32(most);
    sums->max_bits = largest > sums->max_bits ? largest : sums->max_bits;
}

static int64_t GK_NAME(filter)(const int32_t *keys, int64_t count, int32_t low, int32_t *out)
{
    int64_t found = 0, i = 0;
    __m512i limit = _mm512_set1_epi32(low);
    for (; i + 16 <= count; i += 16) {
        __m512i line = _mm512_loadu_si512(keys + i);
        __mmask16 hit = _mm512_cmpgt_epi32_mask(line, limit);
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(hit, line));
        found += __builtin_popcount(hit);
    }
    for (; i < count; i++)
        if (keys[i] > low)
            out[found++] = keys[i];
    return found;
}

#include "sweep.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

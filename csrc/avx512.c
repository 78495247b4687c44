/* Inner loops for AVX-512 (F, BW, DQ, VL: every server processor that has it). */
#include "gaussiank.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,popcnt,prefer-vector-width=512")
#endif
#include <immintrin.h>

#define GK_INLINE inline __attribute__((always_inline))
#define GK_NAME(name) gk_avx512##name
#define GK_PAST_CACHE GK_STREAM
#define GK_ASK_BOTH 0
#define GK_BY_LINE 1
#define GK_LABEL "avx512"

static GK_INLINE float gk_sum(const gk_job *job, int64_t i, int kind);

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

static GK_INLINE __m256 gk_load_half(const gk_job *job, int64_t i, int kind)
{
    __m256 residual = _mm256_loadu_ps(job->residual + i);
    if (kind == GK_NONE)
        return residual;
    if (kind == GK_F32)
        return _mm256_add_ps(residual, _mm256_loadu_ps((const float *)job->grad + i));
    __m128i narrow = _mm_loadu_si128((const __m128i *)((const uint16_t *)job->grad + i));
    if (kind == GK_BF16)
        return _mm256_add_ps(residual, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16)));
    return _mm256_add_ps(residual, _mm256_cvtph_ps(narrow));
}

/* By half lines: Zen 4 reads and writes memory 7 % faster by 32 bytes than by 64 (2026-11), and the sum needs no more.
   Returns the larger magnitude of entries i and i + 8, for each i. */
static GK_INLINE __m256i gk_line_most(const gk_job *job, int64_t line, int kind, int mode)
{
    __m256i most = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t i = line; i < line + GK_LINE; i += 8) {
        __m256 entries = gk_load_half(job, i, kind);
        __m256i keys = _mm256_and_si256(_mm256_castps_si256(entries), _mm256_set1_epi32(GK_MAGNITUDE));
        most = _mm256_max_epi32(most, keys);
        if (mode == GK_STORE)
            _mm256_storeu_ps(job->out + i, entries);
        if (mode == GK_STREAM)
            _mm256_stream_ps(job->out + i,
                             _mm256_maskz_mov_ps(_mm256_cmple_epi32_mask(keys, _mm256_set1_epi32(job->clear)), entries));
    }
    return most;
}

static GK_INLINE int gk_group_any(const gk_job *job, int64_t group, int kind, int mode)
{
    __m256i most = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int64_t line = group; line < group + GK_GROUP; line += GK_LINE)
        most = _mm256_max_epi32(most, gk_line_most(job, line, kind, mode));
    return _mm256_cmpgt_epi32_mask(most, _mm256_set1_epi32(job->low)) != 0;
}

static GK_INLINE int gk_line_any(const gk_job *job, int64_t line, int kind, int mode)
{
    return _mm256_cmpgt_epi32_mask(gk_line_most(job, line, kind, mode), _mm256_set1_epi32(job->low)) != 0;
}

/* Collect the hits of one line and clear them, without a branch and without a loop. */
static GK_INLINE int64_t gk_pick_line(const gk_job *job, int64_t line, int32_t *index, float *value, int64_t found,
                                      int kind, int mode)
{
    const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const gk_job stored = {.residual = job->out};
    __m512 entries = mode == GK_STORE ? gk_load(&stored, line, GK_NONE) : gk_load(job, line, kind);
    __m512i keys = gk_magnitude(entries), places = _mm512_add_epi32(_mm512_set1_epi32((int32_t)line), iota);
    __mmask16 hits = _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(job->low));
    _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(hits, places));
    _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(hits, entries));
    if (mode == GK_STORE)
        _mm512_storeu_ps(job->out + line,
                         _mm512_maskz_mov_ps(_mm512_cmple_epi32_mask(keys, _mm512_set1_epi32(job->clear)), entries));
    return found + __builtin_popcount(hits);
}

static GK_INLINE uint64_t gk_group_mask(const gk_job *job, int64_t group, int kind)
{
    uint64_t mask = 0;
#pragma GCC unroll 4
    for (int i = 0; i < GK_GROUP; i += GK_LINE)
        mask |= (uint64_t)_mm512_cmpgt_epi32_mask(gk_magnitude(gk_load(job, group + i, kind)), _mm512_set1_epi32(job->low)) << i;
    return mask;
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

static int64_t GK_NAME(band)(const int32_t *bits, int64_t count, int32_t low, int32_t high, int32_t *out,
                             int64_t *above)
{
    int64_t found = 0, i = 0, over = 0;
    for (; i + GK_LINE <= count; i += GK_LINE) {
        __m512i keys = gk_magnitude(_mm512_castsi512_ps(_mm512_loadu_si512(bits + i)));
        __mmask16 larger = _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(high));
        __mmask16 inside = _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(low)) & ~larger;
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(inside, keys));
        found += __builtin_popcount(inside);
        over += __builtin_popcount(larger);
    }
    return gk_band_tail(bits, i, count, low, high, out, found, over, above);
}

/* Compress in a register and store all of it: vpcompressd to memory is 18 times slower on Zen 4 (2026-11). */
static int64_t GK_NAME(choose)(const gk_choice *choice, int64_t begin, int64_t end, int64_t taken, int32_t *wrong,
                               int64_t *wrongs)
{
    const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    int64_t at = begin, bad = *wrongs;
    for (; at + GK_LINE <= end && taken + GK_LINE <= choice->k; at += GK_LINE) {
        __m512 entries = _mm512_loadu_ps(choice->value + at);
        __m512i keys = gk_magnitude(entries);
        __mmask16 take = _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(choice->floor));
        __mmask16 mend = take ^ _mm512_cmpgt_epi32_mask(keys, _mm512_set1_epi32(choice->clear));
        _mm512_storeu_si512(choice->index_out + taken,
                            _mm512_maskz_compress_epi32(take, _mm512_loadu_si512(choice->index + at)));
        _mm512_storeu_ps(choice->value_out + taken, _mm512_maskz_compress_ps(take, entries));
        taken += __builtin_popcount(take);
        if (mend) {
            __m512i places = _mm512_add_epi32(_mm512_set1_epi32((int32_t)at), iota);
            _mm512_storeu_si512(wrong + bad, _mm512_maskz_compress_epi32(mend, places));
            bad += __builtin_popcount(mend);
        }
    }
    *wrongs = bad;
    return gk_choose_tail(choice, at, end, taken, wrong, wrongs);
}

static void GK_NAME(drain)(float *tile, int64_t count, float factor, float *out, int32_t stream)
{
    int64_t i = 0;
    for (; i + GK_LINE <= count; i += GK_LINE) {
        __m512 line = _mm512_mul_ps(_mm512_loadu_ps(tile + i), _mm512_set1_ps(factor));
        _mm512_storeu_ps(tile + i, _mm512_setzero_ps());
        if (stream)
            _mm512_stream_ps(out + i, line);
        else
            _mm512_storeu_ps(out + i, line);
    }
    for (; i < count; i++) {
        out[i] = tile[i] * factor;
        tile[i] = 0.0f;
    }
}

#include "sweep.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

/* Inner loops for AVX2 with F16C. The rest of the build knows nothing of them, so the library runs anywhere. */
#include "gaussiank.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,bmi,popcnt")
#endif
#include <immintrin.h>

#define GK_INLINE inline __attribute__((always_inline))
#define GK_NAME(name) gk_avx2##name
#define GK_PAST_CACHE GK_STREAM
#define GK_ASK_BOTH 1
#define GK_BY_MASK 1
#define GK_LABEL "avx2"

static GK_INLINE float gk_sum(const gk_job *job, int64_t i, int kind);

static GK_INLINE __m256 gk_load(const gk_job *job, int64_t i, int kind)
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

static GK_INLINE __m256i gk_magnitude(__m256 entries)
{
    return _mm256_and_si256(_mm256_castps_si256(entries), _mm256_set1_epi32(GK_MAGNITUDE));
}

static GK_INLINE int gk_mask(__m256i hit) { return _mm256_movemask_ps(_mm256_castsi256_ps(hit)); }

static GK_INLINE __m256i gk_above(__m256i keys, int32_t limit)
{
    return _mm256_cmpgt_epi32(keys, _mm256_set1_epi32(limit));
}

static GK_INLINE void gk_put(const gk_job *job, int64_t i, __m256 entries, __m256i keys, int mode)
{
    if (mode == GK_STORE)
        _mm256_storeu_ps(job->out + i, entries);
    if (mode == GK_STREAM)
        _mm256_stream_ps(job->out + i, _mm256_andnot_ps(_mm256_castsi256_ps(gk_above(keys, job->clear)), entries));
}

static GK_INLINE int gk_group_any(const gk_job *job, int64_t group, int kind, int mode)
{
    __m256i most = _mm256_setzero_si256();
    for (int64_t i = group; i < group + GK_GROUP; i += 8) {
        __m256 entries = gk_load(job, i, kind);
        __m256i keys = gk_magnitude(entries);
        most = _mm256_max_epi32(most, keys);
        gk_put(job, i, entries, keys, mode);
    }
    __m256i hit = gk_above(most, job->low);
    return !_mm256_testz_si256(hit, hit);
}

static GK_INLINE uint64_t gk_group_hits(const gk_job *job, int64_t group, int kind, int mode)
{
    uint64_t mask = 0;
#pragma GCC unroll 8
    for (int i = 0; i < GK_GROUP; i += 8) {
        __m256 entries = gk_load(job, group + i, kind);
        __m256i keys = gk_magnitude(entries);
        mask |= (uint64_t)(unsigned)gk_mask(gk_above(keys, job->low)) << i;
        gk_put(job, group + i, entries, keys, mode);
    }
    return mask;
}

static GK_INLINE uint64_t gk_group_mask(const gk_job *job, int64_t group, int kind)
{
    return gk_group_hits(job, group, kind, GK_READ);
}

/* Which lanes a mask of eight selects, in order, a byte each: what AVX-512 has an instruction for. */
#define GK_PLACE(mask, bit)                                                                                            \
    ((uint64_t)((mask) >> (bit) & 1) * (bit) << 8 * __builtin_popcount((mask) & ((1 << (bit)) - 1)))
#define GK_PLACES(mask)                                                                                                \
    GK_PLACE(mask, 0) | GK_PLACE(mask, 1) | GK_PLACE(mask, 2) | GK_PLACE(mask, 3) | GK_PLACE(mask, 4) |                \
        GK_PLACE(mask, 5) | GK_PLACE(mask, 6) | GK_PLACE(mask, 7)
#define GK_PLACES4(mask) GK_PLACES(mask), GK_PLACES(mask + 1), GK_PLACES(mask + 2), GK_PLACES(mask + 3)
#define GK_PLACES16(mask) GK_PLACES4(mask), GK_PLACES4(mask + 4), GK_PLACES4(mask + 8), GK_PLACES4(mask + 12)
#define GK_PLACES64(mask) GK_PLACES16(mask), GK_PLACES16(mask + 16), GK_PLACES16(mask + 32), GK_PLACES16(mask + 48)
static const uint64_t gk_places[256] = {GK_PLACES64(0), GK_PLACES64(64), GK_PLACES64(128), GK_PLACES64(192)};

static GK_INLINE __m256i gk_order(int mask)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(gk_places + mask)));
}

static GK_INLINE void gk_lanes(const gk_job *job, int64_t begin, int64_t end, gk_sums *sums, int kind, int mode)
{
    gk_job stored = {.residual = job->out};
    const gk_job *source = mode == GK_STORE ? &stored : job;
    __m256d sum[4], square[4], absolute[4];
    const __m256d sign = _mm256_set1_pd(-0.0);
    __m256i most = _mm256_setzero_si256();
    for (int part = 0; part < 4; part++) {
        sum[part] = _mm256_loadu_pd(sums->sum + 4 * part);
        square[part] = _mm256_loadu_pd(sums->square + 4 * part);
        absolute[part] = _mm256_loadu_pd(sums->absolute + 4 * part);
    }
    for (int64_t i = begin; i < end; i += GK_LINE)
        for (int half = 0; half < 2; half++) {
            __m256 entries = gk_load(source, i + 8 * half, mode == GK_STORE ? GK_NONE : kind);
            most = _mm256_max_epi32(most, gk_magnitude(entries));
            for (int part = 2 * half; part < 2 * half + 2; part++) {
                __m128 four = part % 2 ? _mm256_extractf128_ps(entries, 1) : _mm256_castps256_ps128(entries);
                __m256d wide = _mm256_cvtps_pd(four);
                sum[part] = _mm256_add_pd(sum[part], wide);
                square[part] = _mm256_add_pd(square[part], _mm256_mul_pd(wide, wide));
                absolute[part] = _mm256_add_pd(absolute[part], _mm256_andnot_pd(sign, wide));
            }
        }
    for (int part = 0; part < 4; part++) {
        _mm256_storeu_pd(sums->sum + 4 * part, sum[part]);
        _mm256_storeu_pd(sums->square + 4 * part, square[part]);
        _mm256_storeu_pd(sums->absolute + 4 * part, absolute[part]);
    }
    int32_t keys[8];
    _mm256_storeu_si256((__m256i *)keys, most);
    for (int lane = 0; lane < 8; lane++)
        sums->max_bits = keys[lane] > sums->max_bits ? keys[lane] : sums->max_bits;
}

static int64_t GK_NAME(band)(const int32_t *bits, int64_t count, int32_t low, int32_t high, int32_t *out,
                             int64_t *above)
{
    int64_t found = 0, i = 0, over = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i keys = gk_magnitude(_mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)(bits + i))));
        __m256i larger = gk_above(keys, high);
        int inside = gk_mask(_mm256_andnot_si256(larger, gk_above(keys, low)));
        _mm256_storeu_si256((__m256i *)(out + found), _mm256_permutevar8x32_epi32(keys, gk_order(inside)));
        found += __builtin_popcount((unsigned)inside);
        over += __builtin_popcount((unsigned)gk_mask(larger));
    }
    return gk_band_tail(bits, i, count, low, high, out, found, over, above);
}

static int64_t GK_NAME(choose)(const gk_choice *choice, int64_t begin, int64_t end, int64_t taken, int32_t *wrong,
                               int64_t *wrongs)
{
    int64_t at = begin, bad = *wrongs;
    for (; at + 8 <= end && taken + 8 <= choice->k; at += 8) {
        __m256 entries = _mm256_loadu_ps(choice->value + at);
        __m256i keys = gk_magnitude(entries), indices = _mm256_loadu_si256((const __m256i *)(choice->index + at));
        int take = gk_mask(gk_above(keys, choice->floor)), mend = take ^ gk_mask(gk_above(keys, choice->clear));
        __m256i order = gk_order(take);
        _mm256_storeu_si256((__m256i *)(choice->index_out + taken), _mm256_permutevar8x32_epi32(indices, order));
        _mm256_storeu_ps(choice->value_out + taken, _mm256_permutevar8x32_ps(entries, order));
        taken += __builtin_popcount((unsigned)take);
        if (mend) {
            __m256i places = _mm256_add_epi32(gk_order(mend), _mm256_set1_epi32((int32_t)at));
            _mm256_storeu_si256((__m256i *)(wrong + bad), places);
            bad += __builtin_popcount((unsigned)mend);
        }
    }
    *wrongs = bad;
    return gk_choose_tail(choice, at, end, taken, wrong, wrongs);
}

static void GK_NAME(drain)(float *tile, int64_t count, float factor, float *out, int32_t stream)
{
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 line = _mm256_mul_ps(_mm256_loadu_ps(tile + i), _mm256_set1_ps(factor));
        _mm256_storeu_ps(tile + i, _mm256_setzero_ps());
        if (stream)
            _mm256_stream_ps(out + i, line);
        else
            _mm256_storeu_ps(out + i, line);
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

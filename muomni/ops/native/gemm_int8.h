// Products of 16 rows of int8 weights with int8 activations. Within a group of 64 inputs the sum is an
// exact integer, so the instructions that make it may differ between one token and many; groups are
// then added in fp32 one after the other, times the group's scale. A token's result is therefore the
// same bit by bit whatever its company.
//
// The VNNI instruction multiplies unsigned by signed bytes. Weights are made unsigned on the way by
// flipping their top bit, which adds 128 to each; `sum128` holds what that adds to a group, negated.
#pragma once

#include <algorithm>

#include "acts.h"
#include "gemm_float.h"

namespace muomni {

#if defined(MUOMNI_AVX512)

MUOMNI_INLINE __m512i flipped(const int8_t* p, __mmask64 inputs) {
    return _mm512_xor_si512(_mm512_maskz_loadu_epi8(inputs, p), _mm512_set1_epi8(-128));
}

MUOMNI_INLINE __m512i flipped(const int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
}

// Sums across the lanes of 16 registers that `row` makes one by one: lane j is the sum of row(j).
template <class Row>
MUOMNI_INLINE __m512i sum_rows_int(Row&& row) {
    auto pair = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    auto four = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    };
    auto fold = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
    };
    auto quad = [&](int j) { return four(pair(row(j), row(j + 1)), pair(row(j + 2), row(j + 3))); };
    const __m512i first = fold(quad(0), quad(4));
    return fold(first, fold(quad(8), quad(12)));
}

// One token: weights stream past once.
inline void int8_one(const int8_t* const* rows, const Acts& acts, int64_t t, int64_t width, float* out) {
    const int8_t* q = acts.q(t);
    const float* scale = acts.scale(t);
    const int32_t* sum128 = acts.sum128(t);
    __m512 acc = _mm512_setzero_ps();
    auto group = [&](int64_t g, auto&& weights) {
        const __m512i a = _mm512_loadu_si512(q + g * GROUP);
        const __m512i dots = sum_rows_int([&](int r) {
            return _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights(rows[r] + g * GROUP), a);
        });
        const __m512i exact = _mm512_add_epi32(dots, _mm512_set1_epi32(sum128[g]));
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(scale[g]), acc);
    };
    const int64_t whole = width / GROUP;
    for (int64_t g = 0; g < whole; g++) group(g, [](const int8_t* p) { return flipped(p); });
    if (whole < acts.groups) {
        const __mmask64 inputs = (uint64_t(1) << (width - whole * GROUP)) - 1;
        group(whole, [&](const int8_t* p) { return flipped(p, inputs); });
    }
    _mm512_storeu_ps(out, acc);
}

// Turns 16 rows × 64 inputs so that register k holds inputs 4k .. 4k+3 of all 16 rows, a row per lane.
MUOMNI_INLINE void transpose_group(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Now r[4b + j] has column 4c + j of rows 4b .. 4b+3 in its 128-bit part c.
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
        const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) r[i] = t[i];
}

// The 16 rows turned group by group, once for all tokens: (groups, 16 registers).
inline void fill_panel(const int8_t* const* rows, int64_t width, int64_t groups, uint8_t* panel) {
    for (int64_t g = 0; g < groups; g++) {
        const int64_t left = width - g * GROUP;
        const __mmask64 inputs = left >= GROUP ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
        __m512i r[16];
        for (int i = 0; i < 16; i++) r[i] = flipped(rows[i] + g * GROUP, inputs);
        transpose_group(r);
        for (int i = 0; i < 16; i++) _mm512_store_si512(panel + (g * 16 + i) * 64, r[i]);
    }
}

// sums += w (unsigned bytes, 16 rows × 4 inputs) · the same 4 signed inputs for every row. As an intrinsic,
// GCC 12 spills a register in the loop below and halves its speed; the instruction itself takes the inputs
// from memory.
MUOMNI_INLINE void dot4(__m512i& sums, __m512i w, const int8_t* inputs) {
    using Four = int8_t[4];
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(w), "m"(*reinterpret_cast<const Four*>(inputs)));
}

// T tokens against a panel: lanes are rows, so nothing is added across lanes. Meanwhile `lines` cache lines
// per group are fetched from each of `next`, the rows of the block to come: memory works while we compute.
template <int T>
void int8_tile(const uint8_t* panel, const Acts& acts, int64_t token, const int8_t* const* next, int64_t ahead,
               int lines, float (*out)[ROWS]) {
    const int8_t* q = acts.q(token);
    const float* scale = acts.scale(token);
    const int32_t* sum128 = acts.sum128(token);
    const int64_t padded = acts.padded, groups = acts.groups;
    __m512 acc[T];
    for (int t = 0; t < T; t++) acc[t] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++) {
        __m512i dots[T];
        for (int t = 0; t < T; t++) dots[t] = _mm512_set1_epi32(sum128[t * groups + g]);
        for (int r = 0; r < lines; r++) prefetch(next[r] + ahead + g * GROUP);
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
            const __m512i w = _mm512_load_si512(panel + (g * 16 + k) * 64);
            for (int t = 0; t < T; t++) dot4(dots[t], w, q + t * padded + g * GROUP + 4 * k);
        }
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), _mm512_set1_ps(scale[t * groups + g]), acc[t]);
    }
    for (int t = 0; t < T; t++) _mm512_storeu_ps(out[t], acc[t]);
}

// Calls sink(token, 16 products) for every token. `panel` is scratch of (padded width) × 16 bytes.
template <class Sink>
void int8_block(const WeightRows<int8_t>& weights, const Acts& acts, int64_t tokens, uint8_t* panel, Sink&& sink) {
    const int8_t* const* rows = weights.rows;
    const int64_t width = weights.width, ahead = weights.ahead;
    float out[8][ROWS];
    if (tokens <= 2) {  // turning the rows would cost more than it saves
        for (int64_t t = 0; t < tokens; t++) {
            int8_one(rows, acts, t, width, out[0]);
            sink(t, out[0]);
        }
        return;
    }
    fill_panel(rows, width, acts.groups, panel);
    const int lines = tokens > 8 ? (tokens > 16 ? 2 : 8) : ROWS;  // of each tile, until all rows are fetched
    int fetched = 0;
    for (int64_t t = 0, done; t < tokens; t += done) {
        const int64_t left = tokens - t;
        const int8_t* const* next = rows + fetched;
        const int now = std::min(lines, ROWS - fetched);
        fetched += now;
        done = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (done == 8) int8_tile<8>(panel, acts, t, next, ahead, now, out);
        else if (done == 4) int8_tile<4>(panel, acts, t, next, ahead, now, out);
        else if (done == 2) int8_tile<2>(panel, acts, t, next, ahead, now, out);
        else int8_tile<1>(panel, acts, t, next, ahead, now, out);
        for (int i = 0; i < done; i++) sink(t + i, out[i]);
    }
}

#else

#if defined(MUOMNI_AVX2)

// |w| · (a with w's sign), added up to 8 lanes: both factors are at most 127, so 16-bit pairs cannot overflow.
MUOMNI_INLINE __m256i group_dots(const int8_t* w, const int8_t* a) {
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < GROUP; i += 32) {
        const __m256i x = _mm256_loadu_si256((const __m256i*)(w + i));
        const __m256i y = _mm256_loadu_si256((const __m256i*)(a + i));
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return total;
}

// Exact sums of one group of 16 rows.
MUOMNI_INLINE void group_sums(const int8_t* const* rows, int64_t at, const int8_t* a, int32_t* sums) {
    for (int r = 0; r < ROWS; r += 8) {
        auto pair = [&](int i) {
            return _mm256_hadd_epi32(group_dots(rows[r + i] + at, a), group_dots(rows[r + i + 1] + at, a));
        };
        const __m256i x = _mm256_hadd_epi32(pair(0), pair(2)), y = _mm256_hadd_epi32(pair(4), pair(6));
        const __m256i low = _mm256_permute2x128_si256(x, y, 0x20), high = _mm256_permute2x128_si256(x, y, 0x31);
        _mm256_storeu_si256((__m256i*)(sums + r), _mm256_add_epi32(low, high));
    }
}

#else

MUOMNI_INLINE void group_sums(const int8_t* const* rows, int64_t at, const int8_t* a, int32_t* sums) {
    for (int r = 0; r < ROWS; r++) {
        int32_t sum = 0;
        for (int i = 0; i < GROUP; i++) sum += int32_t(rows[r][at + i]) * int32_t(a[i]);
        sums[r] = sum;
    }
}

#endif

template <class Sink>
void int8_block(const WeightRows<int8_t>& weights, const Acts& acts, int64_t tokens, uint8_t*, Sink&& sink) {
    const int8_t* const* rows = weights.rows;
    const int64_t whole = weights.width / GROUP, rest = weights.width % GROUP;
    for (int64_t t = 0; t < tokens; t++) {
        const int8_t* q = acts.q(t);
        const float* scale = acts.scale(t);
        float out[ROWS] = {};
        int32_t sums[ROWS];
        for (int64_t g = 0; g < whole; g++) {
            group_sums(rows, g * GROUP, q + g * GROUP, sums);
            for (int r = 0; r < ROWS; r++) out[r] += float(sums[r]) * scale[g];
        }
        if (rest) {
            for (int r = 0; r < ROWS; r++) {
                int32_t sum = 0;
                for (int64_t i = whole * GROUP; i < weights.width; i++) sum += int32_t(rows[r][i]) * int32_t(q[i]);
                out[r] += float(sum) * scale[whole];
            }
        }
        sink(t, out);
    }
}

#endif

}  // namespace muomni

// Products of 16 rows of bfloat16 weights with some tokens. Where the processor multiplies bfloat16 pairs,
// activations are rounded to bfloat16 too, as torch does in such a model; elsewhere they stay floats. Sums are
// fp32. As in gemm_float.h a product is added up in the same order whatever the number of tokens.
#pragma once

#include "gemm_float.h"

namespace muomni {

#if defined(MUOMNI_BF16)

// R rows times T tokens: sums[t * ROWS + r].
template <int R, int T>
MUOMNI_INLINE void dot_tile_bf16(const WeightRows<bf16>& weights, int first, const bf16* x, int64_t padded, int fetch,
                                 vec* sums) {
    const bf16* const* rows = weights.rows + first;
    __m512 acc[T][R];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) acc[t][r] = _mm512_setzero_ps();
    __m512i w[R];
    auto add = [&](int64_t k) {
        for (int t = 0; t < T; t++) {
            __m512i v = _mm512_loadu_si512(x + t * padded + k);
            asm("" : "+v"(v));  // see keep()
            for (int r = 0; r < R; r++) acc[t][r] = _mm512_dpbf16_ps(acc[t][r], (__m512bh)w[r], (__m512bh)v);
        }
    };
    const int64_t width = weights.width, whole = width / 32 * 32;
    for (int64_t k = 0; k < whole; k += 32) {
        for (int r = 0; r < R; r++) w[r] = _mm512_loadu_si512(rows[r] + k);
        for (int r = 0; r < fetch; r++) prefetch(rows[r] + weights.ahead + k);
        add(k);
    }
    if (whole < width) {
        const __mmask32 inputs = (uint32_t(1) << (width - whole)) - 1;
        for (int r = 0; r < R; r++) w[r] = _mm512_maskz_loadu_epi16(inputs, rows[r] + whole);
        add(whole);
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) sums[t * ROWS + r] = (vec)acc[t][r];
}

template <int R, int T>
void bf16_tile(const WeightRows<bf16>& weights, const bf16* x, int64_t padded, int fetch, float (*out)[ROWS]) {
    vec sums[T * ROWS];
    for (int r = 0; r < ROWS; r += R) dot_tile_bf16<R, T>(weights, r, x, padded, fetch, sums + r);
    for (int t = 0; t < T; t++) store(out[t], sum_rows(sums + t * ROWS));
}

// Calls sink(token, 16 products) for every token.
template <class Sink>
void bf16_block(const WeightRows<bf16>& weights, const Acts& acts, int64_t tokens, Sink&& sink) {
    constexpr int T = 4, R = 4;
    float out[T][ROWS];
    const int fetch = tokens < 2 * T ? 4 : tokens < 4 * T ? 2 : 1;
    int64_t t = 0;
    for (; t + T <= tokens; t += T) {
        bf16_tile<R, T>(weights, acts.halves(t), acts.padded, t < R * T ? fetch : 0, out);
        for (int i = 0; i < T; i++) sink(t + i, out[i]);
    }
    for (; t < tokens; t++) {
        bf16_tile<16, 1>(weights, acts.halves(t), acts.padded, 0, out);
        sink(t, out[0]);
    }
}

#else

template <class Sink>
void bf16_block(const WeightRows<bf16>& weights, const Acts& acts, int64_t tokens, Sink&& sink) {
    float_block(weights, acts, tokens, sink);
}

#endif

}  // namespace muomni

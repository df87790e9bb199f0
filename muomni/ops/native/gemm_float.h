// Products of 16 rows of a weight matrix (float, bfloat16, or int8 with float activations) with some
// tokens. Every product is added up lane by lane along the inputs and then across lanes, in this order
// whatever the number of tokens: a token's result does not depend on its company.
#pragma once

#include "acts.h"

namespace muomni {

constexpr int ROWS = 16;  // outputs per block, the unit of work of a thread

// R rows times T tokens: sums[t * stride + r].
template <int R, int T, class W>
MUOMNI_INLINE void dot_tile(const W* const* rows, const float* x, int64_t padded, int64_t width, vec* sums, int stride) {
    vec acc[T][R];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) acc[t][r] = splat(0.0f);
    const int64_t whole = width / LANES * LANES;
    auto add = [&](int64_t k, const vec* w) {
        for (int t = 0; t < T; t++) {
            const vec v = load(x + t * padded + k);
            for (int r = 0; r < R; r++) acc[t][r] += w[r] * v;
        }
    };
    vec w[R];
    for (int64_t k = 0; k < whole; k += LANES) {
        for (int r = 0; r < R; r++) w[r] = load(rows[r] + k);
        add(k, w);
    }
    if (whole < width) {
        for (int r = 0; r < R; r++) w[r] = load_some(rows[r] + whole, width - whole);
        add(whole, w);
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) sums[t * stride + r] = acc[t][r];
}

template <int T, class W>
void float_tile(const W* const* rows, const float* x, int64_t padded, int64_t width, float (*out)[ROWS]) {
    constexpr int R = 4;
    vec sums[T * ROWS];
    for (int r = 0; r < ROWS; r += R) dot_tile<R, T>(rows + r, x, padded, width, sums + r, ROWS);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < ROWS; r += LANES) store(out[t] + r, sum_rows(sums + t * ROWS + r));
}

// Calls sink(token, 16 products) for every token.
template <class W, class Sink>
void float_block(const W* const* rows, const Acts& acts, int64_t tokens, int64_t width, Sink&& sink) {
    constexpr int T = LANES == 16 ? 4 : 2;  // R · T accumulators fill half the registers or more
    float out[T][ROWS];
    int64_t t = 0;
    for (; t + T <= tokens; t += T) {
        float_tile<T>(rows, acts.floats(t), acts.padded, width, out);
        for (int i = 0; i < T; i++) sink(t + i, out[i]);
    }
    for (; t < tokens; t++) {
        float_tile<1>(rows, acts.floats(t), acts.padded, width, out);
        sink(t, out[0]);
    }
}

}  // namespace muomni

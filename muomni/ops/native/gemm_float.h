// Products of 16 rows of a weight matrix (float, bfloat16, or int8 with float activations) with some
// tokens. Every product is added up lane by lane along the inputs and then across lanes, in this order
// whatever the number of tokens: a token's result does not depend on its company.
#pragma once

#include "acts.h"

namespace muomni {

constexpr int ROWS = 16;  // outputs per block, the unit of work of a thread

// Rows of weights and where the rows of the block to come lie behind them.
template <class W>
struct WeightRows {
    const W* const* rows;
    int64_t width, ahead;
};

// R rows times T tokens: sums[t * ROWS + r]. Meanwhile the next block's first `fetch` of the R rows are fetched.
template <int R, int T, class W>
MUOMNI_INLINE void dot_tile(const WeightRows<W>& weights, int first, const float* x, int64_t padded, int fetch,
                            vec* sums) {
    const W* const* rows = weights.rows + first;
    vec acc[T][R];
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) acc[t][r] = splat(0.0f);
    const int64_t width = weights.width, whole = width / LANES * LANES;
    vec w[R];
    auto add = [&](int64_t k) {
        for (int t = 0; t < T; t++) {
            vec v = load(x + t * padded + k);
            keep(v);
            for (int r = 0; r < R; r++) acc[t][r] += w[r] * v;
        }
    };
    for (int64_t k = 0; k < whole; k += LANES) {
        for (int r = 0; r < R; r++) w[r] = load(rows[r] + k);
        for (int r = 0; r < fetch; r++) prefetch(rows[r] + weights.ahead + k);
        add(k);
    }
    if (whole < width) {
        for (int r = 0; r < R; r++) w[r] = load_some(rows[r] + whole, width - whole);
        add(whole);
    }
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) sums[t * ROWS + r] = acc[t][r];
}

// The 16 rows with T tokens, R rows at a time.
template <int R, int T, class W>
void float_tile(const WeightRows<W>& weights, const float* x, int64_t padded, int fetch, float (*out)[ROWS]) {
    vec sums[T * ROWS];
    for (int r = 0; r < ROWS; r += R) dot_tile<R, T>(weights, r, x, padded, fetch, sums + r);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < ROWS; r += LANES) store(out[t] + r, sum_rows(sums + t * ROWS + r));
}

// Calls sink(token, 16 products) for every token.
template <class W, class Sink>
void float_block(const WeightRows<W>& weights, const Acts& acts, int64_t tokens, Sink&& sink) {
    // R · T accumulators fill half the registers. A single token takes as many rows as it can: each is a
    // stream from memory.
    constexpr int T = LANES == 16 ? 4 : 2, R = 4, R_ALONE = LANES == 16 ? 16 : 8;
    float out[T][ROWS];
    const int fetch = tokens < 2 * T ? 4 : tokens < 4 * T ? 2 : 1;
    int64_t t = 0;
    for (; t + T <= tokens; t += T) {
        float_tile<R, T>(weights, acts.floats(t), acts.padded, t < R * T ? fetch : 0, out);
        for (int i = 0; i < T; i++) sink(t + i, out[i]);
    }
    for (; t < tokens; t++) {
        float_tile<R_ALONE, 1>(weights, acts.floats(t), acts.padded, 0, out);
        sink(t, out[0]);
    }
}

}  // namespace muomni

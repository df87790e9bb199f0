// Norm, rotation and attention of one token's heads, in fp32 over a cache of float or bfloat16.
// What is computed for a token depends on its position and the cache only, so it does not matter in
// which batch or chunk the token comes.
#pragma once

#include "vec.h"

namespace muomni {

// out = x / sqrt(mean(x²) + eps) · weight; out may be x.
inline void rms_norm(const float* x, const float* weight, int64_t width, float eps, float* out) {
    const int64_t whole = width / LANES * LANES;
    vec squares = splat(0.0f);
    for (int64_t i = 0; i < whole; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (int64_t i = whole; i < width; i++) total += x[i] * x[i];
    const float inverse = 1.0f / std::sqrt(total / float(width) + eps);
    for (int64_t i = 0; i < whole; i += LANES) store(out + i, load(x + i) * inverse * load(weight + i));
    for (int64_t i = whole; i < width; i++) out[i] = x[i] * inverse * weight[i];
}

// Turns the pairs (x[i], x[i + half]) by a position's angles.
inline void rotate(float* x, const float* cos, const float* sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

// scores[p] = q · keys[p] for p < count; LANES keys at a time so that adding across lanes is shared. Meanwhile
// `ahead`, count vectors that are needed next, comes from memory; null when it is there already.
template <class C>
void attention_scores(const float* q, const C* keys, const C* ahead, int64_t count, int64_t head_dim, float* scores) {
    const int64_t whole = head_dim / LANES * LANES;
    constexpr int64_t line = 64 / sizeof(C);
    for (int64_t p = 0; p < count; p += LANES) {
        if (ahead)
            for (int64_t i = 0; i < LANES * head_dim; i += line) prefetch(ahead + p * head_dim + i);
        vec acc[LANES];
        const C* rows[LANES];
        for (int j = 0; j < LANES; j++) {
            acc[j] = splat(0.0f);
            rows[j] = keys + (p + j < count ? p + j : count - 1) * head_dim;
        }
        for (int64_t i = 0; i < whole; i += LANES) {
            const vec v = load(q + i);
            for (int j = 0; j < LANES; j++) acc[j] += v * load(rows[j] + i);
        }
        if (whole < head_dim) {
            const vec v = load_some(q + whole, head_dim - whole);
            for (int j = 0; j < LANES; j++) acc[j] += v * load_some(rows[j] + whole, head_dim - whole);
        }
        store(scores + p, sum_rows(acc));
    }
}

// In place, count values; `scores` has room for a whole vector more, which ends as (almost) zeros.
inline void softmax(float* scores, int64_t count) {
    for (int64_t p = count; p < round_up(count, LANES); p++) scores[p] = -1e30f;
    vec top = load(scores);
    for (int64_t p = LANES; p < count; p += LANES) top = maximum(top, load(scores + p));
    const float largest = maximum(top);
    vec total = splat(0.0f);
    for (int64_t p = 0; p < count; p += LANES) {
        const vec e = exponential(load(scores + p) - largest);
        store(scores + p, e);
        total += e;
    }
    const float inverse = 1.0f / sum(total);
    for (int64_t p = 0; p < count; p += LANES) store(scores + p, load(scores + p) * inverse);
}

// out[0 .. N·LANES) = Σ weights[p] · values[p].
template <int N, class C>
MUOMNI_INLINE void weighted_sum(const float* weights, const C* values, int64_t count, int64_t head_dim, float* out) {
    vec acc[N];
    for (int i = 0; i < N; i++) acc[i] = splat(0.0f);
    for (int64_t p = 0; p < count; p++) {
        const vec w = splat(weights[p]);
        for (int i = 0; i < N; i++) acc[i] += w * load(values + p * head_dim + i * LANES);
    }
    for (int i = 0; i < N; i++) store(out + i * LANES, acc[i]);
}

template <class C>
void attention_values(const float* weights, const C* values, int64_t count, int64_t head_dim, float* out) {
    int64_t i = 0;
    for (; i + 8 * LANES <= head_dim; i += 8 * LANES) weighted_sum<8>(weights, values + i, count, head_dim, out + i);
    for (; i + 4 * LANES <= head_dim; i += 4 * LANES) weighted_sum<4>(weights, values + i, count, head_dim, out + i);
    for (; i + LANES <= head_dim; i += LANES) weighted_sum<1>(weights, values + i, count, head_dim, out + i);
    for (; i < head_dim; i++) {
        float acc = 0.0f;
        for (int64_t p = 0; p < count; p++) acc += weights[p] * to_float(values[p * head_dim + i]);
        out[i] = acc;
    }
}

// One query head over the first `count` positions; `first`: of those that share these keys and values.
// `scores` is scratch of count + LANES floats.
template <class C>
void attend(const float* q, const C* keys, const C* values, bool first, int64_t count, int64_t head_dim,
            float* scores, float* out) {
    attention_scores(q, keys, first ? values : nullptr, count, head_dim, scores);
    softmax(scores, count);
    attention_values(scores, values, count, head_dim, out);
}

}  // namespace muomni

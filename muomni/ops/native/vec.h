// Vectors of floats as the compiler's own vector types, so that one source serves AVX-512, AVX2, SSE
// and NEON. Only what the compilers cannot express well (adding up across lanes) has intrinsics.
//
// The number of lanes decides the order of additions, so results may differ between kinds of machine
// in the last bits, never between calls on one machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// MUOMNI_PLAIN turns every intrinsic off and MUOMNI_NO_AVX512 the widest ones: how the other code is tested
// on a machine that has them.
#if !defined(MUOMNI_PLAIN) && !defined(MUOMNI_NO_AVX512) && defined(__AVX512F__) && defined(__AVX512BW__) && \
    defined(__AVX512VNNI__)
#define MUOMNI_AVX512 1
#include <immintrin.h>
#elif !defined(MUOMNI_PLAIN) && defined(__AVX2__) && defined(__FMA__)
#define MUOMNI_AVX2 1
#include <immintrin.h>
#endif

namespace muomni {

#if defined(MUOMNI_AVX512)
constexpr int LANES = 16;
#elif defined(MUOMNI_AVX2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));
typedef int8_t bvec __attribute__((vector_size(LANES)));

// bfloat16 products with bfloat16 activations, twice as many a cycle as in fp32.
#if defined(MUOMNI_AVX512) && defined(__AVX512BF16__)
#define MUOMNI_BF16 1
#endif

#define MUOMNI_INLINE inline __attribute__((always_inline))

// bfloat16 as it lies in memory: the upper half of a float.
struct bf16 {
    uint16_t bits;
};

MUOMNI_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

MUOMNI_INLINE vec splat(float x) { return vec{} + x; }

MUOMNI_INLINE vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

MUOMNI_INLINE vec load(const bf16* p) {
    hvec h;
    std::memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, ivec) << 16);
}

MUOMNI_INLINE vec load(const int8_t* p) {
    bvec b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, ivec), vec);
}

// The first n of a vector's values (0 < n < LANES), zeros behind: reads nothing beyond them.
template <class T>
MUOMNI_INLINE vec load_some(const T* p, int64_t n) {
    T buffer[LANES] = {};
    std::memcpy(buffer, p, n * sizeof(T));
    return load(buffer);
}

MUOMNI_INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

MUOMNI_INLINE float to_float(float x) { return x; }

MUOMNI_INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}

MUOMNI_INLINE float to_float(int8_t x) { return x; }

MUOMNI_INLINE void put(float* p, float x) { *p = x; }

// To the nearest, ties to even, as torch does; NaN stays NaN.
MUOMNI_INLINE void put(bf16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    p->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

MUOMNI_INLINE vec select(ivec condition, vec yes, vec no) { return condition ? yes : no; }

MUOMNI_INLINE vec maximum(vec a, vec b) { return select(a > b, a, b); }

MUOMNI_INLINE vec magnitude(vec a) { return (vec)((ivec)a & 0x7fffffff); }

// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
MUOMNI_INLINE ivec nearest(vec x) { return (ivec)(x + 12582912.0f) - 0x4b400000; }

MUOMNI_INLINE float sum(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

MUOMNI_INLINE float maximum(vec v) {
    float lanes[LANES], best;
    store(lanes, v);
    best = lanes[0];
    for (int i = 1; i < LANES; i++) best = lanes[i] > best ? lanes[i] : best;
    return best;
}

// Lane j of the result is the sum of all lanes of rows[j].
MUOMNI_INLINE vec sum_rows(const vec* rows) {
#if defined(MUOMNI_AVX512)
    auto pair = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
    auto four = [](__m512 a, __m512 b) {
        __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    };
    auto fold = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    __m512 quads[4];
    for (int i = 0; i < 4; i++) {
        const vec* r = rows + 4 * i;
        quads[i] = four(pair((__m512)r[0], (__m512)r[1]), pair((__m512)r[2], (__m512)r[3]));
    }
    return (vec)fold(fold(quads[0], quads[1]), fold(quads[2], quads[3]));
#elif defined(MUOMNI_AVX2)
    auto four = [](const vec* r) {
        return _mm256_hadd_ps(_mm256_hadd_ps((__m256)r[0], (__m256)r[1]), _mm256_hadd_ps((__m256)r[2], (__m256)r[3]));
    };
    __m256 a = four(rows), b = four(rows + 4);
    return (vec)_mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
#else
    vec out;
    for (int j = 0; j < LANES; j++) out[j] = (rows[j][0] + rows[j][2]) + (rows[j][1] + rows[j][3]);
    return out;
#endif
}

// e^x to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2] (Taylor to degree 7). Below
// -87 it returns e^-87, which is nothing beside a softmax's largest term or silu's 1.
MUOMNI_INLINE vec exponential(vec x) {
    x = select(x < -87.0f, splat(-87.0f), x);
    x = select(x > 88.0f, splat(88.0f), x);
    ivec n = nearest(x * 1.44269504088896341f);
    vec k = __builtin_convertvector(n, vec);
    vec r = x - k * 0.693359375f;  // ln 2 in two parts: the first has few bits, so k times it is exact
    r = r - k * -2.12194440e-4f;
    vec p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return p * (vec)((n + 127) << 23);
}

// Makes a loaded vector stay in a register: left alone, GCC loads it again for every use.
MUOMNI_INLINE void keep(vec& v) {
#if defined(MUOMNI_AVX512)
    asm("" : "+v"(v));
#else
    (void)v;
#endif
}

MUOMNI_INLINE void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Into the second-level cache: what comes next may be more than the first level holds.
MUOMNI_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace muomni

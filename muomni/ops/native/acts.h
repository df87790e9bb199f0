// What a matrix multiplication reads: rows of floats, and the same rows as bfloat16, or as int8 in groups
// of 64 with a scale each. A row's values depend on that row alone, never on how many rows there are.
#pragma once

#include <cstdlib>
#include <new>

#include "vec.h"

namespace muomni {

// Inputs per group of quantised activations: one 512-bit register of int8.
constexpr int GROUP = 64;

// Memory on cache lines that only grows; its content is lost when it does.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }

    void reserve(int64_t count) {
        if (count <= size_) return;
        std::free(data_);
        size_ = 0;
        data_ = static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 64)));
        if (data_ == nullptr) throw std::bad_alloc();
        size_ = count;
    }

    T* get() const { return data_; }

  private:
    T* data_ = nullptr;
    int64_t size_ = 0;
};

// Which forms of the activations the next matrices ask for.
struct Forms {
    bool halves, int8;
};

class Acts {
  public:
    void reserve(int64_t rows, int64_t width) {
        floats_.reserve(rows * round_up(width, GROUP));
        halves_.reserve(rows * round_up(width, GROUP));
        q_.reserve(rows * round_up(width, GROUP));
        scale_.reserve(rows * (round_up(width, GROUP) / GROUP));
        sum_.reserve(rows * (round_up(width, GROUP) / GROUP));
    }

    // Every row is `width` values, zeros behind up to a whole group.
    void set_width(int64_t width) {
        padded = round_up(width, GROUP);
        groups = padded / GROUP;
    }

    float* floats(int64_t row) const { return floats_.get() + row * padded; }
    const bf16* halves(int64_t row) const { return halves_.get() + row * padded; }
    const int8_t* q(int64_t row) const { return q_.get() + row * padded; }
    const float* scale(int64_t row) const { return scale_.get() + row * groups; }
    const int32_t* sum128(int64_t row) const { return sum_.get() + row * groups; }

    // Makes halves(row) of floats(row).
    void halve(int64_t row) {
        const float* x = floats(row);
        bf16* out = halves_.get() + row * padded;
        for (int64_t i = 0; i < padded; i++) put(out + i, x[i]);
    }

    // Quantises floats(row): value ≈ q · scale with scale = largest magnitude of the group / 127.
    void quantise(int64_t row) {
        const float* x = floats(row);
        int8_t* q = q_.get() + row * padded;
        for (int64_t g = 0; g < groups; g++, x += GROUP, q += GROUP) {
            vec top = splat(0.0f);
            for (int i = 0; i < GROUP; i += LANES) top = muomni::maximum(top, magnitude(load(x + i)));
            const float largest = muomni::maximum(top);
            const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
            ivec total = {};
            for (int i = 0; i < GROUP; i += LANES) {
                ivec n = nearest(load(x + i) * inverse);
                total += n;
                bvec b = __builtin_convertvector(n, bvec);
                std::memcpy(q + i, &b, sizeof b);
            }
            int32_t sum = 0;
            for (int i = 0; i < LANES; i++) sum += total[i];
            scale_.get()[row * groups + g] = largest / 127.0f;
            sum_.get()[row * groups + g] = -128 * sum;
        }
    }

    int64_t padded = 0, groups = 0;

  private:
    Buffer<float> floats_;
    Buffer<bf16> halves_;
    Buffer<int8_t> q_;
    Buffer<float> scale_;
    Buffer<int32_t> sum_;  // -128 · sum of a group's q, see gemm_int8.h
};

}  // namespace muomni

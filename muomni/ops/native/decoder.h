// A decoder step over a flattened batch: N tokens, each with its slot and position, through all layers.
//
// Every thread runs `step` and takes its share of each phase; a barrier ends a phase. With a single
// token each thread prepares (norms, quantises) the inputs of a matrix for itself, which is cheaper
// than a barrier; with more, they share that work.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "attention.h"
#include "gemm_bf16.h"
#include "gemm_float.h"
#include "gemm_int8.h"
#include "pool.h"

namespace muomni {

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

// These structs are filled in by decoder.py: 8-byte members only, same order there.
struct Weight {
    const void* data;    // (out, in) row-major
    const float* scale;  // (out,) or null
    int64_t kind;
};

struct Layer {
    const float *input_norm, *post_norm, *q_norm, *k_norm;
    Weight q, k, v, o, gate, up, down;
};

struct Model {
    int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab;
    int64_t slots, capacity, cache_kind;
    int64_t int8_acts;  // 1: int8 weights meet int8 activations; 0: float activations
    double eps;
    const float *final_norm, *cos, *sin;  // (hidden,); (capacity, head_dim / 2) each
    Weight embed, head;
    const Layer* layer;
    void *keys, *values;  // (layers, slots, kv_heads, capacity, head_dim)
};

struct Batch {
    int64_t count;
    const int64_t *tokens, *slots, *positions;
    const float* inputs = nullptr;  // (count, hidden) in the place of the tokens' embeddings
};

// The 16 rows of a matrix that are worked on together: first, first + stride, ...; those from `end` on
// are not there (the last one stands in for them, and nothing comes of it).
struct Rows {
    int64_t first, stride, end;

    int64_t valid(int r) const { return std::min(first + r * stride, end - 1); }

    template <class Use>
    MUOMNI_INLINE void each(Use&& use) const {
        if (stride == 1 && first + ROWS <= end) {
            for (int r = 0; r < ROWS; r++) use(first + r, r);
        } else {
            for (int r = 0; r < ROWS && first + r * stride < end; r++) use(first + r * stride, r);
        }
    }
};

enum Status : int64_t {
    DONE = 0,
    BAD_TOKEN = 1,
    BAD_SLOT = 2,
    BAD_POSITION = 3,
    BAD_WANTED = 4,
    NO_MEMORY = 5,
    FORKED = 6
};

class Decoder {
  public:
    Decoder(const Model& model, int threads);
    int64_t forward(const Batch& batch, int64_t wanted_count, const int64_t* wanted, float* logits);
    int64_t greedy(const Batch& batch, int64_t steps, const int64_t* stop, int64_t* out, int64_t* done);
    int64_t hidden(const Batch& batch, float* out);

  private:
    // What a thread has of its own.
    struct Worker {
        Acts acts;  // of a batch of one
        Buffer<uint8_t> panel;
        Buffer<float> scores, gate, best;
        Buffer<int32_t> best_row;
    };

    struct Product {
        const Weight& weight;
        int64_t out;
        float* target;
    };

    int64_t check(const Batch& batch) const;
    void reserve(int64_t tokens, int64_t wanted);
    void layers(int thread, const Batch& batch);
    void attention(int thread, const Batch& batch, int64_t layer);
    template <class C>
    void attention_in(int thread, const Batch& batch, int64_t layer, C* keys, C* values);
    void head(int thread, int64_t count, const int64_t* wanted, float* logits);
    int64_t best_token(int64_t row) const;

    template <class Source>
    const Acts& prepare(int thread, int64_t count, int64_t width, Forms forms, Source&& source);
    template <class Sink>
    void block(int thread, const Weight& w, int64_t width, const Rows& rows, const Acts& acts, int64_t tokens,
               Sink&& sink);
    template <class Work>
    void split(int thread, int64_t out, int64_t tokens, Work&& work) const;
    Forms forms(std::initializer_list<const Weight*> weights) const;

    const Model model_;
    std::vector<Layer> layers_;
    Pool pool_;
    const int threads_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Worker>> workers_;
    Acts acts_;
    Buffer<float> x_, qkv_, attended_, mlp_;
};

}  // namespace muomni

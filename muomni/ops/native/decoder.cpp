#include "decoder.h"

namespace muomni {

Decoder::Decoder(const Model& model, int threads)
    : model_(model), layers_(model.layer, model.layer + model.layers), pool_(threads), threads_(threads) {
    const int64_t widest = std::max({model.hidden, model.intermediate, model.heads * model.head_dim});
    for (int i = 0; i < threads; i++) {
        workers_.push_back(std::make_unique<Worker>());
        Worker& me = *workers_.back();
        me.acts.reserve(1, widest);
        me.panel.reserve(round_up(widest, GROUP) * ROWS);
        me.scores.reserve(model.capacity + 2 * LANES);
    }
}

void Decoder::reserve(int64_t tokens, int64_t wanted) {
    const Model& m = model_;
    const int64_t widest = std::max({m.hidden, m.intermediate, m.heads * m.head_dim});
    if (tokens > 1 || wanted > 1) acts_.reserve(std::max(tokens, wanted), widest);
    x_.reserve(tokens * m.hidden);
    qkv_.reserve(tokens * (m.heads + 2 * m.kv_heads) * m.head_dim);
    attended_.reserve(tokens * m.heads * m.head_dim);
    mlp_.reserve(tokens * m.intermediate);
    for (auto& worker : workers_) {
        worker->gate.reserve(tokens * ROWS);
        worker->best.reserve(wanted * ROWS);
        worker->best_row.reserve(wanted * ROWS);
    }
}

int64_t Decoder::check(const Batch& batch) const {
    for (int64_t i = 0; i < batch.count; i++) {
        if (!batch.inputs && (batch.tokens[i] < 0 || batch.tokens[i] >= model_.vocab)) return BAD_TOKEN;
        if (batch.slots[i] < 0 || batch.slots[i] >= model_.slots) return BAD_SLOT;
        if (batch.positions[i] < 0 || batch.positions[i] >= model_.capacity) return BAD_POSITION;
    }
    return DONE;
}

Forms Decoder::forms(std::initializer_list<const Weight*> weights) const {
    Forms forms = {false, false};
    for (const Weight* w : weights) {
#if defined(MUOMNI_BF16)
        forms.halves |= w->kind == BFLOAT16;
#endif
        forms.int8 |= w->kind == INT8 && model_.int8_acts;
    }
    return forms;
}

// work(rows) for each block of this thread's share of `out` rows. For one or two tokens, when all that
// counts is how fast the weights come from memory, a block takes its rows from 16 places of the share:
// the processor then sees 16 long streams, which it fetches ahead, instead of many short rows
// (33 against 22 GB/s for rows of 768 bytes).
template <class Work>
void Decoder::split(int thread, int64_t out, int64_t tokens, Work&& work) const {
    const int64_t blocks = (out + ROWS - 1) / ROWS;
    const int64_t first = blocks * thread / threads_ * ROWS;
    const int64_t end = std::min(out, blocks * (thread + 1) / threads_ * ROWS);
    if (tokens <= 2) {
        const int64_t stride = (end - first + ROWS - 1) / ROWS;
        for (int64_t i = 0; i < stride; i++) work(Rows{first + i, stride, end});
    } else {
        for (int64_t i = first; i < end; i += ROWS) work(Rows{i, 1, end});
    }
}

// source(row, out) writes the floats of a row. Afterwards every thread may read all rows.
template <class Source>
const Acts& Decoder::prepare(int thread, int64_t count, int64_t width, Forms forms, Source&& source) {
    const bool alone = count == 1;
    Acts& acts = alone ? workers_[thread]->acts : acts_;
    if (alone) acts.set_width(width);
    else if (thread == 0) acts.set_width(width);
    if (!alone) pool_.barrier.wait();
    for (int64_t row = alone ? 0 : thread; row < count; row += alone ? 1 : threads_) {
        float* out = acts.floats(row);
        source(row, out);
        std::fill(out + width, out + acts.padded, 0.0f);
        if (forms.halves) acts.halve(row);
        if (forms.int8) acts.quantise(row);
    }
    if (!alone) pool_.barrier.wait();
    return acts;
}

template <class W>
static void row_pointers(const void* data, int64_t width, const Rows& rows, const W** pointers) {
    for (int r = 0; r < ROWS; r++) pointers[r] = static_cast<const W*>(data) + rows.valid(r) * width;
}

// sink(token, 16 products, rows) for every token: `width` inputs times these rows of w.
template <class Sink>
void Decoder::block(int thread, const Weight& w, int64_t width, const Rows& rows, const Acts& acts, int64_t tokens,
                    Sink&& sink) {
    auto plain = [&](int64_t t, const float* v) { sink(t, v, rows); };
    const int64_t ahead = (rows.stride == 1 ? ROWS : 1) * width;
    if (w.kind == FLOAT32) {
        const float* pointers[ROWS];
        row_pointers(w.data, width, rows, pointers);
        float_block(WeightRows<float>{pointers, width, ahead}, acts, tokens, plain);
        return;
    }
    if (w.kind == BFLOAT16) {
        const bf16* pointers[ROWS];
        row_pointers(w.data, width, rows, pointers);
        bf16_block(WeightRows<bf16>{pointers, width, ahead}, acts, tokens, plain);
        return;
    }
    float scale[ROWS];
    for (int r = 0; r < ROWS; r++) scale[r] = w.scale[rows.valid(r)];
    auto scaled = [&](int64_t t, float* v) {
        for (int r = 0; r < ROWS; r++) v[r] *= scale[r];
        sink(t, v, rows);
    };
    const int8_t* pointers[ROWS];
    row_pointers(w.data, width, rows, pointers);
    const WeightRows<int8_t> weights = {pointers, width, ahead};
    if (model_.int8_acts) int8_block(weights, acts, tokens, workers_[thread]->panel.get(), scaled);
    else float_block(weights, acts, tokens, scaled);
}

template <class C>
void Decoder::attention_in(int thread, const Batch& batch, int64_t layer, C* keys, C* values) {
    const Model& m = model_;
    const Layer& l = layers_[layer];
    const int64_t Dh = m.head_dim, group = m.heads / m.kv_heads, row = (m.heads + 2 * m.kv_heads) * Dh;
    const float scaling = 1.0f / std::sqrt(float(Dh)), eps = float(m.eps);
    auto cached = [&](int64_t slot, int64_t head) {
        return ((layer * m.slots + slot) * m.kv_heads + head) * m.capacity * Dh;
    };
    // Both for one token and one key/value head with its query heads.
    auto write = [&](int64_t t, int64_t head) {
        const int64_t position = batch.positions[t];
        const float *cos = m.cos + position * (Dh / 2), *sin = m.sin + position * (Dh / 2);
        float* token = qkv_.get() + t * row;
        for (int64_t h = head * group; h < (head + 1) * group; h++) {
            float* q = token + h * Dh;
            rms_norm(q, l.q_norm, Dh, eps, q);
            rotate(q, cos, sin, Dh / 2);
            for (int64_t i = 0; i < Dh; i++) q[i] *= scaling;
        }
        float* k = token + (m.heads + head) * Dh;
        const float* v = token + (m.heads + m.kv_heads + head) * Dh;
        rms_norm(k, l.k_norm, Dh, eps, k);
        rotate(k, cos, sin, Dh / 2);
        const int64_t at = cached(batch.slots[t], head) + position * Dh;
        for (int64_t i = 0; i < Dh; i++) put(keys + at + i, k[i]);
        for (int64_t i = 0; i < Dh; i++) put(values + at + i, v[i]);
    };
    auto read = [&](int64_t t, int64_t head) {
        const int64_t at = cached(batch.slots[t], head), count = batch.positions[t] + 1;
        for (int64_t h = head * group; h < (head + 1) * group; h++)
            attend(qkv_.get() + t * row + h * Dh, keys + at, values + at, h == head * group, count, Dh,
                   workers_[thread]->scores.get(), attended_.get() + (t * m.heads + h) * Dh);
    };
    if (batch.count == 1) {
        for (int64_t head = thread; head < m.kv_heads; head += threads_) write(0, head), read(0, head);
        return;
    }
    // All keys and values of the batch are written before anybody attends. Taking items in turns evens
    // out the growing length of a prompt's positions.
    const int64_t items = batch.count * m.kv_heads;
    for (int64_t i = thread; i < items; i += threads_) write(i / m.kv_heads, i % m.kv_heads);
    pool_.barrier.wait();
    for (int64_t i = thread; i < items; i += threads_) read(i % batch.count, i / batch.count);
}

void Decoder::attention(int thread, const Batch& batch, int64_t layer) {
    if (model_.cache_kind == BFLOAT16)
        attention_in(thread, batch, layer, static_cast<bf16*>(model_.keys), static_cast<bf16*>(model_.values));
    else
        attention_in(thread, batch, layer, static_cast<float*>(model_.keys), static_cast<float*>(model_.values));
}

template <class W>
static void embedding_row(const Weight& w, int64_t token, int64_t width, float* out) {
    const W* row = static_cast<const W*>(w.data) + token * width;
    const float scale = w.scale ? w.scale[token] : 1.0f;
    for (int64_t i = 0; i < width; i++) out[i] = to_float(row[i]) * scale;
}

// From token ids or inputs to the residual stream after the last layer, in x_.
void Decoder::layers(int thread, const Batch& batch) {
    const Model& m = model_;
    const int64_t N = batch.count, D = m.hidden, F = m.intermediate;
    const int64_t queries = m.heads * m.head_dim, keys = m.kv_heads * m.head_dim, row = queries + 2 * keys;
    const float eps = float(m.eps);
    float *x = x_.get(), *qkv = qkv_.get(), *attended = attended_.get(), *mlp = mlp_.get();
    auto add_to_x = [&](int64_t t, const float* v, const Rows& rows) {
        rows.each([&](int64_t row, int r) { x[t * D + row] += v[r]; });
    };
    for (int64_t t = thread; t < N; t += threads_) {
        if (batch.inputs) std::copy(batch.inputs + t * D, batch.inputs + (t + 1) * D, x + t * D);
        else if (m.embed.kind == INT8) embedding_row<int8_t>(m.embed, batch.tokens[t], D, x + t * D);
        else if (m.embed.kind == BFLOAT16) embedding_row<bf16>(m.embed, batch.tokens[t], D, x + t * D);
        else embedding_row<float>(m.embed, batch.tokens[t], D, x + t * D);
    }
    pool_.barrier.wait();
    for (int64_t i = 0; i < m.layers; i++) {
        const Layer& l = layers_[i];
        const Acts* acts = &prepare(thread, N, D, forms({&l.q, &l.k, &l.v}), [&](int64_t t, float* out) {
            rms_norm(x + t * D, l.input_norm, D, eps, out);
        });
        const Product products[] = {{l.q, queries, qkv}, {l.k, keys, qkv + queries}, {l.v, keys, qkv + queries + keys}};
        for (const Product& p : products)
            split(thread, p.out, N, [&](const Rows& rows) {
                block(thread, p.weight, D, rows, *acts, N, [&](int64_t t, const float* v, const Rows& rows) {
                    rows.each([&](int64_t out, int r) { p.target[t * row + out] = v[r]; });
                });
            });
        pool_.barrier.wait();
        attention(thread, batch, i);
        pool_.barrier.wait();
        acts = &prepare(thread, N, queries, forms({&l.o}), [&](int64_t t, float* out) {
            std::copy(attended + t * queries, attended + (t + 1) * queries, out);
        });
        split(thread, D, N, [&](const Rows& rows) { block(thread, l.o, queries, rows, *acts, N, add_to_x); });
        pool_.barrier.wait();
        acts = &prepare(thread, N, D, forms({&l.gate, &l.up}), [&](int64_t t, float* out) {
            rms_norm(x + t * D, l.post_norm, D, eps, out);
        });
        float* gate = workers_[thread]->gate.get();
        split(thread, F, N, [&](const Rows& rows) {
            block(thread, l.gate, D, rows, *acts, N, [&](int64_t t, const float* v, const Rows&) {
                for (int r = 0; r < ROWS; r += LANES) {
                    const vec g = load(v + r);
                    store(gate + t * ROWS + r, g / (1.0f + exponential(-g)));
                }
            });
            block(thread, l.up, D, rows, *acts, N, [&](int64_t t, const float* v, const Rows& rows) {
                rows.each([&](int64_t row, int r) { mlp[t * F + row] = v[r] * gate[t * ROWS + r]; });
            });
        });
        pool_.barrier.wait();
        acts = &prepare(thread, N, F, forms({&l.down}), [&](int64_t t, float* out) {
            std::copy(mlp + t * F, mlp + (t + 1) * F, out);
        });
        split(thread, D, N, [&](const Rows& rows) { block(thread, l.down, F, rows, *acts, N, add_to_x); });
        pool_.barrier.wait();
    }
}

// Logits of the wanted tokens, or, without a place for them, each thread's best rows of its share.
void Decoder::head(int thread, int64_t count, const int64_t* wanted, float* logits) {
    const Model& m = model_;
    const int64_t D = m.hidden, V = m.vocab;
    Worker& me = *workers_[thread];
    const Acts& acts = prepare(thread, count, D, forms({&m.head}), [&](int64_t i, float* out) {
        rms_norm(x_.get() + (wanted ? wanted[i] : i) * D, m.final_norm, D, float(m.eps), out);
    });
    float* best = me.best.get();
    int32_t* best_row = me.best_row.get();
    if (!logits) {
        std::fill(best, best + count * ROWS, -std::numeric_limits<float>::infinity());
        std::fill(best_row, best_row + count * ROWS, std::numeric_limits<int32_t>::max());
    }
    split(thread, V, count, [&](const Rows& rows) {
        block(thread, m.head, D, rows, acts, count, [&](int64_t t, const float* v, const Rows& rows) {
            if (logits) {
                rows.each([&](int64_t row, int r) { logits[t * V + row] = v[r]; });
                return;
            }
            float* top = best + t * ROWS;
            int32_t* at = best_row + t * ROWS;
            rows.each([&](int64_t row, int r) {  // rows come in rising order: of equals the first stays, and a NaN
                at[r] = v[r] > top[r] ? int32_t(row) : at[r];
                top[r] = v[r] > top[r] || v[r] != v[r] ? v[r] : top[r];
            });
        });
    });
    pool_.barrier.wait();
}

int64_t Decoder::best_token(int64_t t) const {
    float top = -std::numeric_limits<float>::infinity();
    int32_t row = std::numeric_limits<int32_t>::max();
    for (const auto& worker : workers_)
        for (int r = 0; r < ROWS; r++) {
            const float value = worker->best.get()[t * ROWS + r];
            const int32_t candidate = worker->best_row.get()[t * ROWS + r];
            if (value != value) return -1;
            if (value > top || (value == top && candidate < row)) top = value, row = candidate;
        }
    return std::isfinite(top) ? row : -1;
}

int64_t Decoder::forward(const Batch& batch, int64_t wanted_count, const int64_t* wanted, float* logits) {
    if (const int64_t status = check(batch)) return status;
    for (int64_t i = 0; i < wanted_count; i++)
        if (wanted[i] < 0 || wanted[i] >= batch.count) return BAD_WANTED;
    if (batch.count == 0) return DONE;
    std::lock_guard<std::mutex> lock(mutex_);
    reserve(batch.count, wanted_count);
    pool_.run([&](int thread) {
        layers(thread, batch);
        if (wanted_count > 0) head(thread, wanted_count, wanted, logits);
    });
    return DONE;
}

int64_t Decoder::greedy(const Batch& batch, int64_t steps, const int64_t* stop, int64_t* out, int64_t* done) {
    if (const int64_t status = check(batch)) return status;
    const int64_t N = batch.count;
    for (int64_t i = 0; i < N; i++) {
        if (batch.positions[i] + steps > model_.capacity) return BAD_POSITION;
        for (int64_t j = 0; j < i; j++)
            if (batch.slots[i] == batch.slots[j]) return BAD_SLOT;
    }
    *done = 0;
    if (N == 0 || steps == 0) return DONE;
    std::lock_guard<std::mutex> lock(mutex_);
    reserve(N, N);
    std::vector<int64_t> tokens(batch.tokens, batch.tokens + N), positions(batch.positions, batch.positions + N);
    const Batch now = {N, tokens.data(), batch.slots, positions.data()};
    bool last = false;
    pool_.run([&](int thread) {
        for (int64_t step = 0; step < steps; step++) {
            layers(thread, now);
            head(thread, N, nullptr, nullptr);
            for (int64_t t = thread; t < N; t += threads_) {
                out[t * steps + step] = best_token(t);
                tokens[t] = std::max<int64_t>(0, out[t * steps + step]);
                positions[t]++;
            }
            // One thread decides for all; a step that has begun is finished.
            if (thread == 0) {
                *done = step + 1;
                last = stop != nullptr && __atomic_load_n(stop, __ATOMIC_RELAXED) != 0;
            }
            pool_.barrier.wait();
            if (last) break;
        }
    });
    return DONE;
}

// Inputs through all layers and the final norm: (count, hidden) of both.
int64_t Decoder::hidden(const Batch& batch, float* out) {
    if (const int64_t status = check(batch)) return status;
    if (batch.count == 0) return DONE;
    std::lock_guard<std::mutex> lock(mutex_);
    reserve(batch.count, 0);
    const int64_t D = model_.hidden;
    pool_.run([&](int thread) {
        layers(thread, batch);
        for (int64_t t = thread; t < batch.count; t += threads_)
            rms_norm(x_.get() + t * D, model_.final_norm, D, float(model_.eps), out + t * D);
    });
    return DONE;
}

}  // namespace muomni

#include "exports.h"

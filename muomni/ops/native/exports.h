// What Python calls, through ctypes. Nothing thrown crosses this border.
#pragma once

#include "decoder.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#define MUOMNI_PID() int64_t(getpid())
#else
#define MUOMNI_PID() int64_t(0)
#endif

namespace {

// Threads do not survive a fork: a child that used its parent's decoder would wait for ever.
struct Handle {
    muomni::Decoder decoder;
    int64_t pid;
};

template <class Call>
int64_t guarded(Handle* handle, Call&& call) {
    if (handle->pid != MUOMNI_PID()) return muomni::FORKED;
    try {
        return call(handle->decoder);
    } catch (const std::bad_alloc&) {
        return muomni::NO_MEMORY;
    }
}

}  // namespace

extern "C" {

// Which code this is: "avx512-vnni-bf16", "avx512-vnni", "avx2" or "portable".
const char* muomni_instructions() {
#if defined(MUOMNI_BF16)
    return "avx512-vnni-bf16";
#elif defined(MUOMNI_AVX512)
    return "avx512-vnni";
#elif defined(MUOMNI_AVX2)
    return "avx2";
#else
    return "portable";
#endif
}

// Asks the system to put this memory onto 2 MiB pages, now (Linux 6.1): fewer page walks and longer
// streams, about an eighth more bandwidth. Advice only: where it is refused, the memory stays as it was.
// Pages that the memory shares with its neighbours are included: matrices lie side by side and may be
// smaller than a page.
void muomni_huge_pages(const void* memory, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = uintptr_t(2) << 20, begin = uintptr_t(memory) / page * page;
    const uintptr_t end = (uintptr_t(memory) + bytes + page - 1) / page * page;
    const int collapse = 25;  // MADV_COLLAPSE, which older headers do not name
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, collapse);
#else
    (void)memory, (void)bytes;
#endif
}

// Null when memory or threads are not to be had.
void* muomni_create(const muomni::Model* model, int64_t threads) {
    try {
        return new Handle{{*model, int(threads)}, MUOMNI_PID()};
    } catch (const std::exception&) {
        return nullptr;
    }
}

void muomni_destroy(void* handle) {
    auto* h = static_cast<Handle*>(handle);
    if (h->pid == MUOMNI_PID()) delete h;
}

int64_t muomni_forward(void* handle, int64_t count, const int64_t* tokens, const int64_t* slots,
                       const int64_t* positions, int64_t wanted_count, const int64_t* wanted, float* logits) {
    return guarded(static_cast<Handle*>(handle), [&](muomni::Decoder& decoder) {
        return decoder.forward({count, tokens, slots, positions}, wanted_count, wanted, logits);
    });
}

int64_t muomni_greedy(void* handle, int64_t count, const int64_t* tokens, const int64_t* slots,
                      const int64_t* positions, int64_t steps, const int64_t* stop, int64_t* out, int64_t* done) {
    return guarded(static_cast<Handle*>(handle), [&](muomni::Decoder& decoder) {
        return decoder.greedy({count, tokens, slots, positions}, steps, stop, out, done);
    });
}

int64_t muomni_hidden(void* handle, int64_t count, const float* inputs, const int64_t* slots,
                      const int64_t* positions, float* out) {
    return guarded(static_cast<Handle*>(handle), [&](muomni::Decoder& decoder) {
        return decoder.hidden({count, nullptr, slots, positions, inputs}, out);
    });
}

}  // extern "C"

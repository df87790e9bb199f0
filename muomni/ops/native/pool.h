// A few threads that work on one job together and meet at barriers inside it. OpenMP is not used:
// torch carries a runtime of its own, and two of them in a process fight for the cores.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "vec.h"

namespace muomni {

// All threads of a job wait for the last. Phases last some microseconds, so waiting means spinning;
// where more threads than cores want to run, yielding lets the late one in.
class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}

    void wait() {
        if (threads_ == 1) return;
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++) {
            if (spins < 4096) cpu_relax();
            else std::this_thread::yield();
        }
    }

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
};

// `threads - 1` threads of its own; the caller is number 0. Idle threads spin for some 200 µs, longer than the
// time between two calls of a busy decode loop, and then sleep: waking one takes as long as a step.
class Pool {
  public:
    explicit Pool(int threads) : barrier(threads), threads_(threads) {
        try {
            for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(i); });
        } catch (...) {  // the system gives no more threads: those that run must end before the error goes on
            stop();
            throw;
        }
    }

    ~Pool() { stop(); }

    // Runs job(thread) on every thread and returns when all are done.
    void run(const std::function<void(int)>& job) {
        if (threads_ > 1) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                job_ = &job;
                job_number_.fetch_add(1, std::memory_order_release);
            }
            if (sleepers_.load() > 0) wake_.notify_all();
        }
        job(0);
        barrier.wait();
    }

    int threads() const { return threads_; }

    Barrier barrier;

  private:
    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
            job_number_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    void serve(int thread) {
        unsigned done = 0;
        while (true) {
            for (int spins = 0; spins < 8000 && job_number_.load(std::memory_order_acquire) == done; spins++)
                cpu_relax();
            if (job_number_.load(std::memory_order_acquire) == done) {
                std::unique_lock<std::mutex> lock(mutex_);
                sleepers_++;
                wake_.wait(lock, [&] { return job_number_.load(std::memory_order_acquire) != done; });
                sleepers_--;
            }
            done = job_number_.load(std::memory_order_acquire);
            if (stop_) return;
            (*job_)(thread);
            barrier.wait();
        }
    }

    const int threads_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleepers_{0};
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<unsigned> job_number_{0};
    bool stop_ = false;
};

}  // namespace muomni

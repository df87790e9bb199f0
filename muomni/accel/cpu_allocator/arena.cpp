// Memory for large tensors on a CPU: one region of addresses that grows at its end and is never given back.
//
// Blocks are placed best fit: into the smallest gap that holds them, of equal ones the first. Neighbouring gaps are
// joined at once. Nothing but tensors lies in the region, so the small blocks that a program makes meanwhile cannot
// sit in the gaps of large ones, which is what breaks up the C library's heap. Small tensors stay there.
//
// `arena_simulator.ArenaSimulator` does the same in Python, number by number; tests hold the two equal.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Device.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include <sys/mman.h>

namespace {

// As in arena_simulator.py.
constexpr size_t SMALL = 32 * 1024;
constexpr size_t UNIT = 256;
constexpr size_t LEAST_GAP = 4 * 1024;
// Addresses become memory in steps of this size, when the region grows; pages count when they are first written.
constexpr size_t STEP = size_t{64} << 20;

class Region {
 public:
  bool reserve(size_t size, bool huge) {
    void* found = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return false;
    base_ = static_cast<char*>(found);
    size_ = size;
    if (huge) madvise(base_, size_, MADV_HUGEPAGE);
    return true;
  }

  // Null where there is no memory.
  void* allocate(size_t bytes) {
    // One unit more, so that blocks of a power of two do not all begin at the same place of the cache's sets.
    const size_t taken = (bytes + UNIT - 1) / UNIT * UNIT + UNIT;
    const std::lock_guard<std::mutex> guard(lock_);
    size_t start;
    size_t length = taken;
    const auto gap = by_size_.lower_bound({taken, 0});
    if (gap != by_size_.end()) {
      const size_t size = gap->first;
      start = gap->second;
      remove(start, size);
      if (size - taken >= LEAST_GAP) {
        add(start + taken, size - taken);
      } else {
        length = size;
      }
    } else {
      if (!grow(end_ + taken)) return nullptr;
      start = end_;
      end_ += taken;
      if (end_ > peak_) peak_ = end_;
    }
    blocks_[start] = length;
    live_ += length;
    return base_ + start;
  }

  void free(void* pointer) {
    const std::lock_guard<std::mutex> guard(lock_);
    size_t start = static_cast<char*>(pointer) - base_;
    const auto block = blocks_.find(start);
    size_t end = start + block->second;
    live_ -= block->second;
    blocks_.erase(block);
    auto next = by_start_.lower_bound(start);
    if (next != by_start_.end() && next->first == end) {
      end += next->second;
      next = remove(next->first, next->second);
    }
    if (next != by_start_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == start) {
        start = before->first;
        remove(before->first, before->second);
      }
    }
    if (end == end_) {
      end_ = start;
    } else {
      add(start, end - start);
    }
  }

  bool holds(const void* pointer) const {
    const char* at = static_cast<const char*>(pointer);
    return at >= base_ && at < base_ + size_;
  }

  void usage(uint64_t* out) {
    const std::lock_guard<std::mutex> guard(lock_);
    out[0] = live_;
    out[1] = end_;
    out[2] = peak_;
  }

 private:
  bool grow(size_t end) {
    if (end <= writable_) return true;
    const size_t wanted = (end + STEP - 1) / STEP * STEP;
    if (wanted > size_) return false;
    if (mprotect(base_ + writable_, wanted - writable_, PROT_READ | PROT_WRITE) != 0) return false;
    writable_ = wanted;
    return true;
  }

  void add(size_t start, size_t size) {
    by_start_[start] = size;
    by_size_.insert({size, start});
  }

  std::map<size_t, size_t>::iterator remove(size_t start, size_t size) {
    by_size_.erase({size, start});
    return by_start_.erase(by_start_.find(start));
  }

  char* base_ = nullptr;
  size_t size_ = 0, writable_ = 0, end_ = 0, peak_ = 0, live_ = 0;
  std::map<size_t, size_t> by_start_;
  std::set<std::pair<size_t, size_t>> by_size_;
  std::unordered_map<size_t, size_t> blocks_;
  std::mutex lock_;
};

// Never destroyed: tensors may be freed after everything else of the process.
Region& region() {
  static Region* const one = new Region;
  return *one;
}

void release(void* pointer) {
  if (!pointer) return;
  c10::profiledCPUMemoryReporter().Delete(pointer);
  if (region().holds(pointer)) {
    region().free(pointer);
  } else {
    c10::free_cpu(pointer);
  }
}

struct Arena final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data;
    if (bytes < SMALL) {
      data = c10::alloc_cpu(bytes);
    } else {
      data = region().allocate(bytes);
      // torch's words, by which a shortage of memory is known.
      TORCH_CHECK(data, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes.");
    }
    c10::profiledCPUMemoryReporter().New(data, bytes);
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
};

}  // namespace

extern "C" {

// Makes torch take the memory of tensors on the CPU from here; false where no addresses can be had.
bool muomni_arena_install(size_t addresses, bool huge) {
  static bool installed = false;
  if (installed) return true;
  if (!region().reserve(addresses, huge)) return false;
  static Arena* const arena = new Arena;
  c10::SetCPUAllocator(arena, 1);
  return installed = true;
}

// Bytes in blocks now, and where the region ends: now, and at most so far.
void muomni_arena_usage(uint64_t* out) { region().usage(out); }
}

// The threads that a CPU front works with: its caller's. libupsnet_cpu.so brings OpenMP's (openmp.cpp).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

namespace upsnet {

// Work is divided among slots, `threads` of them at most.
struct Pool {
  int threads;  // at least 1
  // Calls body(context, slot) once for every slot 0 .. slots - 1, and returns when all have returned. Some of them run
  // at the same time, or none: a pool may have fewer threads than it says.
  void (*run)(const Pool& pool, int slots, void (*body)(void* context, int slot), void* context);
  void* state = nullptr;  // run's own
};

// body(index, slot) for every index 0 .. count - 1. Whichever slot is free takes the next `grain` of them; where one
// slot is enough, all run on the caller's thread. What a body throws, the caller gets: the first of several, and
// indices that nobody had taken by then stay undone.
template <typename Body>
void for_each(const Pool& pool, int64_t count, int64_t grain, const Body& body) {
  const int64_t slots = std::min<int64_t>(pool.threads, (count + grain - 1) / grain);
  if (slots <= 1) {
    for (int64_t index = 0; index < count; ++index) body(index, 0);
    return;
  }
  struct Work {
    const Body& body;
    const int64_t count, grain;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};
  } work{body, count, grain};
  const auto run_slot = [](void* context, int slot) {
    Work& work = *static_cast<Work*>(context);
    try {
      while (!work.failed) {
        const int64_t first = work.next.fetch_add(work.grain), stop = std::min(first + work.grain, work.count);
        if (first >= work.count) return;
        for (int64_t index = first; index < stop; ++index) work.body(index, slot);
      }
    } catch (...) {
      if (!work.failed.exchange(true)) work.error = std::current_exception();
    }
  };
  pool.run(pool, int(slots), run_slot, &work);
  if (work.error) std::rethrow_exception(work.error);
}

// A T for each slot, made when the slot asks for it: slots that get no index cost nothing.
template <typename T>
class PerSlot {
 public:
  explicit PerSlot(const Pool& pool) : made_(std::max(pool.threads, 1)) {}

  // The slot's own, at first T(arguments...).
  template <typename... Arguments>
  T& at(int slot, const Arguments&... arguments) {
    std::unique_ptr<T>& own = made_[slot];
    if (!own) own = std::make_unique<T>(arguments...);
    return *own;
  }

  // visit(T&) of all that were made, slot after slot.
  template <typename Visit>
  void each(const Visit& visit) {
    for (const std::unique_ptr<T>& own : made_) {
      if (own) visit(*own);
    }
  }

 private:
  std::vector<std::unique_ptr<T>> made_;
};

}  // namespace upsnet

// The fibers behind cuda_runtime.h.
#include "cuda_runtime.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackSize = 256 * 1024;
std::mutex one_at_a_time;               // launches of several threads share what follows
std::map<const void*, size_t> allowed;  // dynamic shared memory of kernels

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// Where a stack goes on. swapcontext would ask the system for the signal mask at each switch, which took four fifths of
// the time of emulated kernels.
using Jump = void* [5];

// A thread of a block, and of all blocks after it: what its stack comes back from is its wait for the next kernel.
struct Fiber {
  Jump jump;
  std::unique_ptr<unsigned char[]> stack;
  uint3 thread;
  State state;
  unsigned warp_mask;
  void* sanitizer_stack;
};

Jump scheduler;
void* scheduler_sanitizer_stack;
const void* scheduler_stack_bottom;
size_t scheduler_stack_size;
std::vector<Fiber> fibers;  // grown to the largest block so far; stacks are kept
unsigned block_threads, current;
const std::function<void()>* kernel;
std::vector<unsigned char> shared_memory;
std::vector<uint64_t> slots;
int counter;
Place here;

// What a block can have: an H200's 227 KB, or UPSNET_EMULATOR_SHARED bytes.
int shared_per_block() {
  const char* wish = std::getenv("UPSNET_EMULATOR_SHARED");
  return wish ? std::atoi(wish) : 227 * 1024;
}

void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#endif
}

void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#endif
}

// Away from the functions that wait: GCC has no longjmp beside a setjmp. The sanitizer, which sees a jump as the end of
// all that this stack holds, must not see these.
[[noreturn, gnu::noinline, gnu::no_sanitize_address]] void go_on(Jump& jump) { __builtin_longjmp(jump, 1); }

// noipa: a caller in this file must not learn which registers this leaves alone. Other fibers run before it returns.
[[gnu::noipa, gnu::noinline, gnu::no_sanitize_address]] void to_scheduler() {
  before_switch(&fibers[current].sanitizer_stack, scheduler_stack_bottom, scheduler_stack_size);
  if (__builtin_setjmp(fibers[current].jump) == 0) go_on(scheduler);
  after_switch(fibers[current].sanitizer_stack, &scheduler_stack_bottom, &scheduler_stack_size);
}

void fiber_main() {
  after_switch(nullptr, &scheduler_stack_bottom, &scheduler_stack_size);
  for (;;) {
    (*kernel)();
    fibers[current].state = State::kDone;
    to_scheduler();
  }
}

void begin(Fiber& fiber) {
  fiber.stack = std::make_unique<unsigned char[]>(kStackSize);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackSize;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  before_switch(&scheduler_sanitizer_stack, fiber.stack.get(), kStackSize);
  setcontext(&context);
}

[[gnu::noipa, gnu::noinline, gnu::no_sanitize_address]] void to_fiber(unsigned index) {
  current = index;
  Fiber& fiber = fibers[index];
  here.thread = fiber.thread;
  if (__builtin_setjmp(scheduler) == 0) {
    if (!fiber.stack) begin(fiber);
    before_switch(&scheduler_sanitizer_stack, fiber.stack.get(), kStackSize);
    go_on(fiber.jump);
  }
  after_switch(scheduler_sanitizer_stack, nullptr, nullptr);
}

void start(unsigned index, dim3 block) {
  Fiber& fiber = fibers[index];
  fiber.thread = {index % block.x, index / block.x % block.y, index / (block.x * block.y)};
  fiber.state = State::kReady;
}

// Opens the barriers that everyone who must come has reached. False: nobody could go on.
bool open_barriers() {
  bool opened = false, all_at_block = true;
  for (unsigned i = 0; i < block_threads; ++i) {
    all_at_block &= fibers[i].state == State::kAtBlockBarrier || fibers[i].state == State::kDone;
  }
  for (unsigned i = 0; i < block_threads; ++i) {
    Fiber& fiber = fibers[i];
    if (fiber.state == State::kAtBlockBarrier && all_at_block) {
      fiber.state = State::kReady;
      opened = true;
    }
    if (fiber.state != State::kAtWarpBarrier) continue;
    const unsigned first = i / 32 * 32, mask = fiber.warp_mask;
    bool complete = true;
    for (unsigned lane = 0; lane < 32 && first + lane < block_threads; ++lane) {
      const Fiber& other = fibers[first + lane];
      if (!(mask >> lane & 1u) || other.state == State::kDone) continue;
      complete &= other.state == State::kAtWarpBarrier && other.warp_mask == mask;
    }
    if (!complete) continue;
    for (unsigned lane = 0; lane < 32 && first + lane < block_threads; ++lane) {
      Fiber& other = fibers[first + lane];
      if ((mask >> lane & 1u) && other.state == State::kAtWarpBarrier) other.state = State::kReady;
    }
    opened = true;
  }
  return opened;
}

void run_block(const std::vector<unsigned>& order) {
  for (unsigned done = 0; done < block_threads;) {
    bool ran = false;
    for (const unsigned i : order) {
      if (fibers[i].state != State::kReady) continue;
      to_fiber(i);
      ran = true;
      done += fibers[i].state == State::kDone;
    }
    if (!ran && !open_barriers()) {
      std::fprintf(stderr, "emulator: block (%u, %u, %u) hangs: threads wait at a barrier that others never reach\n",
                   here.block.x, here.block.y, here.block.z);
      std::abort();
    }
  }
}

std::vector<unsigned> thread_order(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  const char* wish = std::getenv("UPSNET_EMULATOR_ORDER");
  const std::string name = wish ? wish : "forward";
  if (name == "reverse") std::reverse(order.begin(), order.end());
  if (name == "shuffle") std::shuffle(order.begin(), order.end(), std::mt19937(count));
  return order;
}

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  block_threads = block.x * block.y * block.z;
  if (fibers.size() < block_threads) fibers.resize(block_threads);
  slots.assign((block_threads + 31) / 32 * 32, 0);
  kernel = &body;
  here.block_dim = block;
  here.grid_dim = grid;
  const std::vector<unsigned> order = thread_order(block_threads);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        here.block = {x, y, z};
        // Exactly the size asked for, and full of NaN: reading past it or before writing shows.
        shared_memory = std::vector<unsigned char>(shared, 0xff);
        counter = 0;
        for (unsigned i = 0; i < block_threads; ++i) start(i, block);
        run_block(order);
      }
    }
  }
}

bool is_launchable(dim3 grid, dim3 block) {
  const bool some = grid.x > 0 && grid.y > 0 && grid.z > 0 && block.x > 0 && block.y > 0 && block.z > 0;
  return some && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535 && block.x <= 1024 && block.y <= 1024 &&
         block.z <= 64 && block.x * block.y * block.z <= 1024;
}

}  // namespace

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  if (!is_launchable(grid, block)) return cudaErrorInvalidConfiguration;
  const auto own = allowed.find(kernel);
  if (shared > (own == allowed.end() ? size_t{48 * 1024} : own->second)) return cudaErrorInvalidValue;
  run(grid, block, shared, body);
  return cudaSuccess;
}

unsigned char* dynamic_shared() { return shared_memory.data(); }
Place& place() { return here; }
unsigned lane() { return current % 32; }
uint64_t& warp_slot(unsigned lane) { return slots[current / 32 * 32 + lane]; }
int& block_counter() { return counter; }

void block_barrier() {
  fibers[current].state = State::kAtBlockBarrier;
  to_scheduler();
}

void warp_barrier(unsigned mask) {
  fibers[current].state = State::kAtWarpBarrier;
  fibers[current].warp_mask = mask;
  to_scheduler();
}

}  // namespace emulator

int __syncthreads_count(int predicate) {
  emulator::block_barrier();
  emulator::block_counter() = 0;
  emulator::block_barrier();
  emulator::block_counter() += predicate != 0;
  emulator::block_barrier();
  return emulator::block_counter();
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulator::shared_per_block();
  return cudaSuccess;
}

// Once for each kernel: what is set again and again is a race between the threads that launch.
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  const std::lock_guard<std::mutex> guard(emulator::one_at_a_time);
  if (bytes > emulator::shared_per_block() || !emulator::allowed.emplace(kernel, bytes).second)
    return cudaErrorInvalidValue;
  return cudaSuccess;
}

// common/pool.h by itself: test_pool.py builds it and runs one case. It prints what went wrong.
#include "common/pool.h"

#include <cstdio>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

using upsnet::for_each;
using upsnet::PerSlot;
using upsnet::Pool;

int calls = 0;  // of a pool

void in_turn(const Pool& pool, int slots, void (*body)(void*, int), void* context) {
  ++calls;
  const bool backwards = pool.state != nullptr;
  for (int i = 0; i < slots; ++i) body(context, backwards ? slots - 1 - i : i);
}

void at_once(const Pool&, int slots, void (*body)(void*, int), void* context) {
  std::vector<std::thread> threads;
  for (int slot = 0; slot < slots; ++slot) threads.emplace_back(body, context, slot);
  for (std::thread& thread : threads) thread.join();
}

int token;
const Pool kPools[] = {{1, in_turn}, {5, in_turn}, {5, in_turn, &token}, {2, at_once}, {7, at_once}};

bool check(bool right, const char* what) {
  if (!right) std::printf("%s\n", what);
  return right;
}

bool every_index_once() {
  for (const Pool& pool : kPools) {
    for (const int64_t count : {0, 1, 2, 5, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> seen(count);
        std::atomic<int> outside{0};
        for_each(pool, count, grain, [&](int64_t index, int slot) {
          ++seen[index];
          if (slot < 0 || slot >= pool.threads) ++outside;
        });
        for (const auto& times : seen) {
          if (!check(times == 1, "an index ran more than once, or never")) return false;
        }
        if (!check(outside == 0, "a slot that does not exist")) return false;
      }
    }
  }
  return true;
}

// A slot's thread keeps its slot for the whole of a call: what it works in is nobody else's.
bool slots_share_nothing() {
  PerSlot<std::set<std::thread::id>> threads(kPools[4]);
  for_each(kPools[4], 10000, 1, [&](int64_t, int slot) { threads.at(slot).insert(std::this_thread::get_id()); });
  bool alone = true;
  threads.each([&](const auto& each) { alone = alone && each.size() == 1; });
  return check(alone, "two threads in one slot");
}

bool little_work_stays_with_the_caller() {
  const auto caller = std::this_thread::get_id();
  for (const auto& [count, grain] : {std::pair<int64_t, int64_t>{0, 1}, {1, 1}, {8, 8}}) {
    bool elsewhere = false;
    calls = 0;
    for_each(kPools[1], count, grain, [&](int64_t, int) { elsewhere |= std::this_thread::get_id() != caller; });
    if (!check(calls == 0 && !elsewhere, "the pool was asked for one slot")) return false;
  }
  calls = 0;
  for_each(kPools[1], 9, 8, [](int64_t, int) {});
  return check(calls == 1, "the pool was not asked, or more than once");
}

// Slots in turn: the first one takes everything, and the others make nothing.
bool idle_slots_make_nothing() {
  PerSlot<int> numbers(kPools[1]);
  for_each(kPools[1], 100, 1, [&](int64_t, int slot) { ++numbers.at(slot, 10); });
  int made = 0, sum = 0;
  numbers.each([&](int number) { ++made, sum += number; });
  return check(made == 1 && sum == 110, "not one slot alone, made of its arguments");
}

bool exceptions_reach_the_caller() {
  for (const Pool& pool : kPools) {
    for (const int64_t bad : {0, 50, 99}) {
      std::string caught;
      std::atomic<int> ran{0};
      try {
        for_each(pool, 100, 1, [&](int64_t index, int) {
          if (index == bad) throw std::runtime_error("index " + std::to_string(bad));
          ++ran;
        });
      } catch (const std::runtime_error& error) { caught = error.what(); }
      if (!check(caught == "index " + std::to_string(bad), "the exception was lost")) return false;
    }
    int caught = 0;
    try {
      for_each(pool, 100, 1, [](int64_t index, int) { throw index; });
    } catch (int64_t) { ++caught; }
    if (!check(caught == 1, "one of many exceptions")) return false;
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  const std::pair<const char*, bool (*)()> cases[] = {
      {"every_index_once", every_index_once},
      {"slots_share_nothing", slots_share_nothing},
      {"little_work_stays_with_the_caller", little_work_stays_with_the_caller},
      {"idle_slots_make_nothing", idle_slots_make_nothing},
      {"exceptions_reach_the_caller", exceptions_reach_the_caller}};
  for (const auto& [name, run] : cases) {
    if (std::strcmp(name, arguments[1]) == 0) return run() ? 0 : 1;
  }
  return 2;
}

// SPDX-License-Identifier: Apache-2.0
// LibTorch's default generator, by micro-batch.
#include "pipeline/plain_random.h"

#include <mutex>

namespace tessera::pipeline {
namespace {

at::CPUGeneratorImpl& default_generator() {
  return *at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
}

}  // namespace

PlainRandom::PlainRandom(int num_microbatches, bool is_shared) : is_shared_(is_shared), before_(take()) {
  if (num_microbatches == 1 || is_shared) return;
  states_.resize(static_cast<std::size_t>(num_microbatches));
  at::mt19937 ahead = before_.engine;
  seed_ = ahead();
}

PlainRandom::State PlainRandom::take() {
  at::CPUGeneratorImpl& generator = default_generator();
  const std::lock_guard lock(generator.mutex_);
  return {generator.engine(), generator.next_float_normal_sample(), generator.next_double_normal_sample()};
}

void PlainRandom::put(const State& state) {
  at::CPUGeneratorImpl& generator = default_generator();
  const std::lock_guard lock(generator.mutex_);
  generator.set_engine(state.engine);
  generator.set_next_float_normal_sample(state.next_float);
  generator.set_next_double_normal_sample(state.next_double);
}

bool PlainRandom::equal(const State& a, const State& b) {
  const at::mt19937_data_pod mine = a.engine.data();
  const at::mt19937_data_pod other = b.engine.data();
  return mine.left_ == other.left_ && mine.next_ == other.next_ && mine.state_ == other.state_ &&
         a.next_float == b.next_float && a.next_double == b.next_double;
}

PlainRandom::State PlainRandom::start_of(int microbatch) const {
  if (microbatch == 0) return before_;
  // Engines keep the lower 32 bits of a seed: an odd factor sends different micro-batches to different ones.
  constexpr std::uint64_t kOdd = 0x9e3779b1;
  return {at::mt19937(seed_ + kOdd * static_cast<std::uint64_t>(microbatch)), std::nullopt, std::nullopt};
}

void PlainRandom::enter(int microbatch) {
  if (states_.empty()) return;
  outside_ = take();
  const std::optional<State>& state = states_[static_cast<std::size_t>(microbatch)];
  entered_ = state ? *state : start_of(microbatch);
  put(entered_);
}

void PlainRandom::leave(int microbatch) {
  if (states_.empty()) return;
  const State now = take();
  if (!equal(now, entered_)) states_[static_cast<std::size_t>(microbatch)] = now;
  put(outside_);
}

void PlainRandom::finish() const {
  for (auto state = states_.rbegin(); state != states_.rend(); ++state) {
    if (*state) return put(**state);
  }
}

bool PlainRandom::has_moved() const { return !equal(take(), before_); }

}  // namespace tessera::pipeline

// SPDX-License-Identifier: Apache-2.0
// Progress of a run for the person who waits.
#include <fmt/format.h>

#include <algorithm>

#include "tessera/train/metrics.h"

namespace tessera::train {
namespace {

using Clock = std::chrono::steady_clock;

std::string numbers(const StepRecord& record, const Progress::Options& options) {
  return fmt::format("step {}/{}  loss {:.4f}  grad_norm {:.3f}  {:.1f} ms  {:.0f} {}/s", record.step, options.steps,
                     record.loss, record.grad_norm, record.step_ms, record.rate_per_s, options.unit);
}

std::string bar(std::int64_t done, std::int64_t all) {
  constexpr std::int64_t kWidth = 24;
  const auto filled = all > 0 ? std::clamp<std::int64_t>(done * kWidth / all, 0, kWidth) : 0;
  return fmt::format("[{:#>{}}{:.>{}}]", "", filled, "", kWidth - filled);
}

}  // namespace

Progress::Progress(std::ostream& out, Options options)
    : out_(out), options_(std::move(options)), start_(Clock::now()), drawn_(Clock::time_point::min()) {
  if (options_.report_every <= 0) options_.report_every = std::max<std::int64_t>(1, options_.steps / 20);
}

Progress::~Progress() { finish(); }

void Progress::step(const StepRecord& record) {
  const bool last = record.step >= options_.steps;
  if (options_.terminal) {
    constexpr auto kFrame = std::chrono::milliseconds(100);
    if (last || drawn_ == Clock::time_point::min() || Clock::now() - drawn_ >= kFrame) draw_bar(record);
  } else if (last || record.step % options_.report_every == 0) {
    out_ << numbers(record, options_) << std::endl;
  }
}

void Progress::draw_bar(const StepRecord& record) {
  drawn_ = Clock::now();
  const auto elapsed_s = std::chrono::duration<double>(drawn_ - start_).count();
  const auto done = std::max<std::int64_t>(record.step, 1);
  const auto left_s = elapsed_s * static_cast<double>(options_.steps - record.step) / static_cast<double>(done);
  const auto text =
      fmt::format("{} {}  {:.0f} s left", bar(record.step, options_.steps), numbers(record, options_), left_s);
  out_ << '\r' << text << std::string(drawn_width_ > text.size() ? drawn_width_ - text.size() : 0, ' ') << std::flush;
  drawn_width_ = text.size();
}

void Progress::evaluation(const EvalRecord& record) {
  finish();
  const auto quality = record.metric == Metric::kAccuracy ? fmt::format("accuracy {:.2f} %", 100.0 * record.quality)
                                                          : fmt::format("perplexity {:.3f}", record.quality);
  out_ << fmt::format("step {}  held-out loss {:.4f}  {}", record.step, record.loss, quality) << std::endl;
}

void Progress::finish() {
  if (drawn_width_ > 0) out_ << std::endl;
  drawn_width_ = 0;
}

}  // namespace tessera::train

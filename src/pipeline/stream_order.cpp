// SPDX-License-Identifier: Apache-2.0
// A worklist over ranks with program counters.
#include "pipeline/stream_order.h"

namespace tessera::pipeline {
namespace {

/// Which results there are, and which rank each missing one would wake.
class Results {
 public:
  explicit Results(const Schedule& schedule)
      : microbatches_(static_cast<std::size_t>(schedule.num_microbatches)),
        stages_(static_cast<std::size_t>(schedule.num_stages())),
        there_(2 * stages_ * microbatches_, false) {}

  [[nodiscard]] std::size_t index(const Need& need) const {
    const std::size_t stage = static_cast<std::size_t>(need.stage) + (need.backward ? stages_ : 0);
    return stage * microbatches_ + static_cast<std::size_t>(need.microbatch);
  }
  [[nodiscard]] bool has(std::size_t index) const { return there_[index]; }
  void add(std::size_t index) { there_[index] = true; }

 private:
  std::size_t microbatches_;
  std::size_t stages_;
  std::vector<bool> there_;
};

constexpr std::size_t kNothing = static_cast<std::size_t>(-1);

}  // namespace

std::optional<Need> need_of(const Action& action, int num_stages) {
  const bool forward = action.kind == ActionKind::kForward;
  if (action.kind == ActionKind::kBackwardWeight) return std::nullopt;
  const int stage = action.stage + (forward ? -1 : 1);
  if (stage < 0 || stage >= num_stages) return std::nullopt;
  return Need{!forward, stage, action.microbatch};
}

std::vector<std::size_t> run_in_stream_order(const Schedule& schedule,
                                             const std::function<void(int rank, std::size_t position)>& run) {
  const auto num_ranks = static_cast<std::size_t>(schedule.num_ranks);
  const int num_stages = schedule.num_stages();
  Results results(schedule);
  std::vector<std::size_t> position(num_ranks, 0);
  std::vector<std::size_t> waits_for(num_ranks, kNothing);
  std::vector<std::size_t> ready;
  for (std::size_t rank = num_ranks; rank-- > 0;) ready.push_back(rank);

  while (!ready.empty()) {
    const std::size_t rank = ready.back();
    ready.pop_back();
    const std::vector<Action>& row = schedule.actions[rank];
    waits_for[rank] = kNothing;
    while (position[rank] < row.size()) {
      const Action& action = row[position[rank]];
      if (const auto need = need_of(action, num_stages); need && !results.has(results.index(*need))) {
        waits_for[rank] = results.index(*need);
        break;
      }
      run(static_cast<int>(rank), position[rank]++);
      if (action.kind == ActionKind::kBackwardWeight) continue;
      const bool forward = action.kind == ActionKind::kForward;
      const std::size_t made = results.index({!forward, action.stage, action.microbatch});
      results.add(made);
      const int consumer = action.stage + (forward ? 1 : -1);
      if (consumer < 0 || consumer >= num_stages) continue;
      const auto consumer_rank = static_cast<std::size_t>(schedule.rank_of_stage[static_cast<std::size_t>(consumer)]);
      if (waits_for[consumer_rank] == made) {
        waits_for[consumer_rank] = kNothing;
        ready.push_back(consumer_rank);
      }
    }
  }
  return position;
}

}  // namespace tessera::pipeline

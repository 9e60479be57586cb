// SPDX-License-Identifier: Apache-2.0
// Longest paths through a schedule, in the order in which its ranks run it.
#include "tessera/pipeline/timeline.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipeline/stream_order.h"
#include "tessera/base/error.h"

namespace tessera::pipeline {
namespace {

double of_stage(const std::vector<double>& times, int stage) {
  return times.size() == 1 ? times.front() : times[static_cast<std::size_t>(stage)];
}

void check_times(const char* name, const std::vector<double>& times, int num_stages) {
  check<ConfigError>(times.size() == 1 || times.size() == static_cast<std::size_t>(num_stages),
                     "{} has {} times for {} stages; allowed: 1 or {}", name, times.size(), num_stages, num_stages);
  for (const double time : times) {
    check<ConfigError>(std::isfinite(time) && time >= 0, "{} has a time of {}; allowed: 0 or more", name, time);
  }
}

void check_costs(const Costs& costs, int num_stages) {
  check_times("forward_ms", costs.forward_ms, num_stages);
  check_times("backward_input_ms", costs.backward_input_ms, num_stages);
  check_times("backward_weight_ms", costs.backward_weight_ms, num_stages);
  check_times("transfer_ms", {costs.transfer_ms}, num_stages);
}

double time_of(const Action& action, const Costs& costs) {
  switch (action.kind) {
    case ActionKind::kForward:
      return of_stage(costs.forward_ms, action.stage);
    case ActionKind::kBackward:
      return of_stage(costs.backward_input_ms, action.stage) + of_stage(costs.backward_weight_ms, action.stage);
    case ActionKind::kBackwardInput:
      return of_stage(costs.backward_input_ms, action.stage);
    case ActionKind::kBackwardWeight:
      break;
  }
  return of_stage(costs.backward_weight_ms, action.stage);
}

/// When the results that other stages wait for are made.
class Ends {
 public:
  explicit Ends(const Schedule& schedule)
      : microbatches_(static_cast<std::size_t>(schedule.num_microbatches)),
        stages_(static_cast<std::size_t>(schedule.num_stages())),
        ends_(2 * stages_ * microbatches_, 0) {}

  double& of(bool backward, int stage, int microbatch) {
    return ends_[((backward ? stages_ : 0) + static_cast<std::size_t>(stage)) * microbatches_ +
                 static_cast<std::size_t>(microbatch)];
  }

 private:
  std::size_t microbatches_;
  std::size_t stages_;
  std::vector<double> ends_;
};

/// Busy and idle times, from the spans.
void sum_up(Timeline& timeline) {
  for (const std::vector<Span>& row : timeline.spans) {
    if (!row.empty()) timeline.makespan = std::max(timeline.makespan, row.back().end);
  }
  for (const std::vector<Span>& row : timeline.spans) {
    double busy = 0;
    for (const Span& span : row) busy += span.end - span.start;
    timeline.busy.push_back(busy);
    timeline.bubble.push_back(timeline.makespan > 0 ? 1 - busy / timeline.makespan : 0);
    timeline.idle_inside.push_back(row.empty() ? 0 : row.back().end - row.front().start - busy);
  }
}

}  // namespace

double Timeline::mean_bubble() const {
  return bubble.empty() ? 0 : std::accumulate(bubble.begin(), bubble.end(), 0.0) / static_cast<double>(bubble.size());
}

Timeline ideal_timeline(const Schedule& schedule, const Costs& costs) {
  const int num_stages = schedule.num_stages();
  check_costs(costs, num_stages);
  Timeline timeline;
  for (const std::vector<Action>& row : schedule.actions) timeline.spans.emplace_back(row.size());
  std::vector<double> free_at(schedule.actions.size(), 0);
  Ends ends(schedule);

  const auto run = [&](int rank_number, std::size_t position) {
    const auto rank = static_cast<std::size_t>(rank_number);
    const Action& action = schedule.actions[rank][position];
    double start = free_at[rank];
    if (const auto need = need_of(action, num_stages)) {
      const bool crosses = schedule.rank_of_stage[static_cast<std::size_t>(need->stage)] != rank_number;
      start =
          std::max(start, ends.of(need->backward, need->stage, need->microbatch) + (crosses ? costs.transfer_ms : 0));
    }
    const double end = start + time_of(action, costs);
    timeline.spans[rank][position] = {start, end};
    free_at[rank] = end;
    if (action.kind != ActionKind::kBackwardWeight) {
      ends.of(action.kind != ActionKind::kForward, action.stage, action.microbatch) = end;
    }
  };
  const std::vector<std::size_t> reached = run_in_stream_order(schedule, run);
  for (std::size_t rank = 0; rank < reached.size(); ++rank) {
    check<ConfigError>(reached[rank] == schedule.actions[rank].size(),
                       "schedule \"{}\" has no timeline: rank {} waits forever in {}; validate() says why",
                       schedule.name, rank,
                       reached[rank] < schedule.actions[rank].size() ? to_string(schedule.actions[rank][reached[rank]])
                                                                     : std::string());
  }
  sum_up(timeline);
  return timeline;
}

}  // namespace tessera::pipeline

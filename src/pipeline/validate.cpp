// SPDX-License-Identifier: Apache-2.0
// The proof that a schedule computes one step, or the first reason why it does not.
#include <algorithm>

#include "pipeline/row_text.h"
#include "pipeline/stream_order.h"
#include "tessera/base/error.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

/// What was seen of one stage and micro-batch: one bit per kind.
using Kinds = std::uint8_t;
constexpr Kinds bit(ActionKind kind) { return static_cast<Kinds>(1U << static_cast<unsigned>(kind)); }
constexpr Kinds kForwardSeen = bit(ActionKind::kForward);
constexpr Kinds kWholeSeen = bit(ActionKind::kBackward);
constexpr Kinds kInputSeen = bit(ActionKind::kBackwardInput);
constexpr Kinds kWeightSeen = bit(ActionKind::kBackwardWeight);

/// What must stand before a kind in its row, and what must not be there at all.
struct KindRule {
  Kinds before;
  Kinds without;
};
constexpr KindRule kKindRules[] = {
    {0, 0},                                    // F
    {kForwardSeen, kInputSeen | kWeightSeen},  // B
    {kForwardSeen, kWholeSeen},                // I
    {kInputSeen, kWholeSeen},                  // W
};

/// Beyond that, counting comes before the bookkeeping, whose memory is that of the units and not that of the actions.
constexpr std::int64_t kManyUnits = std::int64_t{1} << 20;

constexpr ActionKind kKinds[] = {ActionKind::kForward, ActionKind::kBackward, ActionKind::kBackwardInput,
                                 ActionKind::kBackwardWeight};

class Validator {
 public:
  explicit Validator(const Schedule& schedule) : schedule_(schedule) {}

  void run(const ValidateOptions& options) {
    check_shape();
    seen_.assign(
        static_cast<std::size_t>(schedule_.num_stages()) * static_cast<std::size_t>(schedule_.num_microbatches), 0);
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) check_row(rank);
    check_complete();
    check_flag();
    check_deadlock();
    if (options.max_activations) check_activations(*options.max_activations);
  }

 private:
  [[nodiscard]] const std::vector<Action>& row(int rank) const {
    return schedule_.actions[static_cast<std::size_t>(rank)];
  }
  [[nodiscard]] int rank_of(int stage) const { return schedule_.rank_of_stage[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] Kinds& seen(int stage, int microbatch) {
    return seen_[static_cast<std::size_t>(stage) * static_cast<std::size_t>(schedule_.num_microbatches) +
                 static_cast<std::size_t>(microbatch)];
  }

  [[noreturn]] void refuse(int rank, std::size_t position, const std::string& why) const {
    throw ConfigError(fmt::format("schedule \"{}\" is not valid: rank {}: {}\n{}", schedule_.name, rank, why,
                                  row_with_arrow(schedule_, rank, position)));
  }

  [[nodiscard]] std::size_t position_of(const Action& action, int rank) const {
    return static_cast<std::size_t>(std::find(row(rank).begin(), row(rank).end(), action) - row(rank).begin());
  }

  void check_shape() const {
    const auto refuse_shape = [this](const std::string& why) {
      throw ConfigError(fmt::format("schedule \"{}\" is not valid: {}", schedule_.name, why));
    };
    if (schedule_.num_ranks < 1 || schedule_.num_chunks < 1 || schedule_.num_microbatches < 1) {
      refuse_shape(fmt::format("{} ranks, {} chunks, {} micro-batches; allowed: 1 or more of each", schedule_.num_ranks,
                               schedule_.num_chunks, schedule_.num_microbatches));
    }
    if (schedule_.actions.size() != static_cast<std::size_t>(schedule_.num_ranks)) {
      refuse_shape(fmt::format("{} rows for {} ranks", schedule_.actions.size(), schedule_.num_ranks));
    }
    const std::int64_t num_stages = std::int64_t{schedule_.num_ranks} * schedule_.num_chunks;
    if (static_cast<std::int64_t>(schedule_.rank_of_stage.size()) != num_stages) {
      refuse_shape(
          fmt::format("rank_of_stage has {} entries for {} stages", schedule_.rank_of_stage.size(), num_stages));
    }
    const std::int64_t units = num_stages * schedule_.num_microbatches;
    std::int64_t num_actions = 0;
    for (const auto& actions : schedule_.actions) num_actions += static_cast<std::int64_t>(actions.size());
    if (units > kManyUnits && units > num_actions) {
      refuse_shape(fmt::format("{} stages x {} micro-batches need twice as many actions, but there are {}", num_stages,
                               schedule_.num_microbatches, num_actions));
    }
    std::vector<int> stages_of(schedule_.actions.size(), 0);
    for (const int rank : schedule_.rank_of_stage) {
      if (rank < 0 || rank >= schedule_.num_ranks) refuse_shape(fmt::format("rank_of_stage names a rank {}", rank));
      ++stages_of[static_cast<std::size_t>(rank)];
    }
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) {
      const int stages = stages_of[static_cast<std::size_t>(rank)];
      if (stages != schedule_.num_chunks) {
        refuse_shape(fmt::format("rank {} has {} stages; every rank must have {}", rank, stages, schedule_.num_chunks));
      }
    }
  }

  void check_row(int rank) {
    for (std::size_t position = 0; position < row(rank).size(); ++position) check_action(rank, position);
  }

  void check_action(int rank, std::size_t position) {
    const Action& action = row(rank)[position];
    if (action.stage < 0 || action.stage >= schedule_.num_stages()) {
      refuse(rank, position,
             fmt::format("stage {} of {} does not exist; allowed: 0 to {}", action.stage, to_string(action),
                         schedule_.num_stages() - 1));
    }
    if (action.microbatch < 0 || action.microbatch >= schedule_.num_microbatches) {
      refuse(rank, position,
             fmt::format("micro-batch {} of {} does not exist; allowed: 0 to {}", action.microbatch, to_string(action),
                         schedule_.num_microbatches - 1));
    }
    if (rank_of(action.stage) != rank) {
      refuse(rank, position,
             fmt::format("{} belongs to rank {}, which has stage {}", to_string(action), rank_of(action.stage),
                         action.stage));
    }
    Kinds& kinds = seen(action.stage, action.microbatch);
    const KindRule& rule = kKindRules[static_cast<std::size_t>(action.kind)];
    if ((kinds & bit(action.kind)) != 0) {
      refuse(rank, position,
             fmt::format("{} is there twice, first as action {} of the row", to_string(action),
                         position_of(action, rank)));
    }
    if ((kinds & rule.without) != 0) {
      refuse(rank, position,
             fmt::format("{} comes beside a {} of the same micro-batch; allowed: one B, or one I and one W",
                         to_string(action), action.kind == ActionKind::kBackward ? "split backward" : "B"));
    }
    if ((kinds & rule.before) != rule.before) refuse_order(rank, position, rule.before);
    kinds |= bit(action.kind);
  }

  [[noreturn]] void refuse_order(int rank, std::size_t position, Kinds before) const {
    const Action& action = row(rank)[position];
    Action needed = action;
    for (const ActionKind kind : kKinds) {
      if (bit(kind) == before) needed.kind = kind;
    }
    const bool later = position_of(needed, rank) < row(rank).size();
    refuse(rank, position,
           later ? fmt::format("{} comes before {}, whose result it needs", to_string(action), to_string(needed))
                 : fmt::format("{} needs {}, which is missing", to_string(action), to_string(needed)));
  }

  void check_complete() {
    for (int stage = 0; stage < schedule_.num_stages(); ++stage) {
      for (int microbatch = 0; microbatch < schedule_.num_microbatches; ++microbatch) {
        check_unit(stage, microbatch, seen(stage, microbatch));
      }
    }
  }

  /// The order within the row is right by now, so only an end can be missing.
  void check_unit(int stage, int microbatch, Kinds kinds) const {
    const int rank = rank_of(stage);
    const auto position = [&](ActionKind kind) { return position_of({kind, stage, microbatch}, rank); };
    const std::string unit = fmt::format("micro-batch {} of stage {}", microbatch, stage);
    if (kinds == 0) refuse(rank, row(rank).size(), fmt::format("{} never runs", unit));
    if (kinds == kForwardSeen) {
      refuse(rank, position(ActionKind::kForward), fmt::format("{} has no backward; add a B, or an I and a W", unit));
    }
    if ((kinds & kInputSeen) != 0 && (kinds & kWeightSeen) == 0) {
      refuse(rank, position(ActionKind::kBackwardInput), fmt::format("{} has I but no W", unit));
    }
  }

  void check_flag() const {
    const bool splits = std::any_of(seen_.begin(), seen_.end(), [](Kinds kinds) { return (kinds & kInputSeen) != 0; });
    if (splits != schedule_.splits_backward) {
      throw ConfigError(
          fmt::format("schedule \"{}\" is not valid: splits_backward is {}, but there are {}I and W actions",
                      schedule_.name, schedule_.splits_backward, splits ? "" : "no "));
    }
  }

  void check_deadlock() const {
    const std::vector<std::size_t> reached = run_in_stream_order(schedule_, [](int, std::size_t) {});
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) {
      if (reached[static_cast<std::size_t>(rank)] < row(rank).size()) refuse_deadlock(rank, reached);
    }
  }

  /// Every rank that is stuck waits for a rank that is stuck, so following them comes round.
  [[noreturn]] void refuse_deadlock(int rank, const std::vector<std::size_t>& reached) const {
    std::vector<int> ring;
    while (std::find(ring.begin(), ring.end(), rank) == ring.end()) {
      ring.push_back(rank);
      rank = rank_of(need_of(row(rank)[reached[static_cast<std::size_t>(rank)]], schedule_.num_stages())->stage);
    }
    ring.erase(ring.begin(), std::find(ring.begin(), ring.end(), rank));
    std::vector<std::string> waits;
    std::string rows;
    for (const int stuck : ring) {
      const std::size_t position = reached[static_cast<std::size_t>(stuck)];
      const Action& action = row(stuck)[position];
      waits.push_back(fmt::format("rank {} waits in {} for {}", stuck, to_string(action), to_string(producer(action))));
      rows += "\n" + row_with_arrow(schedule_, stuck, position);
    }
    throw ConfigError(fmt::format("schedule \"{}\" is not valid: deadlock: {}, which comes later{}", schedule_.name,
                                  fmt::join(waits, ", "), rows));
  }

  /// What `action` waits for, in the kind in which the schedule has it.
  [[nodiscard]] Action producer(const Action& action) const {
    const Need need = *need_of(action, schedule_.num_stages());
    Action result{ActionKind::kForward, need.stage, need.microbatch};
    if (!need.backward) return result;
    result.kind = ActionKind::kBackward;
    const std::vector<Action>& its_row = row(rank_of(need.stage));
    if (std::find(its_row.begin(), its_row.end(), result) == its_row.end()) result.kind = ActionKind::kBackwardInput;
    return result;
  }

  void check_activations(int most) const {
    for (int rank = 0; rank < schedule_.num_ranks; ++rank) {
      int live = 0;
      for (std::size_t position = 0; position < row(rank).size(); ++position) {
        const ActionKind kind = row(rank)[position].kind;
        if (kind == ActionKind::kForward && ++live > most) {
          refuse(rank, position,
                 fmt::format("{} is forward unit {} held at once; allowed: {}", to_string(row(rank)[position]), live,
                             most));
        }
        if (kind == ActionKind::kBackward || kind == ActionKind::kBackwardWeight) --live;
      }
    }
  }

  const Schedule& schedule_;
  std::vector<Kinds> seen_;
};

}  // namespace

void validate(const Schedule& schedule, const ValidateOptions& options) { Validator(schedule).run(options); }

}  // namespace tessera::pipeline

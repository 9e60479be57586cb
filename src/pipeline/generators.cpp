// SPDX-License-Identifier: Apache-2.0
// Every schedule that has a name. A new one is a function and a row of the table at the end of this file.
#include <algorithm>
#include <cstdint>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

/// One rank's row while it is written. Micro-batches are counted per stage and kind, so a generator only says which
/// comes next; what lies beyond the last micro-batch is left out.
class Row {
 public:
  Row(const Schedule& schedule, int rank) : microbatches_(schedule.num_microbatches), rank_(rank) {
    for (int stage = 0; stage < schedule.num_stages(); ++stage) {
      if (schedule.rank_of_stage[static_cast<std::size_t>(stage)] == rank) chunks_.push_back({stage, {}});
    }
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }

  void forward(int chunk = 0) { next(ActionKind::kForward, chunk); }
  void backward(int chunk = 0) { next(ActionKind::kBackward, chunk); }

  /// How many of a kind are there.
  [[nodiscard]] int count(ActionKind kind, int chunk = 0) const {
    return chunks_[static_cast<std::size_t>(chunk)].counts[static_cast<std::size_t>(kind)];
  }

  [[nodiscard]] std::vector<Action> take() && { return std::move(actions_); }

 private:
  struct Chunk {
    int stage;
    int counts[4];
  };

  void next(ActionKind kind, int chunk) {
    Chunk& its = chunks_[static_cast<std::size_t>(chunk)];
    int& microbatch = its.counts[static_cast<std::size_t>(kind)];
    if (microbatch < microbatches_) actions_.push_back({kind, its.stage, microbatch++});
  }

  int microbatches_;
  int rank_;
  std::vector<Chunk> chunks_;
  std::vector<Action> actions_;
};

void gpipe(const Schedule& schedule, Row& row) {
  for (int i = 0; i < schedule.num_microbatches; ++i) row.forward();
  for (int i = 0; i < schedule.num_microbatches; ++i) row.backward();
}

/// As many forwards as there are ranks behind this one; then one forward, one backward; then the backwards that are
/// left.
void one_forward_one_backward(const Schedule& schedule, Row& row) {
  for (int i = 0; i < schedule.num_ranks - 1 - row.rank(); ++i) row.forward();
  for (int i = 0; i < schedule.num_microbatches; ++i) {
    row.forward();
    row.backward();
  }
}

/// Stage s on rank s mod p: each rank has a stage of every round.
int loop(int stage, int ranks) { return stage % ranks; }

struct Generator {
  ScheduleInfo info;
  int (*rank_of)(int stage, int ranks);
  void (*fill)(const Schedule& schedule, Row& row);
};

constexpr int kAnyChunks = 1024;

const std::vector<Generator>& generators() {
  static const std::vector<Generator> kGenerators{
      {{.name = "gpipe", .summary = "all forwards, then all backwards"}, loop, gpipe},
      {{.name = "1f1b", .summary = "one forward, one backward: as fast as gpipe, holds at most p micro-batches"},
       loop,
       one_forward_one_backward},
  };
  return kGenerators;
}

/// So that an absurd number is a message and not the end of memory.
constexpr std::int64_t kMostUnits = std::int64_t{1} << 26;

const Generator& find_generator(std::string_view name) {
  for (const Generator& generator : generators()) {
    if (generator.info.name == name) return generator;
  }
  const std::vector<std::string> names = schedule_names();
  throw ConfigError(fmt::format("schedule \"{}\" is not known; allowed: {} or file:PATH; did you mean \"{}\"?", name,
                                fmt::join(names, ", "), base::nearest_word(name, names)));
}

std::string allowed_chunks(const ScheduleInfo& info) {
  if (info.max_chunks == kAnyChunks) return fmt::format("{} or more", info.min_chunks);
  return info.min_chunks == info.max_chunks ? fmt::format("{}", info.min_chunks)
                                            : fmt::format("{} to {}", info.min_chunks, info.max_chunks);
}

void check_options(const ScheduleInfo& info, const ScheduleOptions& options, int chunks) {
  check<ConfigError>(options.ranks >= 1, "schedule \"{}\" on {} ranks; allowed: 1 or more", info.name, options.ranks);
  check<ConfigError>(chunks >= info.min_chunks && chunks <= info.max_chunks,
                     "schedule \"{}\" with {} chunks per rank; allowed: {}; leave chunks out for its own number", info.name,
                     chunks, allowed_chunks(info));
  const std::int64_t fewest = std::max<std::int64_t>(1, std::int64_t{info.min_microbatches_per_rank} * options.ranks);
  check<ConfigError>(options.microbatches >= fewest,
                     "schedule \"{}\" on {} ranks with {} micro-batches; allowed: {} or more; cut the batch finer", info.name,
                     options.ranks, options.microbatches, fewest);
  check<ConfigError>(std::int64_t{options.ranks} * chunks <= kMostUnits / options.microbatches,
                     "schedule \"{}\": {} ranks x {} chunks x {} micro-batches; allowed: {} forwards or fewer", info.name,
                     options.ranks, chunks, options.microbatches, kMostUnits);
}

}  // namespace

const std::vector<ScheduleInfo>& schedules() {
  static const std::vector<ScheduleInfo> kInfos = [] {
    std::vector<ScheduleInfo> infos;
    for (const Generator& generator : generators()) infos.push_back(generator.info);
    return infos;
  }();
  return kInfos;
}

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const ScheduleInfo& info : schedules()) names.push_back(info.name);
  return names;
}

Schedule make_schedule(std::string_view name, const ScheduleOptions& options) {
  const Generator& generator = find_generator(name);
  const int chunks = options.chunks == 0 ? generator.info.default_chunks : options.chunks;
  check_options(generator.info, options, chunks);
  Schedule schedule{.name = generator.info.name,
                    .num_ranks = options.ranks,
                    .num_chunks = chunks,
                    .num_microbatches = options.microbatches,
                    .rank_of_stage = {},
                    .splits_backward = generator.info.splits_backward,
                    .actions = {}};
  for (int stage = 0; stage < schedule.num_stages(); ++stage) {
    schedule.rank_of_stage.push_back(generator.rank_of(stage, options.ranks));
  }
  for (int rank = 0; rank < options.ranks; ++rank) {
    Row row(schedule, rank);
    generator.fill(schedule, row);
    schedule.actions.push_back(std::move(row).take());
  }
  return schedule;
}

}  // namespace tessera::pipeline

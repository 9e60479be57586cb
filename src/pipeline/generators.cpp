// SPDX-License-Identifier: Apache-2.0
// Every schedule that has a name. A new one is a function and a row of the table at the end of this file.
#include <algorithm>
#include <cstdint>
#include <deque>
#include <fstream>
#include <sstream>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/mesh/stage_order.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

/// One rank's row while it is written. Micro-batches are counted per stage, so a generator only says what comes next;
/// what lies beyond the last micro-batch is left out.
class Row {
 public:
  Row(const Schedule& schedule, int rank) : microbatches_(schedule.num_microbatches), rank_(rank) {
    for (int stage = 0; stage < schedule.num_stages(); ++stage) {
      if (schedule.rank_of_stage[static_cast<std::size_t>(stage)] == rank) chunks_.push_back({.stage = stage});
    }
  }

  [[nodiscard]] int rank() const noexcept { return rank_; }

  void forward(int chunk = 0) { next(ActionKind::kForward, chunk, at(chunk).forwards); }
  void backward(int chunk = 0) { next(ActionKind::kBackward, chunk, at(chunk).backwards); }
  void input(int chunk = 0) {
    if (next(ActionKind::kBackwardInput, chunk, at(chunk).backwards)) waiting_.push_back(actions_.back());
  }
  /// W of the chunk's first I that has none yet; nothing if there is none.
  void weight(int chunk = 0) {
    const auto its_stage = [&](const Action& action) { return action.stage == at(chunk).stage; };
    take_weight(std::find_if(waiting_.begin(), waiting_.end(), its_stage));
  }
  /// The same over all chunks.
  void oldest_weight() { take_weight(waiting_.begin()); }

  /// A particular micro-batch, for orders that do not count up.
  void add(ActionKind kind, int chunk, int microbatch) { actions_.push_back({kind, at(chunk).stage, microbatch}); }

  [[nodiscard]] std::vector<Action> take() && { return std::move(actions_); }

 private:
  struct Chunk {
    int stage = 0;
    int forwards = 0;
    int backwards = 0;
  };

  [[nodiscard]] Chunk& at(int chunk) { return chunks_[static_cast<std::size_t>(chunk)]; }

  bool next(ActionKind kind, int chunk, int& microbatch) {
    if (microbatch == microbatches_) return false;
    add(kind, chunk, microbatch++);
    return true;
  }

  void take_weight(std::deque<Action>::iterator input) {
    if (input == waiting_.end()) return;
    actions_.push_back({ActionKind::kBackwardWeight, input->stage, input->microbatch});
    waiting_.erase(input);
  }

  int microbatches_;
  int rank_;
  std::vector<Chunk> chunks_;
  std::vector<Action> actions_;
  std::deque<Action> waiting_;
};

void times(int count, const auto& call) {
  for (int i = 0; i < count; ++i) call();
}

void gpipe(const Schedule& schedule, Row& row) {
  times(schedule.num_microbatches, [&] { row.forward(); });
  times(schedule.num_microbatches, [&] { row.backward(); });
}

/// As many forwards as there are ranks behind this one; then one forward, one backward; then the backwards that are
/// left.
void one_forward_one_backward(const Schedule& schedule, Row& row) {
  times(schedule.num_ranks - 1 - row.rank(), [&] { row.forward(); });
  times(schedule.num_microbatches, [&] { row.forward(), row.backward(); });
}

/// Micro-batches in groups that pass a chunk together: as many groups as have at least `ranks` members, of sizes that
/// differ by one at most. Megatron-LM's groups where ranks divide micro-batches; with a remainder, no group is so small
/// that a rank would run out of work between two of them.
std::vector<int> group_sizes(int microbatches, int ranks) {
  const int groups = std::max(1, microbatches / ranks);
  std::vector<int> sizes(static_cast<std::size_t>(groups), microbatches / groups);
  for (int i = 0; i < microbatches % groups; ++i) ++sizes[static_cast<std::size_t>(i)];
  return sizes;
}

/// Every (chunk, micro-batch), group by group, within a group chunk by chunk.
struct Unit {
  int chunk;
  int microbatch;
};
std::vector<Unit> units_by_group(const Schedule& schedule, bool last_chunk_first) {
  std::vector<Unit> units;
  int first = 0;
  for (const int size : group_sizes(schedule.num_microbatches, schedule.num_ranks)) {
    for (int i = 0; i < schedule.num_chunks; ++i) {
      const int chunk = last_chunk_first ? schedule.num_chunks - 1 - i : i;
      for (int microbatch = first; microbatch < first + size; ++microbatch) units.push_back({chunk, microbatch});
    }
    first += size;
  }
  return units;
}

/// 1f1b over units instead of micro-batches. A rank starts so many units before its first backward that backward of the
/// last stage reaches it without a gap; with one chunk the last stage may start backward at once.
void interleaved(const Schedule& schedule, Row& row) {
  if (schedule.num_chunks == 1) return one_forward_one_backward(schedule, row);
  const std::vector<Unit> forwards = units_by_group(schedule, /*last_chunk_first=*/false);
  const std::vector<Unit> backwards = units_by_group(schedule, /*last_chunk_first=*/true);
  const int group = group_sizes(schedule.num_microbatches, schedule.num_ranks).front();
  const int warm_up = (schedule.num_chunks - 1) * group + 2 * (schedule.num_ranks - 1 - row.rank());
  std::size_t started = std::min(static_cast<std::size_t>(warm_up), forwards.size());
  for (std::size_t i = 0; i < started; ++i) row.add(ActionKind::kForward, forwards[i].chunk, forwards[i].microbatch);
  for (const Unit& unit : backwards) {
    if (started < forwards.size()) {
      row.add(ActionKind::kForward, forwards[started].chunk, forwards[started].microbatch);
      ++started;
    }
    row.add(ActionKind::kBackward, unit.chunk, unit.microbatch);
  }
}

/// 1f1b with I in the place of B. `lead` times as many forwards start before the first I, and W waits for the gap that
/// is left at the end: on rank r for `lead` x r micro-batches, which makes every rank hold the same number.
void zero_bubble(const Schedule& schedule, Row& row, int lead) {
  times(lead * (schedule.num_ranks - 1 - row.rank()), [&] { row.forward(); });
  for (int i = 0; i < schedule.num_microbatches; ++i) {
    row.forward();
    row.input();
    if (i >= lead * row.rank()) row.weight();
  }
  times(schedule.num_microbatches, [&] { row.weight(); });
}
void zb_h1(const Schedule& schedule, Row& row) { zero_bubble(schedule, row, 1); }
void zb_h2(const Schedule& schedule, Row& row) { zero_bubble(schedule, row, 2); }

/// Chunk 0 goes down the ranks, chunk 1 comes back up, so the last stage is on rank 0 and every rank holds the same.
/// The numbers of each phase are those at which forward and backward meet without a gap if F = I = W. They need 2p - 1
/// micro-batches; with fewer, the others are left out.
void zb_v(const Schedule& schedule, Row& row) {
  const int ranks = schedule.num_ranks;
  const int rank = row.rank();
  const int microbatches = std::max(2 * ranks - 1, schedule.num_microbatches);
  const auto whole_backward = [&](int chunk) { row.input(chunk), row.weight(chunk); };
  // Down and up.
  times(2 * (ranks - rank) - 1, [&] { row.forward(0); });
  times(rank, [&] { row.forward(1), row.forward(0); });
  times(ranks - rank, [&] { row.forward(1), whole_backward(1); });
  // Chunk 0 has started 2p - 1 - r, chunk 1 has started p and gone back p - r.
  times(microbatches - ranks, [&] { row.forward(0), whole_backward(0), row.forward(1), whole_backward(1); });
  // Only backward is left: weights wait while input gradients go down, and fill the way back up.
  times(rank, [&] { row.input(0), row.input(1); });
  times(ranks - rank, [&] { whole_backward(0); });
  times(schedule.num_microbatches, [&] { row.weight(1); });
  times(schedule.num_microbatches, [&] { row.weight(0); });
}

/// Both chunks of the V run at once in opposite directions: while one micro-batch goes forward another goes backward,
/// each pair F, B to be overlapped by an executor that can. Only what fills the ends of the step is split. The phases
/// are those of DeepSeek's DualPipeV, numbered as there.
void dual_pipe_v(const Schedule& schedule, Row& row) {
  const int behind = schedule.num_ranks - 1 - row.rank();
  const int ahead = row.rank() + 1;
  const int half = ahead / 2;
  const bool odd = row.rank() % 2 == 1;
  const auto backward = [&](int chunk, bool split) { split ? row.input(chunk) : row.backward(chunk); };
  times(2 * behind, [&] { row.forward(0); });                                 // 1
  times(ahead, [&] { row.forward(0), row.forward(1); });                      // 2
  times(behind, [&] { row.input(1), row.oldest_weight(), row.forward(1); });  // 3
  times(schedule.num_microbatches - 2 * schedule.num_ranks + ahead,           // 4
        [&] { row.forward(0), row.backward(1), row.forward(1), row.backward(0); });
  times(behind, [&] { row.backward(1), row.forward(1), row.backward(0); });  // 5
  for (int i = 0; i < ahead; ++i) {                                          // 6
    backward(1, i > half || (i == half && odd));
    backward(0, i >= half);
  }
  times(behind, [&] { row.oldest_weight(), row.input(0); });  // 7
  times(ahead, [&] { row.oldest_weight(); });                 // 8
}

struct Generator {
  ScheduleInfo info;
  StageOrder order;
  void (*fill)(const Schedule& schedule, Row& row);
};

constexpr int kAnyChunks = 1024;

const std::vector<Generator>& generators() {
  static const std::vector<Generator> kGenerators{
      {{.name = "gpipe", .summary = "all forwards, then all backwards"}, StageOrder::kLoop, gpipe},
      {{.name = "1f1b", .summary = "one forward, one backward: the time of gpipe, at most p micro-batches held"},
       StageOrder::kLoop,
       one_forward_one_backward},
      {{.name = "interleaved",
        .summary = "1f1b over v chunks per rank: the bubble divided by v, v times the transfers",
        .max_chunks = kAnyChunks,
        .default_chunks = 2},
       StageOrder::kLoop,
       interleaved},
      {{.name = "zb-h1",
        .summary = "weight gradients fill the gaps at the end: a third of the bubble, p micro-batches held",
        .splits_backward = true},
       StageOrder::kLoop,
       zb_h1},
      {{.name = "zb-h2",
        .summary = "zb-h1 with more forwards first: no gap inside a rank, 2p - 1 micro-batches held",
        .splits_backward = true},
       StageOrder::kLoop,
       zb_h2},
      {{.name = "zbv",
        .summary = "two chunks per rank in a V: no gap inside a rank, p micro-batches held",
        .min_chunks = 2,
        .max_chunks = 2,
        .default_chunks = 2,
        .splits_backward = true},
       StageOrder::kV,
       zb_v},
      {{.name = "dualpipev",
        .summary = "two chunks per rank in a V, forward and backward in pairs that can overlap",
        .min_chunks = 2,
        .max_chunks = 2,
        .default_chunks = 2,
        .min_microbatches_per_rank = 2,
        .splits_backward = true},
       StageOrder::kV,
       dual_pipe_v},
  };
  return kGenerators;
}

constexpr std::string_view kFilePrefix = "file:";

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file.is_open()) text << file.rdbuf();
  check<ConfigError>(file.is_open() && !file.bad() && !text.fail(),
                     "schedule \"{}{}\": the file cannot be read; name an existing one", kFilePrefix, path);
  return text.str();
}

void check_agrees(const Schedule& schedule, const char* what, int wanted, int found) {
  check<ConfigError>(wanted == 0 || wanted == found,
                     "schedule \"{}\" is for {} {}, not {}; change the file or the number", schedule.name, found, what,
                     wanted);
}

Schedule load_schedule(std::string_view name, const ScheduleOptions& options) {
  Schedule schedule = parse_schedule(read_file(std::string(name.substr(kFilePrefix.size()))), name);
  check_agrees(schedule, "ranks", options.ranks, schedule.num_ranks);
  check_agrees(schedule, "chunks per rank", options.chunks, schedule.num_chunks);
  check_agrees(schedule, "micro-batches", options.microbatches, schedule.num_microbatches);
  validate(schedule);
  return schedule;
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
                     "schedule \"{}\" with {} chunks per rank; allowed: {}; leave chunks out for its own number",
                     info.name, chunks, allowed_chunks(info));
  const std::int64_t fewest = std::max<std::int64_t>(1, std::int64_t{info.min_microbatches_per_rank} * options.ranks);
  check<ConfigError>(options.microbatches >= fewest,
                     "schedule \"{}\" on {} ranks with {} micro-batches; allowed: {} or more; cut the batch finer",
                     info.name, options.ranks, options.microbatches, fewest);
  check<ConfigError>(std::int64_t{options.ranks} * chunks <= kMostUnits / options.microbatches,
                     "schedule \"{}\": {} ranks x {} chunks x {} micro-batches; allowed: {} forwards or fewer",
                     info.name, options.ranks, chunks, options.microbatches, kMostUnits);
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
  if (name.starts_with(kFilePrefix)) return load_schedule(name, options);
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
    schedule.rank_of_stage.push_back(rank_of_stage(generator.order, stage, options.ranks));
  }
  for (int rank = 0; rank < options.ranks; ++rank) {
    Row row(schedule, rank);
    generator.fill(schedule, row);
    schedule.actions.push_back(std::move(row).take());
  }
  return schedule;
}

}  // namespace tessera::pipeline

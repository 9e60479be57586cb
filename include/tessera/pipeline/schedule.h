// SPDX-License-Identifier: Apache-2.0
// A pipeline schedule as data: which rank runs which action, in which order. Generators make it, validate() proves it,
// ideal_timeline() prices it, picture() draws it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/mesh/stage_order.h"

namespace tessera::pipeline {

/// What a rank does with one micro-batch on one stage.
enum class ActionKind : std::uint8_t {
  kForward,
  kBackward,        ///< gradients of inputs and weights at once
  kBackwardInput,   ///< gradients of the inputs only: what the stage before waits for
  kBackwardWeight,  ///< gradients of the weights: nobody waits for them before the optimizer
};

struct Action {
  ActionKind kind = ActionKind::kForward;
  int stage = 0;  ///< 0 to ranks * chunks - 1, in the order in which forward passes them
  int microbatch = 0;
  friend bool operator==(const Action&, const Action&) = default;
};

/// The order of work of every rank. A rank runs its actions one after the other, as listed; F(s, m) waits for
/// F(s-1, m), B(s, m) and I(s, m) wait for B or I of (s+1, m); a send waits for nobody.
struct Schedule {
  std::string name;
  int num_ranks = 1;
  int num_chunks = 1;  ///< stages per rank
  int num_microbatches = 1;
  std::vector<int> rank_of_stage;            ///< num_ranks * num_chunks
  bool splits_backward = false;              ///< some backward is in two parts (I and W)
  std::vector<std::vector<Action>> actions;  ///< one row per rank

  [[nodiscard]] int num_stages() const noexcept { return num_ranks * num_chunks; }
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

struct ScheduleOptions {
  int ranks = 1;         ///< for file:PATH also 0: what the file has
  int chunks = 0;        ///< stages per rank; 0: the schedule's own number
  int microbatches = 1;  ///< per step; for file:PATH also 0: what the file has
};

/// What a schedule asks of its options, and what it is.
struct ScheduleInfo {
  std::string name;
  std::string summary;
  int min_chunks = 1;
  int max_chunks = 1;
  int default_chunks = 1;
  int min_microbatches_per_rank = 0;  ///< needs at least so many times `ranks` micro-batches
  bool splits_backward = false;
};

/// Every schedule that make_schedule() makes by name. A new one is a function and a row in src/pipeline/generators.cpp.
///
/// Sources   gpipe        Huang et al. 2018, arXiv:1811.06965
///           1f1b         Narayanan et al. 2020, arXiv:2006.09503 (PipeDream-Flush)
///           interleaved  Narayanan et al. 2021, arXiv:2104.04473; groups of micro-batches as in Megatron-LM.
///                        Where ranks do not divide micro-batches, groups are a little larger instead, so every number
///                        is allowed
///           zb-h1, zb-h2 Qi et al. 2023, arXiv:2401.10241, with one order by hand instead of their search
///           zbv          Qi et al. 2024, arXiv:2405.15362; phases as in PyTorch's ScheduleZBVZeroBubble
///           dualpipev    DeepSeek-V3, arXiv:2412.19437; phases as in github.com/deepseek-ai/DualPipe, dualpipev.py
[[nodiscard]] const std::vector<ScheduleInfo>& schedules();

/// Their names, in the same order.
[[nodiscard]] std::vector<std::string> schedule_names();

/// The schedule of that name, or the one in the text file PATH for "file:PATH". What it returns passes validate().
/// Throws ConfigError naming the name, chunks or micro-batches, what is allowed and the nearest name.
[[nodiscard]] Schedule make_schedule(std::string_view name, const ScheduleOptions& options);

struct ValidateOptions {
  /// Most forward units that a rank may hold at once (see peak_activations); none: no limit.
  std::optional<int> max_activations;
};

/// Proves that the schedule computes one step: every forward exactly once on its stage's rank; for each either one full
/// backward or one I and one W; F before B or I, I before W; and that running the rows in order never deadlocks.
/// Throws ConfigError with the first violation in words, the row and an arrow under the action.
///
/// Cost      O(actions)
void validate(const Schedule& schedule, const ValidateOptions& options = {});

/// Largest number of forward units (one micro-batch on one chunk) that each rank holds at once. A unit is held from its
/// forward until its backward is complete: B, or W of a split backward, since weight gradients need the inputs that the
/// forward saved. An executor that frees part of them at I holds less.
///
/// Closed forms, rank r of p, m micro-batches, v chunks per rank
///           gpipe        m
///           1f1b         min(m, p - r)
///           interleaved  v > 1, p divides m: min(mv, (v-1)p + 2(p-1-r) + 1) chunks
///           zb-h1        min(m, p)
///           zb-h2        min(m, 2p - 1)
///           zbv          m >= 2p - 1: 2p chunks
///           dualpipev    2p + 1 chunks
[[nodiscard]] std::vector<int> peak_activations(const Schedule& schedule);

/// The order for Plan::stages() in which stages lie where the schedule runs them: kV if they turn back at the last rank.
[[nodiscard]] StageOrder stage_order(const Schedule& schedule) noexcept;

/// The text form: one line per rank, actions separated by commas, "0F0,0F1,0B0". Ranks, chunks and stages are read off
/// it: a stage is on the rank in whose row it appears. It is the subset of the schedule files of PyTorch
/// (torch/distributed/pipelining/schedules.py) without transfers, which happen by themselves.
[[nodiscard]] std::string format_schedule(const Schedule& schedule);

/// Inverse of format_schedule. '#' starts a comment; blanks, empty cells and empty lines do not matter. The schedule
/// may still be wrong as a whole: validate() it.
/// Throws ConfigError naming `name`, the line, the word and what is allowed.
[[nodiscard]] Schedule parse_schedule(std::string_view text, std::string_view name);

/// "2F0": stage, kind (F, B, I, W), micro-batch.
[[nodiscard]] std::string to_string(const Action& action);
[[nodiscard]] char letter_of(ActionKind kind) noexcept;

}  // namespace tessera::pipeline

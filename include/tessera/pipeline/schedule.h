// SPDX-License-Identifier: Apache-2.0
// A pipeline schedule as data: which rank runs which action, in which order. Generators make it, validate() proves it,
// ideal_timeline() prices it, the executor runs it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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
  std::vector<int> rank_of_stage;  ///< num_ranks * num_chunks
  bool splits_backward = false;    ///< some backward is in two parts (I and W)
  std::vector<std::vector<Action>> actions;  ///< one row per rank

  [[nodiscard]] int num_stages() const noexcept { return num_ranks * num_chunks; }
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

struct ScheduleOptions {
  int ranks = 1;
  int chunks = 0;        ///< stages per rank; 0: the schedule's own number, 1 where it has none
  int microbatches = 1;  ///< per step
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

/// Every schedule that make_schedule() makes by name.
///
/// Sources   gpipe        Huang et al. 2018, arXiv:1811.06965
///           1f1b         Narayanan et al. 2019 (PipeDream); with a flush: arXiv:2006.09503
[[nodiscard]] const std::vector<ScheduleInfo>& schedules();

/// Their names, in the same order.
[[nodiscard]] std::vector<std::string> schedule_names();

/// Generates the schedule `name`. What it returns passes validate().
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
/// Closed forms, rank r of p, m micro-batches
///           gpipe        m
///           1f1b         min(m, p - r)
[[nodiscard]] std::vector<int> peak_activations(const Schedule& schedule);

/// "2F0": stage, kind (F, B, I, W), micro-batch.
[[nodiscard]] std::string to_string(const Action& action);
[[nodiscard]] char letter_of(ActionKind kind) noexcept;

}  // namespace tessera::pipeline

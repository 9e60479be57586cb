// SPDX-License-Identifier: Apache-2.0
// The checkpoints of one run: how often they are made, how many are kept, and which one a run goes on from.
//
//   tessera::Checkpoints checkpoints("run", state, {.every = 100, .keep = 3});
//   std::int64_t step = checkpoints.resume().value_or(0);
//   while (step < steps) {
//     ...
//     checkpoints.after_step(++step);
//   }
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "tessera/checkpoint/checkpoint.h"

namespace tessera {

struct CheckpointsOptions {
  /// Steps between checkpoints; 0: only where save() is called.
  std::int64_t every = 0;
  /// How many of the newest stay; 0: all. Not 1: the one before is what remains if the newest is damaged.
  std::int64_t keep = 2;
  SaveOptions save{};
};

/// The folders RUN/step-N. All methods but the constructor are collective, as tessera::save().
class Checkpoints {
 public:
  /// `state` must outlive it. Throws ConfigError for options out of range.
  Checkpoints(std::filesystem::path run, State& state, const CheckpointsOptions& options = {});
  ~Checkpoints();
  Checkpoints(const Checkpoints&) = delete;
  Checkpoints& operator=(const Checkpoints&) = delete;

  /// Loads the newest checkpoint that is whole, and returns its step; nothing if there are none. A damaged one is skipped with
  /// a line that says why.
  /// Throws  FileError if there are some, and none is whole; CheckpointMismatch as load(); CheckpointBusy if another job uses
  ///         the run's folder
  [[nodiscard]] std::optional<std::int64_t> resume();

  /// Saves if it is time; true if it did. `step` counts the steps that are done.
  bool after_step(std::int64_t step);

  /// Saves, and then removes what is not kept. Throws  as tessera::save(); CheckpointBusy
  void save(std::int64_t step);

 private:
  struct Lock;
  void take_lock();

  std::filesystem::path run_;
  State& state_;
  CheckpointsOptions options_;
  std::unique_ptr<Lock> lock_;
};

/// What Checkpoints::resume() does, of a run that nobody goes on with in its folder.
[[nodiscard]] std::optional<std::int64_t> load_newest(const std::filesystem::path& run, State& state);

/// The newest checkpoint of a run, be it whole or not; nothing if there is none.
[[nodiscard]] std::optional<std::int64_t> newest_step(const std::filesystem::path& run);

/// "step-1200".
[[nodiscard]] std::string step_folder(std::int64_t step);

}  // namespace tessera

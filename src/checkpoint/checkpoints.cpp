// SPDX-License-Identifier: Apache-2.0
// Which checkpoints a run has.
#include "tessera/checkpoint/checkpoints.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cerrno>
#include <cstring>
#include <functional>

#include "checkpoint/agreement.h"
#include "checkpoint/collector.h"
#include "checkpoint/dtypes.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "tessera/base/log.h"

namespace tessera {
namespace {

constexpr const char* kStepPrefix = "step-";
constexpr const char* kLockName = ".lock";

/// The N of "step-N"; nothing for other names.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const char* begin = name.data() + std::strlen(kStepPrefix);
  const char* end = name.data() + name.size();
  std::int64_t step = -1;
  const auto [parsed, error] = std::from_chars(begin, end, step);
  return error == std::errc{} && parsed == end && step >= 0 ? std::optional(step) : std::nullopt;
}

/// Newest first.
std::vector<std::int64_t> steps_in(const std::filesystem::path& run) {
  std::vector<std::int64_t> steps;
  for (const std::string& name : checkpoint::names_in(run)) {
    if (const auto step = step_of(name)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

checkpoint::Group group_of(const State& state) {
  checkpoint::Collector collector(nullptr);
  for (const checkpoint::Part& part : state.parts()) part(collector);
  return checkpoint::Group(collector.mesh());
}

/// Rank 0's list, since folders may come and go meanwhile.
std::vector<std::int64_t> agreed_steps(const std::filesystem::path& run, const checkpoint::Group& group) {
  std::string mine;
  if (group.rank() == 0) mine = fmt::format("{}", fmt::join(steps_in(run), " "));
  const std::string text = group.exchange(mine).front();
  std::vector<std::int64_t> steps;
  for (const char* at = text.data(); at < text.data() + text.size(); ++at) {
    at = std::from_chars(at, text.data() + text.size(), steps.emplace_back()).ptr;
  }
  return steps;
}

/// The manifest goes first: what is left of it from then on is no checkpoint.
void remove_checkpoint(const std::filesystem::path& folder) {
  checkpoint::real_files().remove((folder / checkpoint::kManifestName).string());
  checkpoint::real_files().remove(folder.string());
}

}  // namespace

std::string step_folder(std::int64_t step) { return fmt::format("{}{}", kStepPrefix, step); }

std::optional<std::int64_t> newest_step(const std::filesystem::path& run) {
  const std::vector<std::int64_t> steps = steps_in(run);
  return steps.empty() ? std::nullopt : std::optional(steps.front());
}

std::optional<std::int64_t> load_newest(const std::filesystem::path& run, State& state) {
  std::string last;
  for (const std::int64_t step : agreed_steps(run, group_of(state))) {
    const std::filesystem::path folder = run / step_folder(step);
    try {
      load(folder, state);
      return step;
    } catch (const FileError& error) {
      base::info("skipped {}: {}", folder.string(), error.what());
      last = error.what();
    }
  }
  check<FileError>(last.empty(), "{}: none of its checkpoints is whole; the oldest: {}", run.string(), last);
  return std::nullopt;
}

/// A file of the run that is locked as long as the job lives; its text says whose it is.
struct Checkpoints::Lock {
  explicit Lock(const std::filesystem::path& run)
      : file(::open((run / kLockName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    check<FileError>(file.is_open(), "{}: cannot write into the folder: {}; name one that can be written", run.string(),
                     std::strerror(errno));
    std::array<char, 64> holder{};
    const auto length = ::pread(file.number(), holder.data(), holder.size() - 1, 0);
    check<CheckpointBusy>(::flock(file.number(), LOCK_EX | LOCK_NB) == 0,
                          "{}: {} makes checkpoints there; wait for it, or name another folder", run.string(),
                          length > 0 ? checkpoint::printable(holder.data()) : "another job");
    const std::string mine = fmt::format("process {}", ::getpid());
    const bool written = ::ftruncate(file.number(), 0) == 0 && ::pwrite(file.number(), mine.data(), mine.size(), 0) > 0;
    check<FileError>(written, "{}: cannot write into the folder: {}", run.string(), std::strerror(errno));
  }
  checkpoint::Descriptor file;
};

Checkpoints::Checkpoints(std::filesystem::path run, State& state, const CheckpointsOptions& options)
    : run_(std::move(run)), state_(state), options_(options) {
  check<ConfigError>(options_.every >= 0, "checkpoints: every = {} steps; allowed: 0 and above", options_.every);
  check<ConfigError>(options_.keep == 0 || options_.keep >= 2,
                     "checkpoints: keep = {}; allowed: 0 for all, or 2 and above, since the newest may be damaged",
                     options_.keep);
}

Checkpoints::~Checkpoints() = default;

void Checkpoints::take_lock() {
  const checkpoint::Group group = group_of(state_);
  group.together([&] {
    if (group.rank() != 0 || lock_ != nullptr) return;
    std::error_code error;
    std::filesystem::create_directories(run_, error);
    lock_ = std::make_unique<Lock>(run_);
  });
}

std::optional<std::int64_t> Checkpoints::resume() {
  take_lock();
  return load_newest(run_, state_);
}

bool Checkpoints::after_step(std::int64_t step) {
  if (options_.every == 0 || step % options_.every != 0) return false;
  save(step);
  return true;
}

void Checkpoints::save(std::int64_t step) {
  take_lock();
  tessera::save(run_ / step_folder(step), state_, options_.save);
  if (options_.keep == 0) return;
  const checkpoint::Group group = group_of(state_);
  group.together([&] {
    if (group.rank() != 0) return;
    // The one that was just made stays, even if a later one was left by a run that went further.
    std::int64_t kept = 1;
    for (const std::int64_t other : steps_in(run_)) {
      if (other == step || kept++ < options_.keep) continue;
      remove_checkpoint(run_ / step_folder(other));
    }
  });
}

}  // namespace tessera

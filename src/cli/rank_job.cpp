// SPDX-License-Identifier: Apache-2.0
// Threads, local processes, or one rank of somebody else's job.
#include "cli/rank_job.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>

#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/comm/cuda_plugin.h"
#include "tessera/launch/environment.h"
#include "tessera/launch/failure.h"
#include "tessera/launch/launch.h"
#include "tessera/launch/local_launcher.h"
#include "tessera/launch/threads.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

std::chrono::milliseconds timeout_of(const train::TrainConfig& config) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(config.timeout_s * 1e3));
}

/// The file has the lines that rank 0 wrote, so this line is added.
void append_error(const std::string& json, const train::ErrorRecord& record) {
  const std::string line = train::format_json(record) + "\n";
  if (json.empty()) return;
  if (json == "-") {
    std::cout << line << std::flush;
    return;
  }
  const int file = ::open(json.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  if (::write(file, line.data(), line.size()) < 0) base::warn("{}: the error line could not be written", json);
  ::close(file);
}

int run_processes(const RankJob& job) {
  launcher::JobOptions options{.num_ranks = job.num_ranks,
                               .program = std::filesystem::read_symlink("/proc/self/exe").string(),
                               .threads_per_rank = static_cast<int>(job.config.threads_per_rank)};
  const launcher::JobResult result = launcher::run_local_job(job.words, options);
  if (result.first_failure) {
    const launcher::JobFailure& failure = *result.first_failure;
    std::cerr << "tessera: error: " << failure.message << '\n';
    append_error(job.flags.json, {failure.kind, failure.rank, failure.message, "rank"});
  }
  return result.exit_code;
}

void run_as_threads(const RankJob& job, const RankBody& body) {
  ThreadOptions options;
  options.world.timeout = timeout_of(job.config);
  options.world.device = c10::Device(job.config.device);
  options.world.makers = load_device(job.config.device);
  options.threads_per_rank = static_cast<int>(job.config.threads_per_rank);
  run_threads(job.num_ranks, options, body);
}

void run_as_rank(const RankJob& job, const launcher::RankEnvironment& environment, const RankBody& body) {
  LaunchOptions options;
  options.transport = job.flags.transport;
  options.timeout = timeout_of(job.config);
  options.device = c10::Device(job.config.device);
  options.makers = load_device(job.config.device);
  options.threads_per_rank = static_cast<int>(job.config.threads_per_rank);
  const Ranks ranks = launcher::join_job(environment, options);
  const base::LogRank log_rank(ranks.rank());
  body(ranks.world());
}

}  // namespace

std::map<std::string, comm::BackendMaker> load_device(const std::string& device) {
  if (c10::Device(device).is_cpu()) return {};
  return comm::load_cuda_makers();
}

int launched_ranks() {
  const launcher::RankEnvironment environment = launcher::detect_ranks(launcher::process_environment());
  return environment.source == launcher::RankSource::kNone ? 0 : environment.world_size;
}

int run_ranks(const RankJob& job, const RankBody& body) {
  const launcher::RankEnvironment environment = launcher::detect_ranks(launcher::process_environment());
  const bool launched = environment.source != launcher::RankSource::kNone;
  if (!launched && job.num_ranks > 1 && job.config.ranks == "processes") return run_processes(job);
  try {
    if (!launched && job.num_ranks > 1) {
      run_as_threads(job, body);
    } else {
      run_as_rank(job, environment, body);
    }
  } catch (...) {
    if (launched) throw;  // the launcher tells
    const launcher::FailureReport failure = launcher::describe_failure(std::current_exception());
    append_error(job.flags.json, {failure.kind, 0, failure.message, "rank"});
    throw;
  }
  return 0;
}

}  // namespace tessera::cli

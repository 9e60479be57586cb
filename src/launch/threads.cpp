// SPDX-License-Identifier: Apache-2.0
// Ranks as threads: settings of each thread, and the first failure of the job.
#include "tessera/launch/threads.h"

#include <ATen/Parallel.h>
#include <c10/core/AutogradState.h>
#include <fmt/format.h>

#include <mutex>
#include <thread>
#include <vector>

#include "comm/devices.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/launch/failure.h"

namespace tessera {
namespace {

/// The exception that came before all others.
class FirstFailure {
 public:
  void set(int rank, std::exception_ptr exception) {
    const std::lock_guard lock(mutex_);
    if (exception_ == nullptr) {
      rank_ = rank;
      exception_ = std::move(exception);
    }
  }

  /// Throws the failure, if there is one, with its rank in front and its type kept.
  void throw_if_any(int num_ranks) const {
    if (exception_ == nullptr) {
      return;
    }
    const auto report = launcher::describe_failure(exception_);
    const std::string message = fmt::format("rank {} of {}: {}", rank_, num_ranks, report.message);
    try {
      std::rethrow_exception(exception_);
    } catch (const ConfigError&) {
      throw ConfigError(message);
    } catch (const ShapeError&) {
      throw ShapeError(message);
    } catch (const CommunicationError&) {
      throw CommunicationError(message);
    } catch (const FileError&) {
      throw FileError(message);
    } catch (...) {
      throw Error(message);
    }
  }

 private:
  std::mutex mutex_;
  std::exception_ptr exception_;
  int rank_ = -1;
};

void prepare_thread(int threads_per_rank) {
  at::set_num_threads(threads_per_rank);
  // The engine's worker threads are shared by all ranks of the process: a collective that blocks one would block all.
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
}

}  // namespace

void run_threads(int num_ranks, const ThreadOptions& options,
                 const std::function<void(std::shared_ptr<comm::World>)>& body) {
  check<ConfigError>(options.threads_per_rank >= 1, "run_threads: threads_per_rank={} is out of range (allowed: 1 or "
                     "more)", options.threads_per_rank);
  auto worlds = comm::make_thread_worlds(num_ranks, options.world);
  // The ranks' streams do not wait for the caller's, where tensors that the body reads may still be under way.
  comm::detail::finish_device(options.world.device);
  const int threads_before = at::get_num_threads();
  FirstFailure failure;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) {
    threads.emplace_back([&, rank, world = worlds[static_cast<std::size_t>(rank)]]() mutable {
      try {
        const base::LogRank speaker(rank);
        prepare_thread(options.threads_per_rank);
        const comm::detail::RankThread on_device(world->device());
        body(world);
        world->leave();
      } catch (...) {
        // Recorded before the others are woken, so that none of their complaints can come first.
        const std::exception_ptr exception = std::current_exception();
        failure.set(rank, exception);
        world->abort(launcher::describe_failure(exception).message);
      }
      world.reset();
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  at::set_num_threads(threads_before);
  failure.throw_if_any(num_ranks);
}

}  // namespace tessera

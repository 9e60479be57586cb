// SPDX-License-Identifier: Apache-2.0
// launch(): launcher, rank of a job, or a world of one.
#include "tessera/launch/launch.h"

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "comm/devices.h"
#include "launch/command_line.h"
#include "launch/control_channel.h"
#include "launch/rendezvous.h"
#include "launch/sockets.h"
#include "launch/terminal.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/base/version.h"
#include "tessera/comm/worlds.h"
#include "tessera/launch/failure.h"
#include "tessera/launch/local_launcher.h"

namespace tessera {
namespace launcher {
namespace {

[[noreturn]] void become_launcher(int num_ranks, const std::vector<std::string>& command) {
  const JobResult result =
      run_local_job(command, {.num_ranks = num_ranks, .program = std::filesystem::read_symlink("/proc/self/exe")});
  if (result.first_failure) {
    detail::print_error(result.first_failure->message);
  }
  std::exit(result.exit_code);
}

void set_num_threads(const RankEnvironment& ranks, int threads_per_rank) {
  if (threads_per_rank > 0) {
    at::set_num_threads(threads_per_rank);
  } else if (ranks.local_world_size > 1 && !process_environment()("OMP_NUM_THREADS")) {
    // Otherwise every rank would use every core.
    cpu_set_t cores;
    const int num_cores = ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    at::set_num_threads(std::max(1, num_cores / ranks.local_world_size));
  }
}

std::string choose_transport(const RankEnvironment& ranks, const LaunchOptions& options) {
  if (!options.transport.empty()) {
    return options.transport;
  }
  if (options.device.is_cuda() && options.makers.contains("nccl")) {
    return "nccl";
  }
  return ranks.on_one_machine() ? "shm" : "gloo";
}

/// This machine's address as other ranks see it.
std::string own_address(const RankEnvironment& ranks, const LaunchOptions& options) {
  check<ConfigError>(options.listen != "0.0.0.0" && options.listen != "::",
                     "--listen {} would listen on every interface; name the address of one", options.listen);
  if (!options.listen.empty()) {
    return detail::resolve(options.listen);
  }
  if (ranks.on_one_machine()) {
    return "127.0.0.1";
  }
  const auto interface = process_environment()("GLOO_SOCKET_IFNAME");
  check<ConfigError>(interface.has_value(),
                     "rank {} of {}: ranks are on several machines, but no address of this one is named; set --listen "
                     "ADDRESS or GLOO_SOCKET_IFNAME=INTERFACE",
                     ranks.rank, ranks.world_size);
  return detail::address_of_interface(*interface);
}

comm::WorldOptions make_world_options(const RankEnvironment& ranks, const LaunchOptions& options) {
  comm::WorldOptions world;
  world.device = comm::detail::device_of_rank(options.device, ranks.local_rank, /*shared=*/false);
  world.makers = options.makers;
  world.ranks_on_machine = ranks.local_world_size;
  if (const auto timeout = options.timeout ? options.timeout : read_switches(process_environment()).timeout) {
    world.timeout = *timeout;
  }
  return world;
}

std::map<std::string, std::string> agreed_fields(const RankEnvironment& ranks, const std::string& transport,
                                                 const LaunchOptions& options) {
  auto fields = options.agree_on;
  fields["tessera"] = base::version();
  fields["torch"] = base::format_version(base::loaded_torch_version());
  fields["world_size"] = std::to_string(ranks.world_size);
  fields["transport"] = transport;
  return fields;
}

}  // namespace

Ranks join_job(const RankEnvironment& ranks, const LaunchOptions& options) {
  const auto control = ranks.control_fd && detail::is_control_channel(*ranks.control_fd) ? ranks.control_fd
                                                                                          : std::nullopt;
  if (control) {
    detail::leave_with_launcher(*control);
  }
  // For as long as the process lives: from here on it speaks as this rank.
  static const base::LogRank speaker(ranks.rank);
  set_num_threads(ranks, options.threads_per_rank);
  comm::WorldOptions world_options = make_world_options(ranks, options);
  comm::detail::use_device(world_options.device);
  if (ranks.world_size == 1) {
    return {comm::make_single_world(world_options.device), ranks.source};
  }
  world_options.address = own_address(ranks, options);
  const std::string transport = choose_transport(ranks, options);
  check<ConfigError>(transport != "shm" || ranks.on_one_machine(),
                     "--transport shm: ranks are on several machines ({} of {} here); use gloo",
                     ranks.local_world_size, ranks.world_size);
  auto store = detail::connect_store(ranks, options.handshake_timeout);
  detail::shake_hands(*store, {.rank = ranks.rank,
                               .world_size = ranks.world_size,
                               .timeout = options.handshake_timeout,
                               .fields = agreed_fields(ranks, transport, options),
                               .on_arrival = [&] {
                                 if (control) {
                                   detail::send_arrived(*control);
                                 }
                               }});
  base::info("{} ranks by {}, {} of them on this machine, transport {}", ranks.world_size, name_of(ranks.source),
             ranks.local_world_size, transport);
  return {comm::make_process_world(ranks.rank, ranks.world_size, ranks.local_rank, std::move(store), transport,
                                   world_options),
          ranks.source};
}

}  // namespace launcher

Ranks launch(int& argc, char** argv, const LaunchOptions& options) {
  launcher::report_uncaught_exceptions();
  base::check_torch_version();
  const auto flags = launcher::detail::take_launch_flags(argc, argv);
  const auto ranks = launcher::detect_ranks(launcher::process_environment());
  LaunchOptions resolved = options;
  resolved.transport = flags.transport.value_or(options.transport);
  if (ranks.source != launcher::RankSource::kNone) {
    check<ConfigError>(!flags.nproc || *flags.nproc == ranks.local_world_size,
                       "--nproc {}: this process is already one of {} local ranks by {}; leave the flag away",
                       flags.nproc.value_or(0), ranks.local_world_size, launcher::name_of(ranks.source));
    return launcher::join_job(ranks, resolved);
  }
  const int num_ranks = flags.nproc.value_or(options.nproc);
  if (num_ranks > 1) {
    std::vector<std::string> command(argv, argv + argc);
    if (flags.transport) {
      command.insert(command.begin() + 1, "--transport=" + *flags.transport);
    }
    launcher::become_launcher(num_ranks, command);
  }
  check<ConfigError>(flags.nproc || ranks.hint.empty(), "launch: {}", ranks.hint);
  return launcher::join_job(ranks, resolved);
}

}  // namespace tessera

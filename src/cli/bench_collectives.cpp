// SPDX-License-Identifier: Apache-2.0
// `tessera bench collectives`: times of the four main collectives over message sizes, on any transport.
#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "cli/bench_commands.h"
#include "cli/bench_times.h"
#include "cli/rank_job.h"
#include "comm/devices.h"
#include "tessera/base/error.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

constexpr int kWarmup = 5;

struct CollectivesFlags {
  std::string transport = "shm";
  int num_ranks = 2;
  std::int64_t min_bytes = 4;
  std::int64_t max_bytes = std::int64_t{1} << 26;
  std::string device = "cpu";
  std::string json;
};

/// float32. `whole` has the message's size, `part` one rank's share of it.
struct Buffers {
  at::Tensor whole;
  at::Tensor part;
  at::Tensor received;
};

template <class Options>
Options synchronous() {
  Options options;
  options.asyncOp = false;
  return options;
}

/// Results go to buffers that are there already, as in MPI: hence c10d's calls where a communicator would make one.
using Call = void (*)(const comm::Communicator&, Buffers&);

void all_reduce(const comm::Communicator& ranks, Buffers& buffers) { ranks.all_reduce(buffers.whole); }

void all_gather(const comm::Communicator& ranks, Buffers& buffers) {
  const auto work =
      ranks.backend()->_allgather_base(buffers.whole, buffers.part, synchronous<c10d::AllgatherOptions>());
  if (work) work->wait();
}

void reduce_scatter(const comm::Communicator& ranks, Buffers& buffers) {
  const auto work =
      ranks.backend()->_reduce_scatter_base(buffers.part, buffers.whole, synchronous<c10d::ReduceScatterOptions>());
  if (work) work->wait();
}

void all_to_all(const comm::Communicator& ranks, Buffers& buffers) {
  std::vector<std::int64_t> even;
  const auto work = ranks.backend()->alltoall_base(buffers.received, buffers.whole, even, even,
                                                   synchronous<c10d::AllToAllOptions>());
  if (work) work->wait();
}

/// `traffic`: bus bandwidth over algorithm bandwidth, times n; the convention of nccl-tests. All-reduce moves 2 (n - 1)
/// n-ths of the message, the others n - 1.
struct Collective {
  const char* name;
  Call call;
  int traffic;
};

constexpr Collective kCollectives[] = {{"all_reduce", all_reduce, 2},
                                       {"all_gather", all_gather, 1},
                                       {"reduce_scatter", reduce_scatter, 1},
                                       {"all_to_all", all_to_all, 1}};

/// All but all-reduce cut the message into equal shares, of one element at least.
Buffers make_buffers(const Collective& collective, std::int64_t elements, int world, c10::Device device) {
  const std::int64_t share = std::max<std::int64_t>(1, elements / world);
  const std::int64_t whole = collective.call == all_reduce ? elements : share * world;
  return {at::zeros({whole}, device), at::zeros({share}, device), at::zeros({whole}, device)};
}

/// 200 up to 64 KiB, fewer above, at least 10.
int iterations_for(std::int64_t bytes) {
  return static_cast<int>(std::clamp<std::int64_t>((std::int64_t{1} << 24) / bytes, 10, 200));
}

/// Microseconds of each iteration on its slowest rank; an iteration starts where the last one ended on that rank.
std::vector<double> time_collective(const comm::Communicator& ranks, Call call, Buffers& buffers, int iterations) {
  const c10::Device device = buffers.whole.device();
  for (int i = 0; i < kWarmup; ++i) call(ranks, buffers);
  ranks.barrier();
  comm::detail::finish_device(device);
  std::vector<double> times(static_cast<std::size_t>(iterations));
  for (double& time : times) {
    const auto start = std::chrono::steady_clock::now();
    call(ranks, buffers);
    comm::detail::finish_device(device);
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - start;
    time = elapsed.count();
  }
  return slowest_rank(ranks, times, device);
}

/// What rank 0 tells.
class CollectivesReport {
 public:
  CollectivesReport(const std::string& json, std::string transport, int world)
      : json_(json), shows_table_(json != "-"), transport_(std::move(transport)), world_(world) {
    if (!shows_table_) return;
    std::cout << fmt::format("{} ranks over {}\n{:<15} {:>10} {:>12} {:>12} {:>12} {:>10} {:>10}\n", world_, transport_,
                             "collective", "bytes", "us median", "us p10", "us p90", "alg GB/s", "bus GB/s");
  }

  void add(const Collective& collective, std::int64_t bytes, const std::vector<double>& times) {
    const Spread spread = spread_of(times);
    const double algorithm_gbps = static_cast<double>(bytes) / spread.median / 1e3;
    const double bus_gbps = algorithm_gbps * collective.traffic * (world_ - 1) / world_;
    json_.write(nlohmann::ordered_json{{"collective", collective.name},
                                       {"transport", transport_},
                                       {"world", world_},
                                       {"bytes", bytes},
                                       {"dtype", "float32"},
                                       {"us_median", spread.median},
                                       {"us_p10", spread.p10},
                                       {"us_p90", spread.p90},
                                       {"algorithm_gbps", algorithm_gbps},
                                       {"bus_gbps", bus_gbps},
                                       {"iterations", times.size()}}
                    .dump());
    if (!shows_table_) return;
    std::cout << fmt::format("{:<15} {:>10} {:>12.2f} {:>12.2f} {:>12.2f} {:>10.3f} {:>10.3f}\n", collective.name, bytes,
                             spread.median, spread.p10, spread.p90, algorithm_gbps, bus_gbps)
              << std::flush;
  }

 private:
  train::JsonLines json_;
  bool shows_table_;
  std::string transport_;
  int world_;
};

void measure_rank(const CollectivesFlags& flags, comm::World& world) {
  const comm::Communicator ranks = everyone(world);
  std::optional<CollectivesReport> report;
  if (world.rank() == 0) report.emplace(flags.json, world.transport(), world.size());
  for (const Collective& collective : kCollectives) {
    for (std::int64_t size = flags.min_bytes; size <= flags.max_bytes; size *= 4) {
      Buffers buffers = make_buffers(collective, size / 4, world.size(), world.device());
      const auto times = time_collective(ranks, collective.call, buffers, iterations_for(size));
      if (report) report->add(collective, static_cast<std::int64_t>(buffers.whole.nbytes()), times);
    }
  }
}

void check_flags(const CollectivesFlags& flags, int num_ranks) {
  check<ConfigError>(num_ranks >= 2, "{} rank has nobody to talk to; allowed: --nproc 2 or more", num_ranks);
  check<ConfigError>(flags.min_bytes >= 4 && flags.min_bytes % 4 == 0 && flags.min_bytes <= flags.max_bytes,
                     "--min-bytes {} is out of range; allowed: multiples of 4 up to --max-bytes {}", flags.min_bytes,
                     flags.max_bytes);
  const bool moves_cuda = flags.transport == "thread" || flags.transport == "nccl";
  check<ConfigError>(flags.device == "cuda" ? moves_cuda : flags.transport != "nccl",
                     "--transport {} does not move tensors on {}; allowed with --device cuda: thread, nccl; with cpu: "
                     "thread, shm, gloo", flags.transport, flags.device);
  check<ConfigError>(flags.transport != "thread" || launched_ranks() == 0,
                     "--transport thread: a launcher made ranks of processes already; allowed here: shm, gloo, nccl");
}

RankJob make_job(const CollectivesFlags& flags, int num_ranks, const Invocation& invocation) {
  RankJob job{.num_ranks = num_ranks, .words = invocation.words, .flags = {}, .config = {}};
  job.flags.json = flags.json;
  job.flags.transport = flags.transport;
  job.config.device = flags.device;
  if (flags.transport == "thread") job.config.ranks = "threads";
  return job;
}

}  // namespace

Command add_bench_collectives(CLI::App& bench, const Invocation& invocation) {
  CLI::App* command = bench.add_subcommand("collectives", "times of the main collectives over message sizes");
  command->footer("\nfloat32. Bytes: the larger of a rank's two buffers. An iteration's time is that of its slowest rank.\n"
                  "algorithm GB/s = bytes / time; bus GB/s as nccl-tests define it.");
  const auto flags = std::make_shared<CollectivesFlags>();
  command->add_option("--transport", flags->transport, "thread (ranks as threads), shm, gloo or nccl (default shm)")
      ->check(CLI::IsMember({"thread", "shm", "gloo", "nccl"}));
  command->add_option("--nproc", flags->num_ranks, "ranks (default 2)");
  command->add_option("--min-bytes", flags->min_bytes, "smallest message [bytes] (default 4)");
  command->add_option("--max-bytes", flags->max_bytes, "largest message [bytes]; sizes grow by 4 (default 64 MiB)");
  command->add_option("--device", flags->device, "cpu or cuda (default cpu)")->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--json", flags->json, "writes one JSON object per line to this file; - is standard output")
      ->option_text("FILE");
  return [flags, &invocation] {
    const int launched = launched_ranks();
    const int num_ranks = launched > 0 ? launched : flags->num_ranks;
    check_flags(*flags, num_ranks);
    return run_ranks(make_job(*flags, num_ranks, invocation),
                     [&](const std::shared_ptr<comm::World>& world) { measure_rank(*flags, *world); });
  };
}

}  // namespace tessera::cli

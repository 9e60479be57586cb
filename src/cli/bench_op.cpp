// SPDX-License-Identifier: Apache-2.0
// `tessera bench op`: host time of one operation on a mesh tensor beside the same on a plain tensor.
#include <torch/torch.h>

#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/bench_commands.h"
#include "cli/bench_times.h"
#include "cli/rank_job.h"
#include "comm/devices.h"
#include "tessera/base/error.h"
#include "tessera/launch/threads.h"
#include "tessera/mesh/mesh.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

constexpr int kChain = 1000;

struct OpFlags {
  int num_ranks = 1;
  int repeats = 101;
  int calls = 200;
  std::string device = "cpu";
  std::string json;
};

/// vector + addend, matrix x factor; what requires a gradient is on the left.
struct Operands {
  at::Tensor vector;
  at::Tensor addend;
  at::Tensor matrix;
  at::Tensor factor;
};

// Each loop makes `calls` operations, as a user's program would: through at::Tensor, one after the other. Batches are
// shorter than a scheduler's time slice, so that on a busy machine most are not interrupted and the median is of those.
void loop_adds(const Operands& operands, int calls) {
  for (int i = 0; i < calls; ++i) const at::Tensor sum = operands.vector + operands.addend;
}

void loop_products(const Operands& operands, int calls) {
  for (int i = 0; i < calls; ++i) const at::Tensor product = at::mm(operands.matrix, operands.factor);
}

/// With gradients, building and freeing a graph of that many nodes is part of it.
void loop_chain(const Operands& operands, int calls) {
  at::Tensor sum = operands.vector;
  for (int i = 0; i < calls; ++i) sum = sum + operands.addend;
}

struct Operation {
  const char* name;
  void (*loop)(const Operands&, int calls);
  int calls;  ///< per batch; 0: as --calls says
};

constexpr Operation kOperations[] = {
    {"add_4", loop_adds, 0}, {"mm_16x16", loop_products, 0}, {"chain_1000_adds_4", loop_chain, kChain}};

Operands plain_operands(bool grad, c10::Device device) {
  const at::TensorOptions options(device);
  return {at::ones({4}, options).requires_grad_(grad), at::ones({4}, options),
          at::ones({16, 16}, options).requires_grad_(grad), at::ones({16, 16}, options)};
}

/// The plain ones laid out so that no operation communicates.
Operands mesh_operands(const Operands& plain, const Mesh& mesh, Placement placement) {
  return {distribute(plain.vector, mesh, {placement}), distribute(plain.addend, mesh, {placement}),
          distribute(plain.matrix, mesh, {placement}), distribute(plain.factor, mesh, {Replicate()})};
}

/// Of the host: on a GPU what is queued is over before and not waited for after.
double ns_per_call(const Operation& operation, const Operands& operands, int calls) {
  comm::detail::finish_device(operands.vector.device());
  const auto start = std::chrono::steady_clock::now();
  operation.loop(operands, calls);
  const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count() / calls;
}

/// Batches of the two kinds alternate, so that drift of the machine falls on both alike.
struct Comparison {
  int calls = 0;  ///< per batch
  std::vector<double> plain;
  std::vector<double> mesh;
  std::vector<double> added;
};

Comparison compare(const Operation& operation, const Operands& plain, const Operands& mesh, const OpFlags& flags,
                   const comm::Communicator& ranks) {
  Comparison comparison;
  comparison.calls = operation.calls > 0 ? operation.calls : flags.calls;
  for (int i = -1; i < flags.repeats; ++i) {
    ranks.barrier();
    const double plain_ns = ns_per_call(operation, plain, comparison.calls);
    ranks.barrier();
    const double mesh_ns = ns_per_call(operation, mesh, comparison.calls);
    if (i < 0) continue;  // warm-up
    comparison.plain.push_back(plain_ns);
    comparison.mesh.push_back(mesh_ns);
    comparison.added.push_back(mesh_ns - plain_ns);
  }
  return comparison;
}

void put(nlohmann::ordered_json& json, const std::string& name, const std::vector<double>& times) {
  const Spread spread = spread_of(times);
  json[name] = spread.median;
  json[name + "_p10"] = spread.p10;
  json[name + "_p90"] = spread.p90;
}

/// What rank 0 tells of one comparison.
class OpReport {
 public:
  explicit OpReport(const std::string& json) : json_(json), shows_table_(json != "-") {
    if (!shows_table_) return;
    std::cout << fmt::format("{:<18} {:<10} {:<5} {:>10} {:>10} {:>10}\n", "operation", "placement", "grad", "plain ns",
                             "mesh ns", "added ns");
  }

  void add(const char* operation, const Placement& placement, bool grad, const OpFlags& flags,
           const Comparison& comparison) {
    nlohmann::ordered_json line{{"operation", operation},
                                {"placement", to_string(placement)},
                                {"grad", grad},
                                {"world", flags.num_ranks},
                                {"device", flags.device}};
    put(line, "plain_ns", comparison.plain);
    put(line, "mesh_ns", comparison.mesh);
    put(line, "added_ns", comparison.added);
    line["repeats"] = flags.repeats;
    line["calls"] = comparison.calls;
    json_.write(line.dump());
    if (!shows_table_) return;
    std::cout << fmt::format("{:<18} {:<10} {:<5} {:>10.0f} {:>10.0f} {:>10.0f}\n", operation, to_string(placement),
                             grad ? "yes" : "no", spread_of(comparison.plain).median, spread_of(comparison.mesh).median,
                             spread_of(comparison.added).median)
              << std::flush;
  }

 private:
  train::JsonLines json_;
  bool shows_table_;
};

void measure_rank(const OpFlags& flags, const std::shared_ptr<comm::World>& world) {
  const Mesh mesh(world, {{"tp", flags.num_ranks}});
  const comm::Communicator& ranks = mesh.along(0);
  std::optional<OpReport> report;
  if (world->rank() == 0) report.emplace(flags.json);
  for (const Placement& placement : {Replicate(), Shard(0)}) {
    for (const bool grad : {false, true}) {
      const Operands plain = plain_operands(grad, mesh.device());
      const Operands spread = mesh_operands(plain, mesh, placement);
      const at::AutoGradMode mode(grad);
      for (const Operation& operation : kOperations) {
        const Comparison comparison = compare(operation, plain, spread, flags, ranks);
        if (report) report->add(operation.name, placement, grad, flags, comparison);
      }
    }
  }
}

void check_flags(const OpFlags& flags) {
  check<ConfigError>(flags.num_ranks >= 1 && flags.num_ranks <= 4,
                     "--nproc {} is out of range; allowed: 1 to 4, as many as the vector has elements", flags.num_ranks);
  check<ConfigError>(flags.repeats >= 1, "--repeats {} is out of range; allowed: 1 or more", flags.repeats);
  check<ConfigError>(flags.calls >= 1, "--calls {} is out of range; allowed: 1 or more", flags.calls);
}

}  // namespace

Command add_bench_op(CLI::App& bench, const Invocation& /*invocation*/) {
  CLI::App* command = bench.add_subcommand("op", "host time of one operation: mesh tensor beside plain tensor");
  command->footer("\nTimes are rank 0's, per operation: the median of --repeats batches of --calls operations.\n"
                  "Nothing measured here communicates.");
  const auto flags = std::make_shared<OpFlags>();
  command->add_option("--nproc", flags->num_ranks, "ranks, as threads (default 1)");
  command->add_option("--repeats", flags->repeats, "batches per measurement (default 101)");
  command->add_option("--calls", flags->calls, "operations per batch (default 200; a chain always has 1000)");
  command->add_option("--device", flags->device, "cpu, or cuda: the ranks share the GPUs (default cpu)")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--json", flags->json, "writes one JSON object per line to this file; - is standard output")
      ->option_text("FILE");
  return [flags] {
    check_flags(*flags);
    ThreadOptions options;
    options.world.device = c10::Device(flags->device);
    options.world.makers = load_device(flags->device);
    run_threads(flags->num_ranks, options,
                [&](const std::shared_ptr<comm::World>& world) { measure_rank(*flags, world); });
    return 0;
  };
}

}  // namespace tessera::cli

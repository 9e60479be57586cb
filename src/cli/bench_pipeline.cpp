// SPDX-License-Identifier: Apache-2.0
// `tessera bench pipeline`: executed schedules beside their ideal timeline, on stages whose every action takes the same
// time because it sleeps, so that a few cores suffice for many stages.
#include <torch/library.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/bench_commands.h"
#include "tessera/base/error.h"
#include "tessera/launch/threads.h"
#include "tessera/module/distribute.h"
#include "tessera/pipeline/step.h"
#include "tessera/pipeline/timeline.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

constexpr std::int64_t kWidth = 4;

struct PipelineFlags {
  std::string schedule = "all";
  int max_ranks = 4;
  double action_ms = 20;
  int repeats = 1;
  std::string json;
};

/// How long a matrix product takes, in this command.
std::atomic<std::int64_t>& product_us() {
  static std::atomic<std::int64_t> time{0};
  return time;
}

at::Tensor sleeping_product(const at::Tensor& left, const at::Tensor& right) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(product_us().load());
  at::Tensor product = at::zeros({left.size(0), right.size(1)}, left.options());
  std::this_thread::sleep_until(until);
  return product;
}

/// One product per stage: forward is one, backward one for the input and one for the weight.
struct ProductsImpl : torch::nn::Module {
  explicit ProductsImpl(int count) {
    // The first stage has an input gradient to compute, too.
    shift = register_parameter("shift", torch::zeros({kWidth}));
    for (int i = 0; i < count; ++i) {
      weights.push_back(register_parameter("weight" + std::to_string(i), torch::ones({kWidth, kWidth})));
    }
  }
  at::Tensor forward(const at::Tensor& x) {
    at::Tensor hidden = x + shift;
    for (const at::Tensor& weight : weights) hidden = at::mm(hidden, weight);
    return hidden;
  }
  at::Tensor shift;
  std::vector<at::Tensor> weights;
};
TORCH_MODULE(Products);

Plan plan_for(const pipeline::Schedule& schedule) {
  std::vector<std::vector<std::string>> stages;
  for (int i = 0; i < schedule.num_stages(); ++i) stages.push_back({"weight" + std::to_string(i)});
  stages.front().push_back("shift");
  return Plan().stages(std::move(stages), pipeline::stage_order(schedule));
}

/// Milliseconds from the first action's start to the last one's end, over all ranks; the least of the repeats.
double measure(const pipeline::Schedule& schedule, const PipelineFlags& flags) {
  double best = std::numeric_limits<double>::max();
  run_threads(schedule.num_ranks, {}, [&](const std::shared_ptr<comm::World>& world) {
    const Mesh mesh(world, parse_axes("pp=" + std::to_string(schedule.num_ranks)));
    Products model(schedule.num_stages());
    distribute(*model, mesh, plan_for(schedule));
    const at::Tensor x = at::ones({schedule.num_microbatches, kWidth});
    const auto mean = [](const at::Tensor& output, const at::Tensor&) { return output.mean(); };
    for (int repeat = -1; repeat < flags.repeats; ++repeat) {
      mesh.everyone().barrier();
      // The first step teaches shapes, one micro-batch after the other.
      if (mesh.rank() == 0) product_us() = repeat < 0 ? 0 : static_cast<std::int64_t>(flags.action_ms * 1e3);
      mesh.everyone().barrier();
      model->zero_grad();
      std::vector<pipeline::TracedAction> mine;
      (void)step(*model, x, x, mean, {.microbatches = schedule.num_microbatches, .schedule = schedule.name, .trace = &mine});
      if (mine.empty()) continue;
      const auto rows = pipeline::gather_trace(mesh, mine);
      double start = std::numeric_limits<double>::max();
      double end = 0;
      for (const auto& row : rows) {
        start = std::min(start, row.front().start_ms);
        end = std::max(end, row.back().end_ms);
      }
      if (mesh.rank() == 0) best = std::min(best, end - start);
    }
  });
  return best;
}

void measure_and_tell(const pipeline::Schedule& schedule, const PipelineFlags& flags, train::JsonLines& json) {
  const std::vector<double> action{flags.action_ms};
  const pipeline::Timeline ideal = pipeline::ideal_timeline(schedule, {action, action, action, 0});
  const double measured_ms = measure(schedule, flags);
  const double ratio = measured_ms / ideal.makespan;
  json.write(nlohmann::json{{"schedule", schedule.name},
                            {"ranks", schedule.num_ranks},
                            {"chunks", schedule.num_chunks},
                            {"microbatches", schedule.num_microbatches},
                            {"action_ms", flags.action_ms},
                            {"ideal_ms", ideal.makespan},
                            {"measured_ms", measured_ms},
                            {"ratio", ratio},
                            {"ideal_bubble", ideal.mean_bubble()}}
                 .dump());
  if (flags.json == "-") return;
  std::cout << fmt::format("{:<12} pp={} chunks={} microbatches={:<3} ideal {:8.1f} ms  measured {:8.1f} ms  ratio {:.3f}  "
                           "bubble {:.1f} %\n",
                           schedule.name, schedule.num_ranks, schedule.num_chunks, schedule.num_microbatches,
                           ideal.makespan, measured_ms, ratio, 100 * ideal.mean_bubble())
            << std::flush;
}

void check_flags(const PipelineFlags& flags) {
  check<ConfigError>(flags.max_ranks >= 2 && flags.max_ranks <= 16, "--ranks {} is out of range; allowed: 2 to 16",
                     flags.max_ranks);
  check<ConfigError>(flags.action_ms > 0 && flags.action_ms <= 1e4, "--action-ms {} is out of range; allowed: above 0 to "
                     "10000", flags.action_ms);
  check<ConfigError>(flags.repeats >= 1, "--repeats {} is out of range; allowed: 1 or more", flags.repeats);
}

/// Registering a second kernel for an operator is worth a warning elsewhere.
struct Silence final : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

int run(const PipelineFlags& flags) {
  check_flags(flags);
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard guard(&silence);
  torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__);
  library.impl("mm", sleeping_product);
  train::JsonLines json(flags.json);
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    if (flags.schedule != "all" && flags.schedule != info.name) continue;
    for (int ranks = 2; ranks <= flags.max_ranks; ++ranks) {
      for (const int microbatches : {ranks, 2 * ranks, 4 * ranks}) {
        if (microbatches < info.min_microbatches_per_rank * ranks) continue;
        measure_and_tell(pipeline::make_schedule(info.name, {.ranks = ranks, .microbatches = microbatches}), flags, json);
      }
    }
  }
  return 0;
}

}  // namespace

Command add_bench_pipeline(CLI::App& bench, const Invocation& /*invocation*/) {
  CLI::App* command = bench.add_subcommand("pipeline", "executed schedules beside their ideal time, on stages that sleep");
  command->footer("\nRanks are threads; forward, input gradient and weight gradient of a stage take --action-ms each. For\n"
                  "2 to --ranks ranks, with as many micro-batches as ranks, twice and four times as many.");
  const auto flags = std::make_shared<PipelineFlags>();
  std::vector<std::string> names = pipeline::schedule_names();
  names.emplace_back("all");
  command->add_option("--schedule", flags->schedule, "schedule to run (default all)")->check(CLI::IsMember(names));
  command->add_option("--ranks", flags->max_ranks, "most ranks along pp (default 4)");
  command->add_option("--action-ms", flags->action_ms, "how long an action takes (default 20)");
  command->add_option("--repeats", flags->repeats, "steps of which the fastest counts (default 1)");
  command->add_option("--json", flags->json, "writes one JSON object per line to this file; - is standard output")
      ->option_text("FILE");
  return [flags] { return run(*flags); };
}

}  // namespace tessera::cli

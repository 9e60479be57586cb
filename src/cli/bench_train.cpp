// SPDX-License-Identifier: Apache-2.0
// `tessera bench train`: times of training steps and nothing else: no evaluation, no gradient norm, no output between.
#include <iostream>

#include "cli/bench_commands.h"
#include "cli/bench_times.h"
#include "cli/rank_job.h"
#include "cli/rank_session.h"
#include "tessera/base/error.h"
#include "tessera/train/trainer.h"

namespace tessera::cli {
namespace {

struct BenchTrainFlags {
  JobFlags job;
  std::int64_t warmup = 5;
};

/// The samples in their order, so that other programs can be given the same; sequential data hold nothing out.
const Defaults kBenchTrainDefaults = {{"data.order", "sequential"}, {"data.source", "synthetic"}, {"steps", "30"}};

struct Measurement {
  std::vector<train::StepRecord> steps;
  train::SummaryRecord summary;
};

/// A step takes as long as its slowest rank. Everything else in the records is this rank's.
void take_slowest_times(Measurement& measurement, comm::World& world, std::int64_t warmup) {
  std::vector<double> times;
  for (const train::StepRecord& record : measurement.steps) times.push_back(record.step_ms);
  times = slowest_rank(everyone(world), times, world.device());
  for (std::size_t i = 0; i < times.size(); ++i) {
    train::StepRecord& record = measurement.steps[i];
    record.rate_per_s *= record.step_ms / times[i];
    record.step_ms = times[i];
  }
  const Spread spread = spread_of({times.begin() + static_cast<std::ptrdiff_t>(warmup), times.end()});
  train::SummaryRecord& summary = measurement.summary;
  summary.throughput *= summary.ms_median / spread.median;
  summary.ms_median = spread.median;
  summary.ms_p10 = spread.p10;
  summary.ms_p90 = spread.p90;
}

Measurement measure(const BenchTrainFlags& flags, const train::TrainConfig& config, train::Session& session,
                    comm::World& world) {
  Measurement measurement;
  const train::Sinks sinks{.step = [&](const train::StepRecord& record) { measurement.steps.push_back(record); },
                           .evaluation = {}};
  measurement.summary =
      train::train(session, config, sinks, {.warmup_steps = flags.warmup, .report_gradient_norm = false});
  take_slowest_times(measurement, world, flags.warmup);
  return measurement;
}

void report(const Measurement& measurement, const std::string& unit, const std::string& destination) {
  train::JsonLines json(destination);
  for (const train::StepRecord& record : measurement.steps) json.write(train::format_json(record, unit));
  const train::SummaryRecord& summary = measurement.summary;
  json.write(train::format_json(summary));
  if (destination == "-") return;
  std::cout << fmt::format("{} parameters on {}: {:.2f} ms a step ({:.2f} to {:.2f}), {:.0f} {}/s, loss {:.6f}\n",
                           summary.params, summary.mesh, summary.ms_median, summary.ms_p10, summary.ms_p90,
                           summary.throughput, unit, summary.final_loss);
}

void bench_rank(const BenchTrainFlags& flags, const train::TrainConfig& config,
                const std::shared_ptr<comm::World>& world) {
  train::Session session = make_session(config, world);
  check<ConfigError>(flags.warmup >= 0 && flags.warmup < session.num_steps(),
                     "--warmup {} leaves no step to measure; allowed: 0 to {}, or more --steps", flags.warmup,
                     session.num_steps() - 1);
  const Measurement measurement = measure(flags, config, session, *world);
  if (world->rank() == 0) report(measurement, session.workload().unit, flags.job.json);
}

}  // namespace

Command add_bench_train(CLI::App& bench, const Invocation& invocation) {
  CLI::App* command = bench.add_subcommand("train", "times of training steps: the flags of train, and nothing but steps");
  command->footer("\nDefaults that differ from train's: 30 steps, synthetic data in sequential order, no evaluation.\n"
                  "A step takes as long as its slowest rank: batch, forward, backward, reductions, optimizer, loss.\n\n"
                  "Examples:\n"
                  "  tessera bench train --model gpt --mesh dp=2 --batch 8\n"
                  "  tessera bench train --model mlp --sizes 784,1024,1024,1024,10 --optimizer sgd --json -");
  const auto flags = std::make_shared<BenchTrainFlags>();
  add_job_flags(*command, flags->job);
  command->add_option("--warmup", flags->warmup, "first steps left out of the times (default 5)");
  return [flags, &invocation] {
    const train::TrainConfig config = read_config(flags->job, kBenchTrainDefaults);
    if (flags->job.print_config) {
      std::cout << train::format_toml(config);
      return 0;
    }
    const std::vector<Axis> axes = axes_of(config, launched_ranks());
    train::check_fits(config, axes);
    return run_ranks({count_ranks(axes), invocation.words, flags->job, config},
                     [&](const std::shared_ptr<comm::World>& world) { bench_rank(*flags, config, world); });
  };
}

}  // namespace tessera::cli

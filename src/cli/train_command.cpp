// SPDX-License-Identifier: Apache-2.0
// `tessera train`: the main job.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "cli/commands.h"
#include "cli/rank_job.h"
#include "cli/rank_session.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/launch/failure.h"
#include "tessera/launch/interrupts.h"
#include "tessera/train/run_state.h"
#include "tessera/train/trainer.h"

namespace tessera::cli {
namespace {

/// Of the metrics so far, leaves what a run that goes on after `first_step` steps will not say again.
void drop_lines_after(const std::filesystem::path& metrics, std::int64_t first_step) {
  std::ifstream file(metrics);
  if (!file) return;
  checkpoint::NewFile kept(metrics);
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step")) continue;
    // A step is counted from 0, an evaluation by the steps that are done.
    const std::int64_t done = json["step"].get<std::int64_t>() + (json.contains("loss") ? 1 : 0);
    line += '\n';
    if (done <= first_step) kept.append(line.data(), line.size());
  }
  kept.publish();
}

/// The folder of --out, made if it is missing, with the resolved configuration in it. Returns where the metrics go;
/// empty without --out.
std::string open_run_folder(const train::TrainConfig& config, std::int64_t first_step) {
  if (config.out.empty()) return {};
  const std::filesystem::path folder(config.out);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream file(folder / "config.toml");
  file << train::format_toml(config) << std::flush;
  check<FileError>(file.good(), "out = \"{}\": the folder cannot be written; name one that can", config.out);
  const std::filesystem::path metrics = folder / "metrics.jsonl";
  if (first_step > 0) drop_lines_after(metrics, first_step);
  return metrics.string();
}

/// Everything rank 0 tells people and programs.
class Report {
 public:
  Report(const JobFlags& flags, const train::TrainConfig& config, const train::Session& session, std::int64_t first_step)
      : json_(flags.json),
        run_file_(open_run_folder(config, first_step), /*append=*/first_step > 0),
        unit_(session.workload().unit),
        progress_(std::cerr, {.steps = session.num_steps(), .terminal = ::isatty(STDERR_FILENO) != 0, .unit = unit_}) {}

  [[nodiscard]] train::Sinks sinks() {
    return {.step =
                [this](const train::StepRecord& record) {
                  progress_.step(record);
                  write(train::format_json(record, unit_));
                },
            .evaluation =
                [this](const train::EvalRecord& record) {
                  progress_.evaluation(record);
                  write(train::format_json(record));
                }};
  }

  void finish(const train::SummaryRecord& summary, bool json_on_stdout) {
    progress_.finish();
    write(train::format_json(summary));
    if (json_on_stdout) return;
    std::cout << fmt::format("{} parameters on {}: loss {:.4f} after {} steps, {:.1f} ms a step, {:.0f} {}/s\n", summary.params,
                             summary.mesh, summary.final_loss, summary.steps, summary.ms_median, summary.throughput,
                             unit_);
    for (const auto& [name, count] : summary.replicated_fallbacks) {
      base::warn("{} has no sharding rule and ran gathered and replicated {} times", name, count);
    }
  }

 private:
  void write(const std::string& line) {
    json_.write(line);
    run_file_.write(line);
  }

  train::JsonLines json_;
  train::JsonLines run_file_;
  std::string unit_;
  train::Progress progress_;
};

void write_trace(const std::vector<std::vector<pipeline::TracedAction>>& rows, const std::string& path) {
  std::ofstream file(path);
  file << pipeline::chrome_trace(rows) << std::flush;
  check<FileError>(file.good(), "trace = \"{}\": the file cannot be written; name one that can", path);
}

/// True on all ranks if one was asked to stop: they end after the same step. Collective.
bool any_rank_stops(const launcher::Interrupts& interrupts, const std::optional<Mesh>& mesh) {
  if (!mesh || mesh->size() == 1) return interrupts.requested();
  at::Tensor stops = torch::full({1}, interrupts.requested() ? 1 : 0, at::TensorOptions(mesh->device()).dtype(at::kInt));
  mesh->everyone().all_reduce(stops, comm::ReduceOp::kMax);
  return stops.item<int>() != 0;
}

void train_rank(const JobFlags& flags, const train::TrainConfig& config, const std::shared_ptr<comm::World>& world,
                const launcher::Interrupts& interrupts) {
  train::Session session = make_session(config, world, {.count_memory = true});
  const bool reports = world->rank() == 0;
  train::RunState run(session, config);
  train::TrainOptions options{.first_step = run.resume()};
  bool interrupted = false;
  options.after_step = [&](std::int64_t done) {
    interrupted = any_rank_stops(interrupts, session.mesh());
    const std::string saved = run.after_step(done, interrupted || done == session.num_steps());
    if (interrupted) {
      base::info("stopped after step {}{}", done, saved.empty() ? "" : fmt::format("; --resume {} goes on", saved));
    }
    return !interrupted;
  };
  std::optional<Report> report;
  if (reports) report.emplace(flags, config, session, options.first_step);
  const train::SummaryRecord summary = train::train(session, config, reports ? report->sinks() : train::Sinks{}, options);
  if (interrupted) return;
  if (reports) report->finish(summary, flags.json == "-");
  if (!config.trace.empty()) {
    const auto rows = session.trace();
    if (reports) write_trace(rows, config.trace);
  }
  if (!config.dump_weights.empty()) {
    const auto tensors = train::full_parameters(session);
    if (reports) checkpoint::save_weights(tensors, config.dump_weights);
  }
}

}  // namespace

Command add_train(CLI::App& app, const Invocation& invocation) {
  CLI::App* command = app.add_subcommand("train", "trains a built-in model on real data under any plan");
  command->footer("\nExamples:\n"
                  "  tessera train --model gpt --mesh dp=2,tp=2 --steps 200\n"
                  "  tessera train --model cnn --data digits --mesh dp=4 --epochs 10 --eval-every 100\n"
                  "  tessera train --model gpt --out run --checkpoint-every 100 --resume auto\n"
                  "  tessera train run.toml --set optimizer.lr=3e-4 --json metrics.jsonl");
  const auto flags = std::make_shared<JobFlags>();
  add_job_flags(*command, *flags);
  return [flags, &invocation] {
    const train::TrainConfig config = read_config(*flags);
    if (flags->print_config) {
      std::cout << train::format_toml(config);
      return 0;
    }
    const std::vector<Axis> axes = axes_of(config, launched_ranks());
    train::check_fits(config, axes);
    train::MemoryMeter::remember_sizes();
    const launcher::Interrupts interrupts;
    const int code = run_ranks(
        {count_ranks(axes), invocation.words, *flags, config},
        [&](const std::shared_ptr<comm::World>& world) { train_rank(*flags, config, world, interrupts); });
    return code == 0 && interrupts.requested() ? launcher::kExitInterrupted : code;
  };
}

}  // namespace tessera::cli

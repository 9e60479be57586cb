// SPDX-License-Identifier: Apache-2.0
// `tessera train`: the main job.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "cli/commands.h"
#include "cli/rank_job.h"
#include "cli/rank_session.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/train/trainer.h"

namespace tessera::cli {
namespace {

/// The folder of --out, made if it is missing, with the resolved configuration in it. Returns where the metrics go;
/// empty without --out.
std::string open_run_folder(const train::TrainConfig& config) {
  if (config.out.empty()) return {};
  const std::filesystem::path folder(config.out);
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream file(folder / "config.toml");
  file << train::format_toml(config) << std::flush;
  check<FileError>(file.good(), "out = \"{}\": the folder cannot be written; name one that can", config.out);
  return (folder / "metrics.jsonl").string();
}

/// Everything rank 0 tells people and programs.
class Report {
 public:
  Report(const JobFlags& flags, const train::TrainConfig& config, const train::Session& session)
      : json_(flags.json),
        run_file_(open_run_folder(config)),
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

void train_rank(const JobFlags& flags, const train::TrainConfig& config, const std::shared_ptr<comm::World>& world) {
  train::Session session = make_session(config, world, {.count_memory = true});
  const bool reports = world->rank() == 0;
  std::optional<Report> report;
  if (reports) report.emplace(flags, config, session);
  const train::SummaryRecord summary = train::train(session, config, reports ? report->sinks() : train::Sinks{});
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
    return run_ranks({count_ranks(axes), invocation.words, *flags, config},
                     [&](const std::shared_ptr<comm::World>& world) { train_rank(*flags, config, world); });
  };
}

}  // namespace tessera::cli

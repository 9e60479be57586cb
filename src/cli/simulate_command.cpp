// SPDX-License-Identifier: Apache-2.0
// `tessera simulate`: a pipeline schedule's timeline, alone or beside the others.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "tessera/base/error.h"
#include "tessera/mesh/mesh.h"
#include "tessera/pipeline/timeline.h"
#include "tessera/train/metrics.h"

namespace tessera::cli {
namespace {

struct SimulateFlags {
  std::string mesh;
  std::string schedule = "1f1b";
  int chunks = 0;
  int microbatches = 0;
  std::string costs = "1,1,1";
  double transfer = 0;
  int width = 100;
  bool text = false;
  std::string json;
};

/// Times of a rank's whole share of the model for one micro-batch; each of its chunks takes an equal part.
struct Share {
  double forward = 1;
  double input = 1;
  double weight = 1;
};

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const std::size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

template <class Number>
std::optional<Number> parse_number(std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

/// Size of the axis pp; 0 without --mesh. The other axes divide the work of a stage, not the stages.
int pipeline_ranks(const std::string& mesh) {
  if (mesh.empty()) return 0;
  const std::vector<Axis> axes = parse_axes(mesh);
  int ranks = 1;
  for (const Axis& axis : axes) ranks *= axis.size;
  for (const Axis& axis : resolve_axes(axes, ranks)) {
    if (axis.name == "pp") return axis.size;
  }
  throw ConfigError(
      fmt::format("--mesh \"{}\" has no axis pp; add the number of stages in a row, for instance pp=4", mesh));
}

Share parse_costs(const std::string& text) {
  std::vector<double> costs;
  for (const std::string_view part : split(text)) costs.push_back(parse_number<double>(part).value_or(-1));
  const bool fine =
      costs.size() == 3 && std::all_of(costs.begin(), costs.end(), [](double c) { return c >= 0 && c < 1e12; });
  check<ConfigError>(
      fine,
      "--costs \"{}\"; allowed: three numbers, 0 or more, for forward, input gradient and weight gradient, for "
      "instance 1,1,1",
      text);
  return {costs[0], costs[1], costs[2]};
}

void check_stages(int ranks, int chunks) {
  check<ConfigError>(ranks * chunks <= kMaxStages,
                     "--mesh pp={} with {} stage{} per rank makes {} stages; allowed: up to {}; take fewer ranks{}",
                     ranks, chunks, chunks == 1 ? "" : "s", ranks * chunks, kMaxStages,
                     chunks == 1 ? "" : " or chunks");
}

/// A schedule and what came of it.
struct Result {
  pipeline::Schedule schedule;
  pipeline::Timeline timeline;
  std::vector<int> peaks;  ///< in chunks

  /// In micro-batches of a rank's whole share, so that schedules with other chunks compare.
  [[nodiscard]] double held(int chunks) const { return static_cast<double>(chunks) / schedule.num_chunks; }
};

Result simulate_one(const SimulateFlags& flags, const std::string& name, int chunks) {
  const bool from_file = name.starts_with("file:");
  const int ranks = pipeline_ranks(flags.mesh);
  check<ConfigError>(ranks > 0 || from_file, "--mesh is missing; allowed: pp=N, for instance --mesh pp=4");
  const int microbatches = flags.microbatches == 0 && !from_file ? 2 * ranks : flags.microbatches;
  if (ranks > kMaxStages) check_stages(ranks, 1);
  Result result;
  result.schedule = pipeline::make_schedule(name, {.ranks = ranks, .chunks = chunks, .microbatches = microbatches});
  check_stages(result.schedule.num_ranks, result.schedule.num_chunks);
  pipeline::validate(result.schedule);
  const Share share = parse_costs(flags.costs);
  const double part = 1.0 / result.schedule.num_chunks;
  result.timeline = pipeline::ideal_timeline(result.schedule, {.forward_ms = {share.forward * part},
                                                               .backward_input_ms = {share.input * part},
                                                               .backward_weight_ms = {share.weight * part},
                                                               .transfer_ms = flags.transfer});
  result.peaks = pipeline::peak_activations(result.schedule);
  return result;
}

void write_json(train::JsonLines& json, const SimulateFlags& flags, const Result& result) {
  const Share share = parse_costs(flags.costs);
  const nlohmann::ordered_json line{{"schedule", result.schedule.name},
                                    {"ranks", result.schedule.num_ranks},
                                    {"chunks", result.schedule.num_chunks},
                                    {"microbatches", result.schedule.num_microbatches},
                                    {"costs", {share.forward, share.input, share.weight}},
                                    {"transfer", flags.transfer},
                                    {"makespan", result.timeline.makespan},
                                    {"bubble", result.timeline.mean_bubble()},
                                    {"bubble_per_rank", result.timeline.bubble},
                                    {"idle_inside_per_rank", result.timeline.idle_inside},
                                    {"peak_activations", result.peaks}};
  json.write(line.dump());
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * std::max(0.0, share)); }

/// Small remainders of sums are noise.
std::string time_text(double time) { return fmt::format("{:.6g}", time < 1e-9 ? 0 : time); }

std::string counted(int count, const char* one, const char* many) {
  return fmt::format("{} {}", count, count == 1 ? one : many);
}

/// ": what it is" for a schedule with a name.
std::string summary_of(const std::string& name) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    if (info.name == name) return ": " + info.summary;
  }
  return {};
}

void show_one(const SimulateFlags& flags, const Result& result) {
  const pipeline::Schedule& schedule = result.schedule;
  std::cout << fmt::format("{}{}\n{}, {} each, {}\n\n", schedule.name, summary_of(schedule.name),
                           counted(schedule.num_ranks, "rank", "ranks"),
                           counted(schedule.num_chunks, "chunk", "chunks"),
                           counted(schedule.num_microbatches, "micro-batch", "micro-batches"))
            << pipeline::picture(schedule, result.timeline,
                                 {.width = flags.width, .colour = isatty(STDOUT_FILENO) == 1})
            << fmt::format("\nmakespan {}, bubble {}\n\n{:<6}{:>10}{:>10}{:>14}{:>8}\n",
                           time_text(result.timeline.makespan), percent(result.timeline.mean_bubble()), "rank", "busy",
                           "bubble", "idle inside", "held");
  for (std::size_t rank = 0; rank < result.peaks.size(); ++rank) {
    std::cout << fmt::format("{:<6}{:>10}{:>10}{:>14}{:>8.4g}\n", rank, time_text(result.timeline.busy[rank]),
                             percent(result.timeline.bubble[rank]), time_text(result.timeline.idle_inside[rank]),
                             result.held(result.peaks[rank]));
  }
}

void show_row(const Result& result) {
  const std::vector<double>& inside = result.timeline.idle_inside;
  std::cout << fmt::format("{:<12}{:>7}{:>10}{:>10}{:>14}{:>8.4g}\n", result.schedule.name, result.schedule.num_chunks,
                           time_text(result.timeline.makespan), percent(result.timeline.mean_bubble()),
                           time_text(*std::max_element(inside.begin(), inside.end())),
                           result.held(*std::max_element(result.peaks.begin(), result.peaks.end())));
}

/// --chunks is for the schedules that take that many; the others keep their own number.
int chunks_for(const pipeline::ScheduleInfo& info, int chunks) {
  return chunks >= info.min_chunks && chunks <= info.max_chunks ? chunks : 0;
}

void compare_all(const SimulateFlags& flags, train::JsonLines& json) {
  check<ConfigError>(!flags.text, "--schedule-text with --schedule all; name one schedule: {}",
                     fmt::join(pipeline::schedule_names(), ", "));
  const int ranks = pipeline_ranks(flags.mesh);
  check_stages(ranks, 1);
  const int microbatches = flags.microbatches == 0 ? 2 * ranks : flags.microbatches;
  const bool shows = flags.json != "-";
  if (shows) {
    std::cout << fmt::format("{:<12}{:>7}{:>10}{:>10}{:>14}{:>8}\n", "schedule", "chunks", "makespan", "bubble",
                             "idle inside", "held");
  }
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    if (microbatches > 0 && microbatches < info.min_microbatches_per_rank * ranks) {
      if (shows)
        std::cout << fmt::format("{:<12}needs {} micro-batches\n", info.name, info.min_microbatches_per_rank * ranks);
      continue;
    }
    const int chunks = chunks_for(info, flags.chunks);
    if (const int stages = ranks * (chunks == 0 ? info.default_chunks : chunks); stages > kMaxStages) {
      if (shows) std::cout << fmt::format("{:<12}makes {} stages; allowed: up to {}\n", info.name, stages, kMaxStages);
      continue;
    }
    const Result result = simulate_one(flags, info.name, chunks);
    write_json(json, flags, result);
    if (shows) show_row(result);
  }
}

int simulate(const SimulateFlags& flags) {
  check<ConfigError>(flags.width >= 20, "--width {} is out of range; allowed: 20 or more", flags.width);
  check<ConfigError>(flags.chunks >= 0, "--chunks {} is out of range; allowed: 1 or more", flags.chunks);
  check<ConfigError>(flags.microbatches >= 0, "--microbatches {} is out of range; allowed: 1 or more",
                     flags.microbatches);
  train::JsonLines json(flags.json);
  if (flags.schedule == "all") {
    compare_all(flags, json);
    return 0;
  }
  const Result result = simulate_one(flags, flags.schedule, flags.chunks);
  if (flags.text) {
    std::cout << pipeline::format_schedule(result.schedule);
    return 0;
  }
  write_json(json, flags, result);
  if (flags.json != "-") show_one(flags, result);
  return 0;
}

}  // namespace

Command add_simulate(CLI::App& app, const Invocation& /*invocation*/) {
  CLI::App* command = app.add_subcommand("simulate", "draws the timeline of a pipeline schedule");
  command->footer(
      "\nThe schedule alone is priced, with the given times in whatever unit; no model is looked at.\n"
      "bubble: idle share of the makespan; idle inside: between a rank's first and last action;\n"
      "held: most micro-batches of which a rank keeps activations at once.\n"
      "\nExamples:\n"
      "  tessera simulate --mesh pp=4 --schedule 1f1b --microbatches 8\n"
      "  tessera simulate --mesh pp=4 --schedule interleaved --chunks 2 --microbatches 8 --costs 1,1.2,0.8\n"
      "  tessera simulate --mesh pp=8 --schedule all --microbatches 32 --transfer 0.1\n"
      "  tessera simulate --mesh pp=4 --schedule zbv --schedule-text > mine.txt\n"
      "  tessera simulate --schedule file:mine.txt --json -");
  const auto flags = std::make_shared<SimulateFlags>();
  command->add_option("--mesh", flags->mesh, "axes; pp is the number of ranks in the pipeline; a file knows its own")
      ->option_text("pp=N");
  command
      ->add_option(
          "--schedule", flags->schedule,
          fmt::format("{}, file:PATH, or all for a table (default 1f1b)", fmt::join(pipeline::schedule_names(), ", ")))
      ->option_text("NAME");
  command->add_option("--chunks", flags->chunks, "stages per rank (default: the schedule's own number)")
      ->option_text("V");
  command->add_option("--microbatches", flags->microbatches, "micro-batches per step (default 2 per rank)")
      ->option_text("M");
  command
      ->add_option(
          "--costs", flags->costs,
          "times of a rank's share of the model for one micro-batch: forward, input gradient, weight gradient; a "
          "whole backward takes the last two, a chunk an equal part (default 1,1,1)")
      ->option_text("F,I,W");
  command->add_option("--transfer", flags->transfer, "time from one rank to the next, in the same unit (default 0)")
      ->option_text("C");
  command->add_option("--width", flags->width, "characters that a line of the picture may have (default 100)");
  command->add_flag("--schedule-text", flags->text, "prints the schedule as text, to be edited and used as file:PATH");
  command->add_option("--json", flags->json, "writes one JSON object per schedule to this file; - is standard output")
      ->option_text("FILE");
  return [flags] { return simulate(*flags); };
}

}  // namespace tessera::cli

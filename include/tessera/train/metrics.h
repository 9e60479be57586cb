// SPDX-License-Identifier: Apache-2.0
// What a run reports: its JSON lines, its progress for people, and the few statistics both need.
#pragma once

#include <torch/torch.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/tensor/mesh_tensor.h"
#include "tessera/train/workload.h"

namespace tessera::train {

/// One training step. `rate_per_s` counts the workload's units.
struct StepRecord {
  std::int64_t step = 0;
  double loss = 0.0;
  double lr = 0.0;
  double grad_norm = 0.0;
  double step_ms = 0.0;
  double rate_per_s = 0.0;
  std::uint64_t comm_bytes = 0;
  double comm_ms_exposed = 0.0;
  std::uint64_t peak_memory_bytes = 0;
  /// Tensor memory that this rank holds after the step (parameters, gradients, optimizer state), and the most it held
  /// during it. Null where nobody counts.
  std::optional<std::int64_t> allocated_bytes = std::nullopt;
  std::optional<std::int64_t> peak_allocated_bytes = std::nullopt;
};

/// One evaluation on held-out data; `quality` is accuracy (0 .. 1) or perplexity, as `metric` says.
struct EvalRecord {
  std::int64_t step = 0;
  double loss = 0.0;
  Metric metric = Metric::kAccuracy;
  double quality = 0.0;
};

/// The last line of a run.
struct SummaryRecord {
  int world = 1;
  std::string mesh;
  std::string plan;
  std::int64_t params = 0;
  std::int64_t steps = 0;
  double ms_median = 0.0;
  double ms_p10 = 0.0;
  double ms_p90 = 0.0;
  /// The workload's units per second, from the median step.
  double throughput = 0.0;
  double final_loss = 0.0;
  std::vector<double> losses;
  std::uint64_t peak_rss_bytes = 0;
  /// Intra-op threads per rank.
  int threads = 1;
  /// What the planner foresaw; null in the file when nobody asked it.
  std::optional<double> predicted_ms;
  std::optional<std::uint64_t> predicted_memory_bytes;
  /// Operator name -> how often it ran gathered and replicated for want of a rule.
  std::map<std::string, std::int64_t> replicated_fallbacks;
  /// Operator name -> what it gathered on rank 0 beyond what the plan gathers at use.
  std::map<std::string, GatherCount> gathers;
};

/// Why a run failed.
struct ErrorRecord {
  std::string kind;
  int rank = 0;
  std::string message;
  std::string where;
};

/// One record as one line of JSON without its newline. Numbers that are not finite become null; text that is not UTF-8
/// is replaced. `unit` is the workload's ("tokens" gives `tokens_per_s`).
[[nodiscard]] std::string format_json(const StepRecord& record, std::string_view unit);
[[nodiscard]] std::string format_json(const EvalRecord& record);
[[nodiscard]] std::string format_json(const SummaryRecord& record);
[[nodiscard]] std::string format_json(const ErrorRecord& record);

/// A file of JSON lines. Each line is one write, so that a reader and a crash see whole lines only.
class JsonLines {
 public:
  /// `destination` is a path (replaced if it exists, unless `append`) or "-" for standard output; empty: lines are dropped.
  /// Throws ConfigError if the file cannot be opened.
  explicit JsonLines(const std::string& destination, bool append = false);
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  /// Throws FileError if the line cannot be written.
  void write(std::string_view line);

 private:
  std::string destination_;
  int descriptor_ = -1;
};

/// Progress for people: a bar that is redrawn on a terminal, one line per report interval elsewhere.
/// Threads   used by one thread of rank 0.
class Progress {
 public:
  struct Options {
    std::int64_t steps = 0;
    /// Whether `out` is a terminal.
    bool terminal = false;
    /// Steps between lines where it is not; 0: a twentieth of all steps.
    std::int64_t report_every = 0;
    /// "tokens" or "samples".
    std::string unit = "samples";
  };
  /// `out` (standard error, as a rule) must outlive this object.
  Progress(std::ostream& out, Options options);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(const StepRecord& record);
  void evaluation(const EvalRecord& record);
  /// Ends the bar's line; the destructor does it too.
  void finish();

 private:
  void draw_bar(const StepRecord& record);
  std::ostream& out_;
  Options options_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point drawn_;
  std::size_t drawn_width_ = 0;
};

/// The value below which `percent` of the samples lie, interpolated linearly between neighbours; NaN for no samples.
[[nodiscard]] double percentile(std::vector<double> samples, double percent);

/// How many targets are the argmax of their logits. Shapes  logits [..., classes], targets [...]
[[nodiscard]] std::int64_t count_correct(const torch::Tensor& logits, const torch::Tensor& target);

/// exp of a mean cross entropy in nats.
[[nodiscard]] double perplexity(double loss);

/// Largest resident memory of this process so far.
[[nodiscard]] std::uint64_t peak_rss_bytes();

}  // namespace tessera::train

// SPDX-License-Identifier: Apache-2.0
// The training loop.
#include "tessera/train/trainer.h"

#include <chrono>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::train {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

comm::Traffic traffic_of(const Session& session) {
  return session.mesh() ? session.mesh()->traffic() : comm::Traffic{};
}

/// One step with its times. The loss is read last: reading waits for the device.
StepRecord run_step(Session& session, const TrainConfig& config, const TrainOptions& options, std::int64_t index) {
  const comm::Traffic before = traffic_of(session);
  if (session.memory() != nullptr) session.memory()->reset_peak();
  const Clock::time_point start = Clock::now();
  const at::Tensor loss = session.forward_backward(index);
  StepRecord record{.step = index, .lr = config.optimizer.lr};
  record.grad_norm = options.report_gradient_norm ? session.gradient_norm() : std::numeric_limits<double>::quiet_NaN();
  session.update();
  record.loss = loss.item<double>();
  record.step_ms = milliseconds_since(start);
  const comm::Traffic after = traffic_of(session);
  record.comm_bytes = static_cast<std::uint64_t>(after.bytes - before.bytes);
  record.comm_ms_exposed = after.exposed_ms - before.exposed_ms;
  const auto units = static_cast<double>(config.batch * session.workload().units_per_sample);
  record.rate_per_s = units / record.step_ms * 1e3;
  record.peak_memory_bytes = peak_rss_bytes();
  if (session.memory() != nullptr) {
    record.allocated_bytes = session.memory()->allocated_bytes();
    record.peak_allocated_bytes = session.memory()->peak_bytes();
  }
  return record;
}

void evaluate(Session& session, std::int64_t step, const Sinks& sinks) {
  const EvalRecord record = session.evaluate(step);
  if (sinks.evaluation) sinks.evaluation(record);
}

std::vector<double> after_warmup(const std::vector<double>& times, std::int64_t warmup) {
  const auto skip = std::min<std::size_t>(static_cast<std::size_t>(warmup), times.empty() ? 0 : times.size() - 1);
  return {times.begin() + static_cast<std::ptrdiff_t>(skip), times.end()};
}

}  // namespace

SummaryRecord train(Session& session, const TrainConfig& config, const Sinks& sinks, const TrainOptions& options) {
  SummaryRecord summary;
  std::vector<double> times;
  const std::int64_t steps = session.num_steps();
  const bool evaluates = session.num_held_out() > 0;
  bool goes_on = true;
  for (std::int64_t index = options.first_step; index < steps && goes_on; ++index) {
    const StepRecord record = run_step(session, config, options, index);
    check<Error>(std::isfinite(record.loss), "loss at step {} is {}; lower optimizer.lr = {} or set optimizer.clip",
                 index, record.loss, config.optimizer.lr);
    times.push_back(record.step_ms);
    summary.losses.push_back(record.loss);
    if (sinks.step) sinks.step(record);
    const bool last = index + 1 == steps;
    const bool due = config.eval_every > 0 && (index + 1) % config.eval_every == 0;
    if (evaluates && (last || due)) evaluate(session, index + 1, sinks);
    goes_on = !options.after_step || options.after_step(index + 1);
  }
  const std::vector<double> timed = after_warmup(times, options.warmup_steps);
  summary.world = session.mesh() ? session.mesh()->size() : 1;
  summary.mesh = session.mesh() ? session.mesh()->to_string() : "1 rank";
  summary.plan = config.plan.file.empty() ? "standard" : config.plan.file;
  summary.params = count_parameters(*session.workload().module);
  summary.steps = steps;
  summary.ms_median = percentile(timed, 50);
  summary.ms_p10 = percentile(timed, 10);
  summary.ms_p90 = percentile(timed, 90);
  summary.throughput =
      static_cast<double>(config.batch * session.workload().units_per_sample) / summary.ms_median * 1e3;
  summary.final_loss = summary.losses.empty() ? std::numeric_limits<double>::quiet_NaN() : summary.losses.back();
  summary.peak_rss_bytes = peak_rss_bytes();
  summary.threads = at::get_num_threads();
  if (session.mesh()) {
    summary.replicated_fallbacks = replicated_fallbacks(*session.mesh());
    summary.gathers = gathers(*session.mesh());
  }
  return summary;
}

std::vector<checkpoint::NamedTensor> full_parameters(const Session& session) {
  std::vector<checkpoint::NamedTensor> tensors;
  for (const auto& item : session.workload().module->named_parameters()) {
    tensors.push_back({item.key(), full(item.value()).detach()});
  }
  return tensors;
}

}  // namespace tessera::train

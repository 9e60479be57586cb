// SPDX-License-Identifier: Apache-2.0
// One rank's training run.
#include "tessera/train/session.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <functional>

#include "tessera/base/error.h"
#include "tessera/module/autocast.h"
#include "tessera/module/check_finite.h"
#include "tessera/module/clip.h"
#include "tessera/module/distribute.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/pipeline/step.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"
#include "tessera/checkpoint/safetensors.h"

namespace tessera::train {
namespace {

using OptimizerMaker = std::unique_ptr<torch::optim::Optimizer> (*)(std::vector<at::Tensor>, const OptimizerConfig&);

const std::map<std::string, OptimizerMaker>& optimizer_table() {
  static const std::map<std::string, OptimizerMaker> kTable{
      {"adamw",
       [](std::vector<at::Tensor> parameters,
          const OptimizerConfig& config) -> std::unique_ptr<torch::optim::Optimizer> {
         return std::make_unique<FusedAdamW>(std::move(parameters),
                                             torch::optim::AdamWOptions(config.lr).weight_decay(config.weight_decay));
       }},
      {"adam",
       [](std::vector<at::Tensor> parameters,
          const OptimizerConfig& config) -> std::unique_ptr<torch::optim::Optimizer> {
         return std::make_unique<torch::optim::Adam>(
             std::move(parameters), torch::optim::AdamOptions(config.lr).weight_decay(config.weight_decay));
       }},
      {"sgd",
       [](std::vector<at::Tensor> parameters,
          const OptimizerConfig& config) -> std::unique_ptr<torch::optim::Optimizer> {
         return std::make_unique<FusedSgd>(
             std::move(parameters),
             torch::optim::SGDOptions(config.lr).momentum(config.momentum).weight_decay(config.weight_decay));
       }},
  };
  return kTable;
}

using ReadyPlan = Plan (*)(const std::vector<std::string>&, const PlanConfig&);
const std::map<std::string, ReadyPlan>& ready_plans() {
  using Names = std::vector<std::string>;
  static const std::map<std::string, ReadyPlan> kTable{
      {"mlp", [](const Names& names, const PlanConfig&) { return plan_for_mlp(names); }},
      {"cnn", [](const Names& names, const PlanConfig&) { return plan_for_cnn(names); }},
      {"resnet", [](const Names& names, const PlanConfig&) { return plan_for_resnet(names); }},
      {"gpt",
       [](const Names& names, const PlanConfig& config) {
         return plan_for_transformer(names, {.sequence_parallel = config.sequence_parallel});
       }},
  };
  return kTable;
}

/// Of parameters: 16-bit precisions compute in 16 bits where autocast deems it safe, and keep fp32 parameters.
at::ScalarType dtype_of(const std::string& precision) { return precision == "fp64" ? at::kDouble : at::kFloat; }

int size_of(const std::vector<Axis>& axes, const std::string& name) {
  for (const Axis& axis : axes) {
    if (axis.name == name) return axis.size;
  }
  return 1;
}

pipeline::Schedule schedule_of(const TrainConfig& config, int ranks, int microbatches) {
  return pipeline::make_schedule(config.schedule,
                                 {.ranks = ranks, .chunks = static_cast<int>(config.chunks), .microbatches = microbatches});
}

/// With as many micro-batches as it takes: where stages lie does not depend on them.
pipeline::Schedule any_schedule_of(const TrainConfig& config, int ranks) {
  std::int64_t microbatches = config.microbatches;
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    const std::int64_t least = std::int64_t{info.min_microbatches_per_rank} * ranks;
    if (info.name == config.schedule && microbatches == 1) microbatches = std::max<std::int64_t>(least, 1);
  }
  const bool is_file = config.schedule.starts_with("file:");
  return schedule_of(config, ranks, is_file && microbatches == 1 ? 0 : static_cast<int>(microbatches));
}

/// One micro-batch of one data-parallel rank.
Batch sample_batch(const TrainConfig& config, const Dataset& data, const Mesh& mesh) {
  const int replicas = size_of(mesh.axes(), "dp_replicate") * size_of(mesh.axes(), "dp_shard");
  const std::int64_t samples = std::max<std::int64_t>(1, config.batch / replicas / config.microbatches);
  Batch batch = data.train.slice(0, samples);
  if (batch.input.is_floating_point()) batch.input = batch.input.to(dtype_of(config.precision));
  return {batch.input.to(mesh.device()), batch.target.to(mesh.device())};
}

/// Measured where stages are to be balanced by it, on a model that each rank has whole meanwhile.
std::vector<PartCost> costs_of(const TrainConfig& config, const Dataset& data, const Mesh& mesh) {
  if (config.plan.balance == "parameters" || size_of(mesh.axes(), "pp") == 1) return {};
  std::optional<Autocast> autocast;
  if (const auto dtype = autocast_dtype(config.precision)) autocast.emplace(mesh.device().type(), *dtype);
  const Workload workload = make_workload(config.model, static_cast<std::uint64_t>(config.seed));
  workload.module->to(mesh.device(), dtype_of(config.precision));
  std::vector<PartCost> costs = measure_parts(workload, sample_batch(config, data, mesh));
  agree_on_costs(costs, mesh);
  return costs;
}

Workload prepared_workload(const TrainConfig& config, const Dataset& data, const std::optional<Mesh>& mesh) {
  const auto seed = static_cast<std::uint64_t>(config.seed);
  const at::ScalarType dtype = dtype_of(config.precision);
  Workload workload;
  if (mesh) {
    const std::vector<PartCost> costs = costs_of(config, data, *mesh);
    workload = build_workload(config.model, seed, dtype, *mesh, [&](const Workload& shape) {
      return plan_of(config, shape, mesh->axes(), costs);
    });
  } else {
    workload = make_workload(config.model, seed);
    workload.module->to(c10::Device(config.device), dtype);
  }
  if (!config.weights.empty()) checkpoint::load_weights(*workload.module, config.weights, at::kFloat);
  return workload;
}

/// Dropout, from the seed as everything else. Off a mesh LibTorch draws from a generator of the whole process.
void seed_random_numbers(const TrainConfig& config, const std::optional<Mesh>& mesh) {
  if (mesh) {
    manual_seed(*mesh, static_cast<std::uint64_t>(config.seed));
  } else if (config.model.dropout > 0) {
    torch::manual_seed(static_cast<std::uint64_t>(config.seed));
  }
}

using Stages = std::vector<std::vector<std::string>>;

/// What balanced_stages() shall weigh a part by: its parameters if nothing was measured.
std::function<double(const std::string&, const torch::nn::Module&)> weights_of(const TrainConfig& config,
                                                                               const std::vector<PartCost>& costs) {
  if (costs.empty()) return {};
  std::map<std::string, double> weights;
  for (const PartCost& cost : costs) weights[cost.path] = weight_of(cost, config.plan.balance, config.optimizer);
  return [weights = std::move(weights)](const std::string& path, const auto&) { return weights.at(path); };
}

/// Stages have what their parts compute with, too.
void add_held(const std::vector<HeldParameter>& held, Stages& stages) {
  for (const HeldParameter& parameter : held) {
    for (std::vector<std::string>& stage : stages) {
      const bool computes = std::find(stage.begin(), stage.end(), parameter.part) != stage.end();
      if (computes) stage.push_back("+" + parameter.parameter);
    }
  }
}

}  // namespace

std::optional<at::ScalarType> autocast_dtype(const std::string& precision) {
  if (precision == "bf16") return at::kBFloat16;
  if (precision == "fp16") return at::kHalf;
  return std::nullopt;
}

void check_fits(const TrainConfig& config, const std::vector<Axis>& axes, bool uneven_batches) {
  std::vector<std::string> problems;
  const int tp = size_of(axes, "tp");
  const int data = size_of(axes, "dp_replicate") * size_of(axes, "dp_shard");
  if (config.model.name == "gpt" && config.model.heads % tp != 0) {
    problems.push_back(
        fmt::format("model.heads = {} cannot be split over tp={} ({} mod {} = {}); choose a tp that divides "
                    "{}, or a multiple of {} heads",
                    config.model.heads, tp, config.model.heads, tp, config.model.heads % tp, config.model.heads, tp));
  }
  const std::int64_t parts = data * config.microbatches;
  if (!uneven_batches && config.batch % parts != 0) {
    const std::string over = config.microbatches == 1 ? "" : fmt::format(" times microbatches = {}", config.microbatches);
    problems.push_back(
        fmt::format("batch = {} does not divide over {} data-parallel ranks{} ({} mod {} = {}); allowed: a "
                    "multiple of {}, for instance {}",
                    config.batch, data, over, config.batch, parts, config.batch % parts, parts,
                    (config.batch + parts - 1) / parts * parts));
  }
  check<ConfigError>(problems.empty(), "mesh {}: {}", format_axes(axes), fmt::join(problems, "\n"));
  const int stages = size_of(axes, "pp");
  if (!config.plan.file.empty()) {
    const Plan plan = Plan::load(config.plan.file);
    if (stages > 1 && !plan.stages().empty()) (void)plan.rank_of_stage(stages);
  }
  if (stages > 1 && config.microbatches > 1) (void)schedule_of(config, stages, static_cast<int>(config.microbatches));
}

Plan plan_of(const TrainConfig& config, const Workload& workload, const std::vector<Axis>& axes,
             const std::vector<PartCost>& costs) {
  const auto ready = ready_plans().find(config.model.name);
  Plan plan = !config.plan.file.empty()      ? Plan::load(config.plan.file)
              : ready != ready_plans().end() ? ready->second(workload.module->named_parameters().keys(), config.plan)
                                             : Plan();
  if (config.plan.zero > 0) plan.zero(static_cast<int>(config.plan.zero));
  if (const Recompute recompute = parse_recompute(config.plan.recompute); recompute != Recompute::kNone) {
    plan.recompute(recompute);
  }
  const int ranks = size_of(axes, "pp");
  if (ranks == 1 || !plan.stages().empty()) return plan;
  const pipeline::Schedule schedule = any_schedule_of(config, ranks);
  Stages stages = balanced_stages(*workload.module, schedule.num_stages(), weights_of(config, costs));
  add_held(workload.held, stages);
  return plan.stages(std::move(stages), pipeline::stage_order(schedule));
}

Session::Session(const TrainConfig& config, std::shared_ptr<const Dataset> data, std::optional<Mesh> mesh,
                 const SessionOptions& options)
    : config_(config),
      data_(std::move(data)),
      mesh_(std::move(mesh)),
      memory_(options.count_memory ? std::make_unique<MemoryMeter>() : nullptr),
      workload_(prepared_workload(config, *data_, mesh_)),
      optimizer_(optimizer_table().at(config.optimizer.name)(workload_.module->parameters(), config.optimizer)),
      scaler_({.init_scale = config.loss_scale, .enabled = config.precision == "fp16"}),
      batches_(data_->train, batch_order(config.data), static_cast<std::uint64_t>(config.seed), config.batch) {
  seed_random_numbers(config_, mesh_);
}

Batch Session::typed(Batch batch) const {
  if (batch.input.is_floating_point()) batch.input = batch.input.to(dtype_of(config_.precision));
  const c10::Device device = mesh_ ? mesh_->device() : c10::Device(config_.device);
  return {batch.input.to(device), batch.target.to(device)};
}

Batch Session::place(Batch batch) const {
  batch = typed(std::move(batch));
  return mesh_ ? Batch{shard_batch(*mesh_, batch.input), shard_batch(*mesh_, batch.target)} : batch;
}

at::Tensor Session::forward(const at::Tensor& input, const at::Tensor& target, at::Tensor& loss) {
  std::optional<Autocast> autocast;
  if (const auto dtype = autocast_dtype(config_.precision))
    autocast.emplace(c10::Device(config_.device).type(), *dtype);
  at::Tensor logits = workload_.forward(input);
  loss = workload_.loss(logits, target);
  return logits;
}

at::Tensor Session::forward_backward(std::int64_t step_index) {
  const Batch batch = typed(batches_.at(step_index));
  optimizer_->zero_grad();
  const MicrobatchLoss loss_of = [this](const std::vector<at::Tensor>& parts) {
    at::Tensor loss;
    (void)forward(parts[0], parts[1], loss);
    return loss;
  };
  // A check looks at gradients before they are reduced, since only then it can tell whose they are.
  std::optional<NoSync> no_sync;
  if (mesh_ && config_.check_finite) no_sync.emplace(*workload_.module);
  trace_.clear();
  const at::Tensor loss = tessera::step(*workload_.module, {batch.input, batch.target}, loss_of,
                                        {.microbatches = static_cast<int>(config_.microbatches),
                                         .schedule = config_.schedule,
                                         .scaler = &scaler_,
                                         .trace = config_.trace.empty() ? nullptr : &trace_});
  if (config_.check_finite) {
    check_finite(*workload_.module);
    reduce_gradients(*workload_.module);
  }
  scaler_.unscale_(*optimizer_);
  return loss;
}

void Session::update() {
  if (config_.optimizer.clip > 0) clip_grad_norm_(workload_.module->parameters(), config_.optimizer.clip);
  (void)scaler_.step(*optimizer_);
  scaler_.update();
}

double Session::gradient_norm() { return tessera::gradient_norm(workload_.module->parameters()); }

EvalRecord Session::evaluate(std::int64_t step_index) {
  const at::NoGradGuard no_grad;
  workload_.module->eval();
  EvalRecord record{.step = step_index, .metric = workload_.metric};
  std::int64_t targets = 0;
  std::int64_t correct = 0;
  for (std::int64_t begin = 0; begin < data_->held_out.size(); begin += config_.batch) {
    const Batch batch = place(data_->held_out.slice(begin, config_.batch));
    at::Tensor loss;
    const at::Tensor logits = forward(batch.input, batch.target, loss);
    const std::int64_t count = batch.target.numel();
    record.loss += loss.item<double>() * static_cast<double>(count);
    correct += count_correct(logits, batch.target);
    targets += count;
  }
  workload_.module->train();
  record.loss /= static_cast<double>(std::max<std::int64_t>(targets, 1));
  record.quality = workload_.metric == Metric::kAccuracy
                       ? static_cast<double>(correct) / static_cast<double>(std::max<std::int64_t>(targets, 1))
                       : perplexity(record.loss);
  return record;
}

std::vector<std::vector<pipeline::TracedAction>> Session::trace() const {
  return mesh_ ? pipeline::gather_trace(*mesh_, trace_) : std::vector<std::vector<pipeline::TracedAction>>{trace_};
}

void Session::add_to(State& state) {
  state.add("model", *workload_.module).add("optimizer", *optimizer_).add("scaler", scaler_);
  if (mesh_) {
    state.add("random", *mesh_);
    return;
  }
  plain_random_.seed = static_cast<std::uint64_t>(config_.seed);
  state.add("random.seed", plain_random_.seed).add("random.num_draws", plain_random_.num_draws);
  if (config_.model.dropout > 0) state.add("generator", at::detail::getDefaultCPUGenerator());
}

verify::Subject Session::subject() {
  return {.forward_backward = [this](std::int64_t index) { return forward_backward(index).item<double>(); },
          .update = [this] { update(); },
          .parameters =
              [this] {
                verify::NamedTensors tensors;
                for (const auto& item : workload_.module->named_parameters()) {
                  tensors.emplace_back(item.key(), item.value());
                }
                return tensors;
              }};
}

std::int64_t Session::num_steps() const noexcept {
  return config_.epochs > 0 ? batches_.steps_for(config_.epochs) : config_.steps;
}

}  // namespace tessera::train

// SPDX-License-Identifier: Apache-2.0
// The state of LibTorch's optimizers under the names of parameters.
#include "checkpoint/optimizer_parts.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <deque>
#include <memory>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"
#include "tessera/module/master_weights.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::checkpoint {
namespace {

namespace optim = torch::optim;

// Fields, once for saving and loading: visit(name, reference).

template <class State, class Visit>
  requires std::same_as<State, optim::AdamParamState> || std::same_as<State, optim::AdamWParamState>
void visit_state(State& state, Visit& visit) {
  visit("step", state.step());
  visit("exp_avg", state.exp_avg());
  visit("exp_avg_sq", state.exp_avg_sq());
  visit("max_exp_avg_sq", state.max_exp_avg_sq());
}

template <class Visit>
void visit_state(optim::SGDParamState& state, Visit& visit) {
  visit("momentum_buffer", state.momentum_buffer());
}

template <class Visit>
void visit_state(optim::AdagradParamState& state, Visit& visit) {
  visit("step", state.step());
  visit("sum", state.sum());
}

template <class Visit>
void visit_state(optim::RMSpropParamState& state, Visit& visit) {
  visit("step", state.step());
  visit("square_avg", state.square_avg());
  visit("momentum_buffer", state.momentum_buffer());
  visit("grad_avg", state.grad_avg());
}

/// All of it under the first parameter, over all parameters one after the other. `al` is scratch memory of a step.
template <class Visit>
void visit_state(optim::LBFGSParamState& state, Visit& visit) {
  visit("func_evals", state.func_evals());
  visit("n_iter", state.n_iter());
  visit("t", state.t());
  visit("prev_loss", state.prev_loss());
  visit("d", state.d());
  visit("H_diag", state.H_diag());
  visit("prev_flat_grad", state.prev_flat_grad());
  visit("old_dirs", state.old_dirs());
  visit("old_stps", state.old_stps());
  visit("ro", state.ro());
}

template <class Options, class Visit>
  requires std::same_as<Options, optim::AdamOptions> || std::same_as<Options, optim::AdamWOptions>
void visit_options(Options& options, Visit& visit) {
  visit("lr", options.lr());
  visit("beta1", std::get<0>(options.betas()));
  visit("beta2", std::get<1>(options.betas()));
  visit("eps", options.eps());
  visit("weight_decay", options.weight_decay());
  visit("amsgrad", options.amsgrad());
}

template <class Visit>
void visit_options(optim::SGDOptions& options, Visit& visit) {
  visit("lr", options.lr());
  visit("momentum", options.momentum());
  visit("dampening", options.dampening());
  visit("weight_decay", options.weight_decay());
  visit("nesterov", options.nesterov());
}

template <class Visit>
void visit_options(optim::AdagradOptions& options, Visit& visit) {
  visit("lr", options.lr());
  visit("lr_decay", options.lr_decay());
  visit("weight_decay", options.weight_decay());
  visit("initial_accumulator_value", options.initial_accumulator_value());
  visit("eps", options.eps());
}

template <class Visit>
void visit_options(optim::RMSpropOptions& options, Visit& visit) {
  visit("lr", options.lr());
  visit("alpha", options.alpha());
  visit("eps", options.eps());
  visit("weight_decay", options.weight_decay());
  visit("momentum", options.momentum());
  visit("centered", options.centered());
}

template <class Visit>
void visit_options(optim::LBFGSOptions& options, Visit& visit) {
  visit("lr", options.lr());
  visit("max_iter", options.max_iter());
  visit("tolerance_grad", options.tolerance_grad());
  visit("tolerance_change", options.tolerance_change());
  visit("history_size", options.history_size());
}

/// Where a tensor of the saved shape and dtype goes that the program does not have yet: as optimizers make their state.
at::Tensor make_for(const at::Tensor& parameter, const SavedTensor& saved) {
  const at::TensorOptions dtype = at::TensorOptions().dtype(saved.dtype);
  if (parameter.sizes() == at::IntArrayRef(saved.shape)) {
    return at::zeros_like(parameter.detach(), dtype, at::MemoryFormat::Preserve);
  }
  const at::Device device = is_mesh_tensor(parameter) ? mesh_of(parameter).device() : parameter.device();
  const at::Tensor plain = at::zeros(saved.shape, dtype.device(device));
  if (!is_mesh_tensor(parameter)) return plain;
  return distribute(plain, mesh_of(parameter), Placements::replicated(mesh_of(parameter).num_axes()));
}

/// Adds what there is.
struct SaveFields {
  Collector& collector;
  const std::string& prefix;

  void operator()(const char* field, const at::Tensor& tensor) {
    if (tensor.defined()) collector.tensor(prefix + field, "optimizer", tensor);
  }
  void operator()(const char* field, const std::deque<at::Tensor>& tensors) {
    collector.value(prefix + field, static_cast<std::int64_t>(tensors.size()));
    for (std::size_t i = 0; i < tensors.size(); ++i) (*this)(fmt::format("{}.{}", field, i).c_str(), tensors[i]);
  }
  template <class Number>
    requires std::is_arithmetic_v<Number>
  void operator()(const char* field, Number number) {
    collector.value(prefix + field, number);
  }
};

/// Adds what the checkpoint has, and clears the rest.
struct LoadFields {
  Collector& collector;
  const std::string& prefix;
  const at::Tensor& parameter;
  std::shared_ptr<void> keep;  ///< owns the references
  bool any = false;

  void operator()(const char* field, at::Tensor& tensor) {
    const SavedTensor* saved = collector.saved()->find(prefix + field);
    if (saved == nullptr) {
      tensor = at::Tensor();
      return;
    }
    any = true;
    if (!tensor.defined() || is_mesh_tensor(tensor) != is_mesh_tensor(parameter)) tensor = make_for(parameter, *saved);
    collector.tensor(prefix + field, "optimizer", tensor);
  }
  void operator()(const char* field, std::deque<at::Tensor>& tensors) {
    const auto count = collector.saved()->values.find(prefix + field);
    if (count == collector.saved()->values.end() || !std::holds_alternative<std::int64_t>(count->second)) return;
    tensors.assign(static_cast<std::size_t>(std::get<std::int64_t>(count->second)), at::Tensor());
    collector.value(prefix + field, count->second);
    for (std::size_t i = 0; i < tensors.size(); ++i) (*this)(fmt::format("{}.{}", field, i).c_str(), tensors[i]);
  }
  template <class Number>
    requires std::is_arithmetic_v<Number>
  void operator()(const char* field, Number& number) {
    if (!collector.saved()->values.contains(prefix + field)) return;
    any = true;
    collector.value(prefix + field, number,
                    [&number, owner = keep](const Value& value) { number = std::get<Number>(value); });
  }
};

/// Values that the program has whether it saves or loads.
struct BothFields {
  Collector& collector;
  const std::string& prefix;

  template <class Number>
  void operator()(const char* field, Number& number) {
    collector.value(prefix + field, number, [&number](const Value& value) { number = std::get<Number>(value); });
  }
};

template <class State>
void collect_state(const std::string& prefix, optim::Optimizer& optimizer, const at::Tensor& parameter,
                   Collector& collector) {
  void* key = parameter.unsafeGetTensorImpl();
  const auto found = optimizer.state().find(key);
  const bool exists = found != optimizer.state().end() && found->second != nullptr;
  if (!collector.loads()) {
    SaveFields save{collector, prefix};
    if (exists) visit_state(static_cast<State&>(*found->second), save);
    return;
  }
  const auto fresh = exists ? std::make_shared<State>(static_cast<State&>(*found->second)) : std::make_shared<State>();
  LoadFields load{collector, prefix, parameter, fresh};
  visit_state(*fresh, load);
  collector.finally(prefix.substr(0, prefix.size() - 1), [&optimizer, key, fresh, any = load.any] {
    if (any) {
      optimizer.state()[key] = std::make_unique<State>(*fresh);
    } else {
      optimizer.state().erase(key);
    }
  });
}

std::vector<std::string> names_of(const std::string& name, const std::vector<at::Tensor>& parameters,
                                  const Collector& collector) {
  std::vector<std::string> names;
  for (const at::Tensor& parameter : parameters) names.push_back(collector.name_of(parameter, name));
  return names;
}

/// Adds the state of a group, if its options are `Options`.
template <class Options, class State>
bool collect_group(const char* kind, const std::string& name, optim::Optimizer& optimizer,
                   optim::OptimizerParamGroup& group, Collector& collector) {
  auto* options = dynamic_cast<Options*>(&group.options());
  if (options == nullptr) return false;
  const std::vector<at::Tensor> parameters = module::each_once(group.params());
  const std::vector<std::string> names = names_of(name, parameters, collector);
  if (names.empty()) return true;
  const std::string of_group = name + "." + *std::min_element(names.begin(), names.end()) + ".options.";
  collector.value(of_group + "kind", std::string(kind));
  BothFields both{collector, of_group};
  visit_options(*options, both);
  if constexpr (std::same_as<Options, optim::LBFGSOptions>) {
    collector.value(of_group + "order", fmt::format("{}", fmt::join(names, " ")));
    collect_state<State>(name + "." + names.front() + ".", optimizer, parameters.front(), collector);
  } else {
    for (std::size_t i = 0; i < names.size(); ++i) {
      collect_state<State>(name + "." + names[i] + ".", optimizer, parameters[i], collector);
    }
  }
  return true;
}

/// The copies of parameters, which then stand for their parameters.
void collect_masters(const std::string& name, MasterWeights& optimizer, Collector& collector) {
  std::size_t index = 0;
  for (const optim::OptimizerParamGroup& group : optimizer.param_groups()) {
    for (const at::Tensor& parameter : group.params()) {
      const at::Tensor& master = optimizer.masters().at(index++);
      if (master.is_same(parameter)) continue;
      const std::string of_parameter = collector.name_of(parameter, name);
      collector.tensor(name + "." + of_parameter + ".master", "optimizer", master);
      collector.call(master, of_parameter);
    }
  }
}

}  // namespace

void collect_optimizer(const std::string& name, optim::Optimizer& optimizer, Collector& collector) {
  if (auto* masters = dynamic_cast<MasterWeights*>(&optimizer)) {
    collect_masters(name, *masters, collector);
    collect_optimizer(name, masters->inner(), collector);
    return;
  }
  for (optim::OptimizerParamGroup& group : optimizer.param_groups()) {
    const bool known =
        group.has_options() &&
        (collect_group<optim::AdamOptions, optim::AdamParamState>("adam", name, optimizer, group, collector) ||
         collect_group<optim::AdamWOptions, optim::AdamWParamState>("adamw", name, optimizer, group, collector) ||
         collect_group<optim::SGDOptions, optim::SGDParamState>("sgd", name, optimizer, group, collector) ||
         collect_group<optim::AdagradOptions, optim::AdagradParamState>("adagrad", name, optimizer, group, collector) ||
         collect_group<optim::RMSpropOptions, optim::RMSpropParamState>("rmsprop", name, optimizer, group, collector) ||
         collect_group<optim::LBFGSOptions, optim::LBFGSParamState>("lbfgs", name, optimizer, group, collector));
    check<ConfigError>(known,
                       "state: \"{}\" is an optimizer of no known kind; allowed: Adam, AdamW, SGD, Adagrad, RMSprop, LBFGS, "
                       "what derives from them, MasterWeights; add what it keeps as tensors and numbers",
                       name);
  }
}

}  // namespace tessera::checkpoint

// SPDX-License-Identifier: Apache-2.0
// The parts of a state.
#include "tessera/checkpoint/state.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "checkpoint/collector.h"
#include "checkpoint/optimizer_parts.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"

namespace tessera {

using checkpoint::Collector;
using checkpoint::Value;

namespace checkpoint {

void Collector::tensor(const std::string& name, const char* role, const at::Tensor& tensor) {
  const auto [found, is_new] = names_.try_emplace(tensor.unsafeGetTensorImpl(), name);
  if (!is_new) {
    aliases_.emplace(name, found->second);
    return;
  }
  if (is_mesh_tensor(tensor)) use_mesh(mesh_of(tensor));
  tensors_.push_back({name, role, tensor});
}

void Collector::value(const std::string& name, Value value, std::function<void(const Value&)> set) {
  values_.push_back({name, std::move(value), std::move(set)});
}

const std::string& Collector::name_of(const at::Tensor& tensor, const std::string& part) const {
  const auto found = names_.find(tensor.unsafeGetTensorImpl());
  check<ConfigError>(found != names_.end(),
                     "state: \"{}\" has a parameter of sizes [{}] that no module of the state has; add its module before it",
                     part, fmt::join(tensor.sizes(), ", "));
  return found->second;
}

void Collector::use_mesh(const Mesh& mesh) {
  if (!mesh_) mesh_ = mesh;
}

}  // namespace checkpoint

State& State::add_part(const std::string& name, checkpoint::Part part) {
  check<ConfigError>(!name.empty(), "state: a part has an empty name; allowed: any other");
  for (const std::string& other : names_) {
    const bool nested = name.starts_with(other + ".") || other.starts_with(name + ".");
    check<ConfigError>(name != other && !nested, "state: the names \"{}\" and \"{}\" meet; choose another", other, name);
  }
  names_.push_back(name);
  parts_.push_back(std::move(part));
  return *this;
}

State& State::add_value(std::string name, std::function<Value()> get, std::function<void(const Value&)> set) {
  return add_part(name, [name, get = std::move(get), set = std::move(set)](Collector& collector) {
    collector.value(name, get(), set);
  });
}

State& State::add(std::string name, torch::nn::Module& module) {
  return add_part(name, [name, &module](Collector& collector) {
    for (const auto& item : module.named_parameters()) {
      if (item.value().defined()) collector.tensor(name + "." + item.key(), "parameter", item.value());
    }
    for (const auto& item : module.named_buffers()) {
      if (item.value().defined()) collector.tensor(name + "." + item.key(), "buffer", item.value());
    }
  });
}

State& State::add(std::string name, torch::optim::Optimizer& optimizer) {
  return add_part(name, [name, &optimizer](Collector& collector) {
    checkpoint::collect_optimizer(name, optimizer, collector);
  });
}

State& State::add(std::string name, ApplyInBackward& optimizers) {
  return add_part(name, [name, &optimizers](Collector& collector) {
    for (const auto& optimizer : optimizers.optimizers()) checkpoint::collect_optimizer(name, *optimizer, collector);
  });
}

State& State::add(std::string name, GradScaler& scaler) {
  return add_part(name, [name, &scaler](Collector& collector) {
    collector.value(name + ".scale", scaler.state().scale, [&scaler](const Value& value) {
      scaler.load_state({std::get<double>(value), scaler.state().growth_tracker});
    });
    collector.value(name + ".growth_tracker", scaler.state().growth_tracker, [&scaler](const Value& value) {
      scaler.load_state({scaler.state().scale, std::get<std::int64_t>(value)});
    });
  });
}

State& State::add(std::string name, Ema& ema) {
  return add_part(name, [name, &ema](Collector& collector) {
    for (std::size_t i = 0; i < ema.averages().size(); ++i) {
      collector.tensor(name + "." + collector.name_of(ema.parameters()[i], name), "average", ema.averages()[i]);
    }
  });
}

State& State::add(std::string name, const Mesh& mesh) {
  return add_part(name, [name, mesh](Collector& collector) {
    collector.use_mesh(mesh);
    const RandomState state = random_state(mesh);
    collector.value(name + ".seed", state.seed, [mesh](const Value& value) {
      set_random_state(mesh, {std::get<std::uint64_t>(value), random_state(mesh).num_draws});
    });
    collector.value(name + ".num_draws", state.num_draws, [mesh](const Value& value) {
      set_random_state(mesh, {random_state(mesh).seed, std::get<std::uint64_t>(value)});
    });
  });
}

State& State::add(std::string name, at::Generator generator) {
  return add_part(name, [name, generator](Collector& collector) mutable {
    const at::Tensor state = generator.get_state();
    collector.tensor(name, "random", state);
    collector.finally(name, [generator, state]() mutable { generator.set_state(state); });
  });
}

State& State::add(std::string name, at::Tensor& tensor) {
  return add_part(name, [name, &tensor](Collector& collector) {
    check<ConfigError>(tensor.defined(), "state: tensor \"{}\" is undefined; give it its sizes before", name);
    collector.tensor(name, "tensor", tensor);
  });
}

State& State::add(std::string name, std::string& text) {
  return add_value(
      std::move(name), [&text]() -> Value { return text; },
      [&text](const Value& value) { text = std::get<std::string>(value); });
}

}  // namespace tessera

// SPDX-License-Identifier: Apache-2.0
// Recording a run and comparing another with it.
#include "tessera/verify/equivalence.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/max.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::verify {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

at::Tensor kept(const at::Tensor& tensor) { return tensor.defined() ? full(tensor).detach().clone() : at::Tensor(); }

NamedTensors gradients_of(const NamedTensors& parameters) {
  NamedTensors gradients;
  for (const auto& [name, parameter] : parameters) gradients.emplace_back(name, kept(parameter.grad()));
  return gradients;
}

NamedTensors values_of(const NamedTensors& parameters) {
  NamedTensors values;
  for (const auto& [name, parameter] : parameters) values.emplace_back(name, kept(parameter));
  return values;
}

double largest(const at::Tensor& tensor) { return tensor.numel() == 0 ? 0.0 : tensor.abs().max().item<double>(); }

double relative(double difference, double scale) {
  if (!std::isfinite(difference)) return kInfinite;
  return difference == 0 ? 0 : scale == 0 ? kInfinite : difference / scale;
}

double deviation(const at::Tensor& reference, const at::Tensor& value) {
  if (reference.defined() != value.defined()) return kInfinite;
  if (!reference.defined()) return 0;
  if (reference.sizes() != value.sizes()) return kInfinite;
  const at::Tensor exact = reference.to(at::kDouble);
  return relative(largest(exact.sub(value.to(exact.device(), at::kDouble))), largest(exact));
}

/// The largest deviation of a list of tensors, and whose it is.
std::pair<double, std::string> worst(const NamedTensors& reference, const NamedTensors& values) {
  check<Error>(reference.size() == values.size(), "verify: {} parameters on the mesh, {} on one device", values.size(),
               reference.size());
  std::pair<double, std::string> result{0, {}};
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double here = deviation(reference[i].second, values[i].second);
    if (here > result.first) result = {here, reference[i].first};
  }
  return result;
}

}  // namespace

Trace record(const Subject& subject, std::int64_t num_steps) {
  Trace trace;
  trace.initial = values_of(subject.parameters());
  for (std::int64_t step = 0; step < num_steps; ++step) {
    Trace::Step& kept_step = trace.steps.emplace_back();
    kept_step.loss = subject.forward_backward(step);
    kept_step.gradients = gradients_of(subject.parameters());
    subject.update();
    kept_step.parameters = values_of(subject.parameters());
  }
  return trace;
}

void Deviations::merge(const Deviations& other) {
  if (std::max(other.max_gradient, other.max_parameter) > std::max(max_gradient, max_parameter)) {
    worst_parameter = other.worst_parameter;
  }
  max_loss = std::max(max_loss, other.max_loss);
  max_gradient = std::max(max_gradient, other.max_gradient);
  max_parameter = std::max(max_parameter, other.max_parameter);
}

Deviations compare(const Subject& subject, const Trace& reference) {
  Deviations total;
  const auto add_parameters = [&](const NamedTensors& expected) {
    const auto [value, name] = worst(expected, values_of(subject.parameters()));
    total.merge({.max_parameter = value, .worst_parameter = name});
  };
  add_parameters(reference.initial);
  for (std::size_t step = 0; step < reference.steps.size(); ++step) {
    const Trace::Step& expected = reference.steps[step];
    const double loss = subject.forward_backward(static_cast<std::int64_t>(step));
    total.merge({.max_loss = relative(std::abs(loss - expected.loss), std::abs(expected.loss)), .worst_parameter = {}});
    const auto [value, name] = worst(expected.gradients, gradients_of(subject.parameters()));
    total.merge({.max_gradient = value, .worst_parameter = name});
    subject.update();
    add_parameters(expected.parameters);
  }
  return total;
}

double default_tolerance(const std::string& precision, double rounding) {
  static const std::map<std::string, double> kTable{{"fp64", 1e-12}, {"fp32", 1e-4}};
  const auto found = kTable.find(precision);
  return found != kTable.end() ? found->second : 2 * rounding;
}

std::vector<std::vector<Axis>> all_meshes(int max_ranks) {
  std::vector<std::vector<Axis>> meshes;
  const auto& names = canonical_axes();
  const std::function<void(std::size_t, int, std::vector<Axis>)> extend = [&](std::size_t axis, int ranks,
                                                                              const std::vector<Axis>& chosen) {
    if (axis == names.size()) {
      if (ranks == 1) meshes.push_back(chosen);
      return;
    }
    for (int size = 1; size <= ranks; ++size) {
      if (ranks % size != 0) continue;
      std::vector<Axis> next = chosen;
      if (size > 1) next.push_back({names[axis], size});
      extend(axis + 1, ranks / size, next);
    }
  };
  for (int ranks = 1; ranks <= max_ranks; ++ranks) extend(0, ranks, {});
  return meshes;
}

}  // namespace tessera::verify

// SPDX-License-Identifier: Apache-2.0
// Random operators: every rank draws the numbers of its own elements, which depend on their places in the global
// tensor.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/special_gammaincc.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <utility>

#include "rules/families.h"
#include "rules/random_call.h"
#include "rules/rows.h"
#include "tensor/decision_cache.h"
#include "tensor/distributions.h"
#include "tensor/operator_info.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

using tensor::Box;
using tensor::PhiloxStream;

/// Fills this rank's part of the result.
using Fill = void (*)(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream);

/// Sizes of the result: of the tensor that is written, else of all tensors broadcast together.
Sizes result_sizes(const OpCall& call) {
  Sizes sizes(call.tensor(0).sizes.begin(), call.tensor(0).sizes.end());
  if (call.in_place) return sizes;
  for (const TensorArg& tensor : call.tensors) {
    if (!tensor.defined) continue;
    const auto dims = tensor.sizes.size();
    if (dims > sizes.size()) sizes.insert(sizes.begin(), dims - sizes.size(), 1);
    for (std::size_t i = 1; i <= dims; ++i) {
      if (tensor.sizes[dims - i] != 1) sizes[sizes.size() - i] = tensor.sizes[dims - i];
    }
  }
  return sizes;
}

std::vector<Sizes> random_output_sizes(const OpCall& call) {
  std::vector<Sizes> sizes(static_cast<std::size_t>(call.num_outputs()), result_sizes(call));
  return sizes;
}

/// The tensor is written, or only looked at: the result lies like it.
void like_rows(const OpCall& call, int axis, Rows& rows) {
  const Placement placement = call.tensor(0).placements[axis];
  if (call.in_place && placement.is_partial()) return;
  add_row(call, rows, {placement}, {placement.is_partial() ? R : placement});
}

/// Values of the tensors matter: pointwise.
void value_rows(const OpCall& call, int axis, Rows& rows) { pointwise_rule().rows(call, axis, rows); }

at::Tensor new_result(const Arguments& call, const Box& box) {
  at::TensorOptions options = call.first_tensor().options();
  if (const c10::IValue* dtype = call.find("dtype")) options = options.dtype(dtype->toScalarType());
  if (const c10::IValue* device = call.find("device")) options = options.device(device->toDevice());
  if (const c10::IValue* format = call.find("memory_format")) options = options.memory_format(format->toMemoryFormat());
  Sizes sizes;
  for (const Extent& extent : box.extents) sizes.push_back(extent.length);
  // Like the prototype, transposed or not, where there is one.
  return call.first_tensor().sizes() == at::IntArrayRef(sizes) ? at::empty_like(call.first_tensor(), options)
                                                               : at::empty(sizes, options);
}

template <Fill kFill>
void compute_random(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                    torch::jit::Stack& stack) {
  const auto values = pop_arguments(op, stack);
  const Arguments call{op.schema(), values};
  const Box box = box_of(decision, mesh);
  const at::Tensor result = call.in_place() ? call.first_tensor() : new_result(call, box);
  refuse_what_cannot_be_drawn(call, result);
  kFill(call, result, box, tensor::MeshRuntime::of(mesh).next_stream());
  stack.emplace_back(result);
}

template <Fill kFill>
void localise_random(const OpCall& call, Decision& decision) {
  const Sizes sizes = result_sizes(call);
  decision.notes.assign(sizes.begin(), sizes.end());
  decision.compute = compute_random<kFill>;
}

void require_floating_point(const Arguments& call, const at::Tensor& local) {
  call.require(local.is_floating_point(), "the tensor is of {}; allowed: floating point",
               at::toString(local.scalar_type()));
}

void draw_uniform(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const double from = call.number("from", 0);
  const double to = call.number("to", 1);
  require_floating_point(call, local);
  call.require(from <= to, "from = {} is above to = {}", from, to);
  tensor::fill_uniform(local, box, stream, from, to);
}

void draw_normal(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const c10::IValue* mean = call.find("mean");
  const c10::IValue* std = call.find("std");
  const bool tensors = (mean != nullptr && mean->isTensor()) || (std != nullptr && std->isTensor());
  require_floating_point(call, local);
  if (!tensors) {
    const double deviation = call.number("std", 1);
    call.require(deviation >= 0, "std is {}; allowed: 0 and above", deviation);
    tensor::fill_normal(local, box, stream, call.number("mean", 0), deviation);
    return;
  }
  tensor::fill_normal(local, box, stream, 0, 1);
  if (std != nullptr) std->isTensor() ? local.mul_(std->toTensor()) : local.mul_(std->toScalar());
  if (mean != nullptr) mean->isTensor() ? local.add_(mean->toTensor()) : local.add_(mean->toScalar());
}

void draw_bernoulli(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const c10::IValue* p = call.find("p");
  if (p == nullptr || p->isTensor()) {
    const at::Tensor& probabilities = p == nullptr ? call.first_tensor() : p->toTensor();
    call.require(probabilities.ge(0).logical_and(probabilities.le(1)).all().item<bool>(),
                 "a probability is outside 0 to 1");
    tensor::fill_bernoulli(local, box, stream, probabilities.expand(local.sizes()));
    return;
  }
  const double probability = p->toScalar().toDouble();
  call.require(probability >= 0 && probability <= 1, "p is {}; allowed: 0 to 1", probability);
  tensor::fill_bernoulli(local, box, stream, probability);
}

/// Largest integer that random_() without bounds draws, as LibTorch has it.
std::int64_t largest_integer(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBool:
      return 1;
    case at::kByte:
      return std::numeric_limits<std::uint8_t>::max();
    case at::kChar:
      return std::numeric_limits<std::int8_t>::max();
    case at::kShort:
      return std::numeric_limits<std::int16_t>::max();
    case at::kInt:
      return std::numeric_limits<std::int32_t>::max();
    case at::kBFloat16:
      return std::int64_t{1} << 8;
    case at::kHalf:
      return std::int64_t{1} << 11;
    case at::kFloat:
      return std::int64_t{1} << 24;
    case at::kDouble:
      return std::int64_t{1} << 53;
    default:
      return std::numeric_limits<std::int64_t>::max();
  }
}

/// An integer argument, a number or a tensor of one.
std::optional<std::int64_t> integer(const Arguments& call, const char* name) {
  const c10::IValue* value = call.find(name);
  if (value == nullptr) return std::nullopt;
  return value->isTensor() ? value->toTensor().item<std::int64_t>() : value->toScalar().toLong();
}

void draw_integers(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  // random_ says from and to, randint_like low and high; the upper one is outside the range.
  const std::optional<std::int64_t> from = integer(call, call.schema.name() == "aten::randint_like" ? "low" : "from");
  const std::optional<std::int64_t> to = integer(call, call.schema.name() == "aten::randint_like" ? "high" : "to");
  const std::int64_t low = from.value_or(0);
  const std::int64_t last = to ? *to - 1 : largest_integer(local.scalar_type());
  call.require(!to || low < *to, "from = {} is not below to = {}", low, to.value_or(0));
  call.require(low <= last, "from = {} is above {}, the largest number that is drawn for {}", low, last,
               at::toString(local.scalar_type()));
  tensor::fill_integers(local, box, stream, low,
                        static_cast<std::uint64_t>(last) - static_cast<std::uint64_t>(low) + 1);
}

void draw_exponential(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const double lambda = call.number("lambd", 1);
  require_floating_point(call, local);
  call.require(lambda > 0, "lambd is {}; allowed: above 0", lambda);
  tensor::fill_exponential(local, box, stream, lambda);
}

void draw_geometric(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const double p = call.number("p");
  call.require(p > 0 && p < 1, "p is {}; allowed: above 0 and below 1", p);
  tensor::fill_geometric(local, box, stream, p);
}

void draw_log_normal(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const double std = call.number("std", 2);
  require_floating_point(call, local);
  call.require(std > 0, "std is {}; allowed: above 0", std);
  tensor::fill_log_normal(local, box, stream, call.number("mean", 1), std);
}

void draw_cauchy(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  const double sigma = call.number("sigma", 1);
  require_floating_point(call, local);
  call.require(sigma > 0, "sigma is {}; allowed: above 0", sigma);
  tensor::fill_cauchy(local, box, stream, call.number("median", 0), sigma);
}

/// The smallest number whose summed probability exceeds a uniform one, found by halving: any rate, and one draw each.
void draw_poisson(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  require_floating_point(call, local);
  const at::Tensor rate = call.first_tensor().to(at::kDouble);
  call.require(rate.ge(0).all().item<bool>(), "a rate is below 0");
  if (local.numel() == 0) return;
  const at::Tensor uniform = at::empty_like(rate);
  tensor::fill_uniform(uniform, box, stream, 0, 1);
  at::Tensor below = at::full_like(rate, -1);
  // Twelve standard deviations up: out of reach of any double below 1, as 40 is for small rates.
  at::Tensor above = rate.sqrt().mul_(12).add_(rate).add_(40).ceil_();
  while (above.sub(below).max().item<double>() > 1) {
    const at::Tensor middle = below.add(above).div_(2).floor_();
    const at::Tensor exceeds = at::special_gammaincc(middle.add(1), rate).gt(uniform);
    above = at::where(exceeds, middle, above);
    below = at::where(exceeds, below, middle);
  }
  local.copy_(above);
}

void draw_unit(const Arguments& call, const at::Tensor& local, const Box& box, const PhiloxStream& stream) {
  require_floating_point(call, local);
  tensor::fill_uniform(local, box, stream, 0, 1);
}

using MakeRows = void (*)(const OpCall&, int, Rows&);

struct RandomOperator {
  const char* name;
  MakeRows rows;
  Fill fill;
};

constexpr std::array kOperators{
    RandomOperator{"aten::bernoulli", value_rows, draw_bernoulli},
    RandomOperator{"aten::normal", value_rows, draw_normal},
    RandomOperator{"aten::normal_functional", like_rows, draw_normal},
    RandomOperator{"aten::randn_like", like_rows, draw_normal},
    RandomOperator{"aten::uniform", like_rows, draw_uniform},
    RandomOperator{"aten::rand_like", like_rows, draw_unit},
    RandomOperator{"aten::random", like_rows, draw_integers},
    RandomOperator{"aten::randint_like", like_rows, draw_integers},
    RandomOperator{"aten::exponential", like_rows, draw_exponential},
    RandomOperator{"aten::geometric", like_rows, draw_geometric},
    RandomOperator{"aten::log_normal", like_rows, draw_log_normal},
    RandomOperator{"aten::cauchy", like_rows, draw_cauchy},
    RandomOperator{"aten::poisson", value_rows, draw_poisson},
};

template <std::size_t... kIndex>
void add_operators(RuleTable& table, std::index_sequence<kIndex...> /*indices*/) {
  ((table[kOperators[kIndex].name] = {.rows = kOperators[kIndex].rows,
                                      .localise = localise_random<kOperators[kIndex].fill>,
                                      .output_sizes = random_output_sizes,
                                      .cuts = Cuts::kAny}),
   ...);
}

const RandomOperator* find_operator(const c10::OperatorHandle& op) {
  const std::string name = tensor::base_name(op.schema().name());
  const auto found = std::find_if(kOperators.begin(), kOperators.end(),
                                  [&](const RandomOperator& known) { return known.name == name; });
  return found == kOperators.end() ? nullptr : &*found;
}

}  // namespace

void add_random_rules(RuleTable& table) {
  add_operators(table, std::make_index_sequence<kOperators.size()>());
}

bool draws_by_element(const c10::OperatorHandle& op) {
  return find_operator(op) != nullptr && op.schema().name().ends_with('_');
}

void draw_part(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments, const at::Tensor& local,
               const Box& box, const Mesh& mesh) {
  const PhiloxStream stream = tensor::MeshRuntime::of(mesh).next_stream();
  if (!local.defined()) return;
  const Arguments call{op.schema(), arguments};
  refuse_what_cannot_be_drawn(call, local);
  find_operator(op)->fill(call, local, box, stream);
}

}  // namespace tessera::rules

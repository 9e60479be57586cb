// SPDX-License-Identifier: Apache-2.0
// Pointwise operators: any output dim may be sharded if every input is sharded with it; linear ones keep partial sums.
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

/// Output dims in play on `axis`: those along which some input lies sharded, counted from the output's right end so
/// that broadcast inputs align.
c10::SmallVector<std::int64_t, 4> candidate_dims(const OpCall& call, int axis, std::int64_t out_dims) {
  c10::SmallVector<std::int64_t, 4> dims;
  for (int i = 0; i < call.num_tensors(); ++i) {
    const std::int64_t dim = sharded_dim(call, i, axis);
    if (dim < 0) continue;
    const std::int64_t out_dim = dim + out_dims - call.tensor(i).dim();
    if (!contains(dims, out_dim)) dims.push_back(out_dim);
  }
  return dims;
}

std::int64_t output_dims(const OpCall& call) {
  std::int64_t dims = 0;
  for (const TensorArg& tensor : call.tensors) dims = std::max(dims, tensor.defined ? tensor.dim() : 0);
  return dims;
}

std::int64_t broadcast_size(const OpCall& call, std::int64_t out_dim, std::int64_t out_dims) {
  std::int64_t size = 1;
  for (const TensorArg& tensor : call.tensors) {
    const std::int64_t dim = out_dim - (out_dims - tensor.dim());
    if (tensor.defined && dim >= 0 && tensor.sizes[static_cast<std::size_t>(dim)] != 1) {
      size = tensor.sizes[static_cast<std::size_t>(dim)];
    }
  }
  return size;
}

void shard_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t out_dims = output_dims(call);
  for (const std::int64_t out_dim : candidate_dims(call, axis, out_dims)) {
    const std::int64_t size = broadcast_size(call, out_dim, out_dims);
    if (size == 1) continue;
    Row row;
    for (const TensorArg& tensor : call.tensors) {
      const std::int64_t dim = out_dim - (out_dims - tensor.dim());
      const bool follows = tensor.defined && dim >= 0 && tensor.sizes[static_cast<std::size_t>(dim)] == size;
      row.inputs.push_back(follows ? S(dim) : R);
    }
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(out_dim));
    rows.push_back(std::move(row));
  }
}

bool is_partial_sum(const OpCall& call, int index, int axis) {
  const Placement placement = call.tensor(index).placements[axis];
  return call.tensor(index).defined && placement == P;
}

/// f(a + b) = f(a) + f(b) over all tensor inputs together.
void all_partial_row(const OpCall& call, int axis, Rows& rows) {
  for (int i = 0; i < call.num_tensors(); ++i) {
    if (!is_partial_sum(call, i, axis)) return;
  }
  Row row;
  row.inputs.resize(call.tensors.size(), P);
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), P);
  rows.push_back(std::move(row));
}

/// Linear in input `index` alone, the others replicated.
void one_partial_row(const OpCall& call, int axis, int index, Rows& rows) {
  if (index >= call.num_tensors() || !is_partial_sum(call, index, axis)) return;
  Row row;
  row.inputs.resize(call.tensors.size());
  row.inputs[static_cast<std::size_t>(index)] = P;
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), P);
  rows.push_back(std::move(row));
}

void pointwise_rows(const OpCall& call, int axis, Rows& rows) { shard_rows(call, axis, rows); }

void addition_rows(const OpCall& call, int axis, Rows& rows) {
  // add.Scalar is affine, not linear: only the forms with two tensors keep a partial sum.
  if (call.num_tensors() == 2) all_partial_row(call, axis, rows);
  shard_rows(call, axis, rows);
}

void linear_rows(const OpCall& call, int axis, Rows& rows) {
  all_partial_row(call, axis, rows);
  shard_rows(call, axis, rows);
}

void product_rows(const OpCall& call, int axis, Rows& rows) {
  one_partial_row(call, axis, 0, rows);
  one_partial_row(call, axis, 1, rows);
  shard_rows(call, axis, rows);
}

void quotient_rows(const OpCall& call, int axis, Rows& rows) {
  // div with a rounding mode is not linear.
  if (call.index_of("rounding_mode") < 0) one_partial_row(call, axis, 0, rows);
  shard_rows(call, axis, rows);
}

void cast_rows(const OpCall& call, int axis, Rows& rows) {
  const int index = call.index_of("dtype");
  const bool keeps_sums = index < 0 || call.argument(index).isNone() ||
                          (c10::isFloatingType(call.argument(index).toScalarType()) &&
                           c10::elementSize(call.argument(index).toScalarType()) >=
                               c10::elementSize(call.tensor(0).dtype));
  if (keeps_sums) all_partial_row(call, axis, rows);
  shard_rows(call, axis, rows);
}

/// A shard elsewhere would be out of its group's reach.
void refuse_other_device(const OpCall& call, Decision&) {
  const int index = call.index_of("device");
  if (index < 0 || call.argument(index).isNone()) return;
  const c10::Device device = call.argument(index).toDevice();
  check<ShapeError>(device.type() == call.mesh.device().type() || device.is_meta(),
                    "to({}) is not supported on a mesh tensor, which lies on the device of its mesh, {}; use tessera::full "
                    "or tessera::local first",
                    device.str(), call.mesh.device().str());
}

/// log_sigmoid_forward(self) -> (output, buffer): the buffer is empty on a GPU, where backward does not read it. Here it
/// has the sizes of the output everywhere.
void compute_log_sigmoid(const c10::OperatorHandle& op, const Decision&, const Mesh&, torch::jit::Stack& stack) {
  op.callBoxed(stack);
  const at::Tensor output = stack[stack.size() - 2].toTensor();
  if (stack.back().toTensor().sizes() != output.sizes()) stack.back() = at::empty_like(output);
}
void localise_log_sigmoid(const OpCall&, Decision& decision) { decision.compute = compute_log_sigmoid; }

}  // namespace

const Rule& pointwise_rule() {
  static const Rule kRule{.rows = pointwise_rows, .cuts = Cuts::kAny};
  return kRule;
}

void add_pointwise_rules(RuleTable& table) {
  for (const char* name : {"aten::add", "aten::sub"}) table[name] = {.rows = addition_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::neg", "aten::clone", "aten::copy", "aten::zero", "aten::positive",
                           "aten::lift_fresh", "aten::lift", "aten::alias", "aten::contiguous", "aten::_conj", "aten::_conj_physical",
                           "aten::conj_physical", "aten::_neg_view"}) {
    table[name] = {.rows = linear_rows, .cuts = Cuts::kAny};
  }
  for (const char* name : {"aten::mul", "aten::multiply"}) table[name] = {.rows = product_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::div", "aten::divide", "aten::true_divide"}) table[name] = {.rows = quotient_rows, .cuts = Cuts::kAny};
  table["aten::_to_copy"] = {.rows = cast_rows, .localise = refuse_other_device, .cuts = Cuts::kAny};
  // Pointwise in fact, though not tagged so in every LibTorch.
  for (const char* name :
       {"aten::fill", "aten::masked_fill", "aten::where", "aten::threshold_backward", "aten::gelu_backward",
        "aten::silu_backward", "aten::tanh_backward", "aten::sigmoid_backward", "aten::elu_backward",
        "aten::leaky_relu_backward", "aten::hardtanh_backward", "aten::softplus_backward", "aten::mish_backward",
        "aten::lerp", "aten::addcmul", "aten::addcdiv", "aten::native_dropout_backward",
        "aten::floor_divide", "aten::leaky_relu", "aten::hardswish", "aten::hardswish_backward",
        "aten::hardsigmoid_backward", "aten::hardshrink_backward", "aten::softshrink_backward",
        "aten::log_sigmoid_backward", "aten::_prelu_kernel", "aten::_prelu_kernel_backward",
        "aten::complex", "aten::polar", "aten::_add_relu", "aten::rrelu_with_noise_backward",
        "aten::elu", "aten::celu", "aten::selu", "aten::mish", "aten::hardsigmoid", "aten::threshold", "aten::heaviside",
        "aten::gcd", "aten::lcm", "aten::rsub", "aten::copysign", "aten::_standard_gamma_grad", "aten::_dirichlet_grad", "aten::is_same_size"}) {
    table[name] = {.rows = pointwise_rows, .cuts = Cuts::kAny};
  }
  table["aten::log_sigmoid_forward"] = {.rows = pointwise_rows, .localise = localise_log_sigmoid, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules

// SPDX-License-Identifier: Apache-2.0
// Batch norm: statistics over a sharded batch are those of the whole batch.
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/native_batch_norm.h>

#include "rules/composites.h"
#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

using Arguments = std::vector<c10::IValue>;

/// [C] -> [1, C, 1, ...], to meet a tensor of `dims` dims.
at::Tensor along_channels(const at::Tensor& vector, std::int64_t dims) {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(dims), 1);
  sizes[1] = -1;
  return vector.reshape(sizes);
}

std::vector<std::int64_t> all_but_channels(std::int64_t dims) {
  std::vector<std::int64_t> result;
  for (std::int64_t dim = 0; dim < dims; ++dim) {
    if (dim != 1) result.push_back(dim);
  }
  return result;
}

/// decision.notes: the global count per channel, then the mesh axes that cut the batch or the plane.
void reduce_over_axes(at::Tensor& tensor, const Decision& decision, const Mesh& mesh) {
  tensor = tensor.contiguous();
  for (std::size_t i = 1; i < decision.notes.size(); ++i)
    mesh.along(static_cast<int>(decision.notes[i])).all_reduce(tensor);
}

bool has(const c10::IValue& value) { return value.isTensor() && value.toTensor().defined(); }

/// The mean and the sum of squared distances from it, in the precision that batch norm keeps its statistics in.
struct Moments {
  at::Tensor mean;
  at::Tensor squares;
};

Moments moments_of(const at::Tensor& input, const Decision& decision, const Mesh& mesh) {
  const auto dtype = at::toOpMathType(input.scalar_type());
  const auto dims = all_but_channels(input.dim());
  const auto count = static_cast<double>(decision.notes[0]);
  Moments moments{input.to(dtype).sum(dims), {}};
  reduce_over_axes(moments.mean, decision, mesh);
  moments.mean.div_(count);
  moments.squares = (input.to(dtype) - along_channels(moments.mean, input.dim())).square().sum(dims);
  reduce_over_axes(moments.squares, decision, mesh);
  return moments;
}

void update_running(const Arguments& arguments, const Moments& moments, double count, double momentum,
                    std::size_t first) {
  if (has(arguments[first])) {
    at::Tensor mean = arguments[first].toTensor();
    mean.mul_(1 - momentum).add_(moments.mean.to(mean.scalar_type()), momentum);
  }
  if (has(arguments[first + 1])) {
    at::Tensor variance = arguments[first + 1].toTensor();
    variance.mul_(1 - momentum).add_(moments.squares.div(count - 1).to(variance.scalar_type()), momentum);
  }
}

// native_batch_norm(input, weight?, bias?, running_mean?, running_var?, training, momentum, eps)
// _native_batch_norm_legit(input, weight?, bias?, [running_mean, running_var,] training, momentum, eps)
// _batch_norm_with_update(input, weight?, bias?, running_mean, running_var, momentum, eps), whose last output is a
// reserve that is empty on a CPU
void compute_batch_norm(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                        torch::jit::Stack& stack) {
  const Arguments arguments = pop_arguments(op, stack);
  const at::Tensor input = arguments[0].toTensor();
  const double momentum = arguments[arguments.size() - 2].toDouble();
  const double epsilon = arguments.back().toDouble();
  const Moments moments = moments_of(input, decision, mesh);
  const auto count = static_cast<double>(decision.notes[0]);
  const at::Tensor inverse = moments.squares.div(count).add_(epsilon).rsqrt_();
  at::Tensor output = (input - along_channels(moments.mean, input.dim())) * along_channels(inverse, input.dim());
  if (has(arguments[1])) output = output * along_channels(arguments[1].toTensor(), input.dim());
  if (has(arguments[2])) output = output + along_channels(arguments[2].toTensor(), input.dim());
  const bool keeps_statistics = op.schema().arguments()[3].name() == "running_mean";
  if (keeps_statistics) update_running(arguments, moments, count, momentum, 3);
  stack.emplace_back(output.to(input.scalar_type()));
  stack.emplace_back(moments.mean);
  stack.emplace_back(inverse);
  if (op.schema().returns().size() == 4) stack.emplace_back(at::empty({0}, input.options().dtype(at::kByte)));
}

// native_batch_norm_backward(grad_out, input, weight?, running_mean?, running_var?, save_mean?, save_invstd?, train,
// eps, output_mask) -> (grad_input, grad_weight, grad_bias), the last two as partial sums; batch_norm_backward has the
// reserve behind them
void compute_batch_norm_backward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                                 torch::jit::Stack& stack) {
  const Arguments arguments = pop_arguments(op, stack);
  const at::Tensor gradient = arguments[0].toTensor();
  const at::Tensor input = arguments[1].toTensor();
  const std::int64_t dims = input.dim();
  const auto dtype = at::toOpMathType(input.scalar_type());
  const at::Tensor inverse = along_channels(arguments[6].toTensor(), dims);
  const at::Tensor normalised = (input.to(dtype) - along_channels(arguments[5].toTensor(), dims)) * inverse;
  const at::Tensor grad_bias = gradient.to(dtype).sum(all_but_channels(dims));
  const at::Tensor grad_weight = (gradient.to(dtype) * normalised).sum(all_but_channels(dims));
  const auto mask = arguments[9].toBoolList();
  at::Tensor grad_input;
  if (mask[0]) {
    at::Tensor sum = grad_bias.clone();
    at::Tensor weighted_sum = grad_weight.clone();
    reduce_over_axes(sum, decision, mesh);
    reduce_over_axes(weighted_sum, decision, mesh);
    const auto count = static_cast<double>(decision.notes[0]);
    grad_input = (gradient.to(dtype) - along_channels(sum, dims) / count -
                  normalised * along_channels(weighted_sum, dims) / count) *
                 inverse;
    if (has(arguments[2])) grad_input = grad_input * along_channels(arguments[2].toTensor(), dims);
    grad_input = grad_input.to(input.scalar_type());
  }
  const auto parameter_dtype = has(arguments[2]) ? arguments[2].toTensor().scalar_type() : dtype;
  stack.emplace_back(std::move(grad_input));
  stack.emplace_back(mask[1] ? grad_weight.to(parameter_dtype) : at::Tensor());
  stack.emplace_back(mask[2] ? grad_bias.to(parameter_dtype) : at::Tensor());
}

bool is_training(const OpCall& call) {
  for (const char* name : {"training", "train", "update"}) {
    if (const int index = call.index_of(name); index >= 0) return call.argument(index).toBool();
  }
  return true;
}

/// `inputs` tensors come first and have the input's sizes; what follows has one number per channel.
void channel_rows(const OpCall& call, int axis, Rows& rows, int inputs, bool backward) {
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    bool follows = false;
    for (int i = 0; i < inputs; ++i) follows = follows || sharded_dim(call, i, axis) == dim;
    if (!follows || !leaves_no_rank_empty(call, call.tensor(0), dim, axis)) continue;
    Row row;
    row.inputs.resize(call.tensors.size(), dim == 1 ? S(0) : R);
    for (int i = 0; i < inputs; ++i) row.inputs[static_cast<std::size_t>(i)] = S(dim);
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), dim == 1 ? S(0) : backward ? P : R);
    row.outputs[0] = S(dim);
    // The reserve is this rank's own business.
    if (call.index_of("reserve") >= 0) row.inputs.back() = R;
    if (row.outputs.size() == 4) row.outputs.back() = R;
    rows.push_back(std::move(row));
  }
}
void batch_norm_rows(const OpCall& call, int axis, Rows& rows) { channel_rows(call, axis, rows, 1, false); }
void batch_norm_backward_rows(const OpCall& call, int axis, Rows& rows) { channel_rows(call, axis, rows, 2, true); }

void localise_with(const OpCall& call, Decision& decision, tensor::Compute compute) {
  if (!is_training(call)) return;
  std::vector<std::int64_t> axes;
  for (int axis = 0; axis < decision.inputs[0].size(); ++axis) {
    const Placement placement = decision.inputs[0][axis];
    if (placement.is_shard() && placement.dim != 1) axes.push_back(axis);
  }
  if (axes.empty()) return;
  const at::IntArrayRef sizes = call.tensor(0).sizes;
  decision.notes = {c10::multiply_integers(sizes) / std::max<std::int64_t>(sizes[1], 1)};
  decision.notes.insert(decision.notes.end(), axes.begin(), axes.end());
  decision.compute = compute;
}
void localise_batch_norm(const OpCall& call, Decision& decision) { localise_with(call, decision, compute_batch_norm); }
void localise_batch_norm_backward(const OpCall& call, Decision& decision) {
  localise_with(call, decision, compute_batch_norm_backward);
}

/// Statistics have one number per channel; in evaluation they are empty.
std::vector<Sizes> statistics_sizes(const OpCall& call) {
  const at::IntArrayRef input = call.tensor(0).sizes;
  const Sizes channels{is_training(call) ? input[1] : 0};
  std::vector<Sizes> sizes{Sizes(input.begin(), input.end()), channels, channels};
  if (call.num_outputs() == 4) sizes.push_back(Sizes{0});
  return sizes;
}

/// What LibTorch makes of an input without elements, of any number of dims: gradients are zeros, not absent.
at::Tensor scaled_copy(const at::Tensor& empty, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias) {
  at::Tensor output = empty.clone();
  if (weight && weight->defined()) output = output * (*weight)[0];
  if (bias && bias->defined()) output = output + (*bias)[0];
  return output;
}

/// Never cuDNN's own operator: backward needs a reserve of its forward, which statistics over several ranks do not have.
at::Tensor batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& running_mean,
                      const std::optional<at::Tensor>& running_var, bool training, double momentum, double eps,
                      bool /*cudnn_enabled*/) {
  if (input.numel() == 0) return scaled_copy(input, weight, bias);
  check<ShapeError>(input.dim() >= 2, "batch_norm: an input of {} dims; allowed: [samples, channels, ...]", input.dim());
  for (const auto& vector : {weight, bias, running_mean, running_var}) {
    const bool fits = !vector || !vector->defined() || vector->numel() == input.size(1);
    check<ShapeError>(fits, "batch_norm: {} numbers for {} channels", fits ? 0 : vector->numel(), input.size(1));
  }
  return std::get<0>(
      at::native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps));
}

}  // namespace

void add_batch_norm_composites(torch::Library& library) { library.impl("batch_norm", batch_norm); }

void add_batch_norm_rules(RuleTable& table) {
  const Rule forward{.rows = batch_norm_rows, .localise = localise_batch_norm, .output_sizes = statistics_sizes};
  for (const char* name :
       {"aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::_batch_norm_with_update"}) {
    table[name] = forward;
  }
  const Rule backward{.rows = batch_norm_backward_rows, .localise = localise_batch_norm_backward};
  for (const char* name : {"aten::native_batch_norm_backward", "aten::batch_norm_backward"}) table[name] = backward;
}

}  // namespace tessera::rules

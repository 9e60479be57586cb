// SPDX-License-Identifier: Apache-2.0
// LibTorch's composites, each called without a gradient: some then read numbers by pointers that a mesh tensor does not
// have. Arguments are made from schemas, so that what LibTorch adds is tried as well.
#include <gtest/gtest.h>

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/torch.h>

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using Stack = torch::jit::Stack;

Tensor waves(at::IntArrayRef sizes) {
  return (at::arange(c10::multiply_integers(sizes), at::kDouble) * 0.7 + 0.3).sin().view(sizes);
}
Tensor classes(at::IntArrayRef sizes) {
  return (at::arange(c10::multiply_integers(sizes), at::kLong) * 5 + 3).remainder(4).view(sizes);
}

/// The first tensor of a call and all others.
struct Operands {
  Tensor first;
  Tensor others;
};

const std::vector<Operands>& operands() {
  static const std::vector<Operands> kOperands{
      {waves({4, 4}), waves({4, 4}).flip({0})},
      {waves({4, 4}), classes({4, 4})},
      {waves({4, 6}), classes({4})},
      {waves({4, 2, 6}), waves({4, 2, 6})},
      {waves({4, 2, 6}), waves({4})},
      {waves({4, 2, 6, 6}), waves({2})},
      {classes({4}), classes({4})},
      {classes({4, 2}), waves({4, 2})},
      {waves({8}), waves({8})},
      {waves({4, 6}), at::tensor({1, 3}, at::kLong)},
      {waves({4, 6}), at::tensor(2, at::kLong)},
      {waves({4, 4}) > 0, waves({4, 4}) > 0.5},
      {at::complex(waves({4, 4}), waves({4, 4})), at::complex(waves({4, 4}), waves({4, 4}))}};
  return kOperands;
}

/// A value for an argument that has no default; nothing if there is none to think of.
std::optional<c10::IValue> value_for(const c10::Argument& argument, const Tensor& tensor) {
  switch (argument.type()->kind()) {
    case c10::TypeKind::TensorType:
      return tensor;
    case c10::TypeKind::OptionalType:
      return c10::IValue();
    case c10::TypeKind::IntType:
    case c10::TypeKind::SymIntType:
      return 1;
    case c10::TypeKind::FloatType:
      return 0.5;
    case c10::TypeKind::NumberType:
      return c10::IValue(at::Scalar(2));
    case c10::TypeKind::BoolType:
      return false;
    case c10::TypeKind::ListType:
      break;
    default:
      return std::nullopt;
  }
  const auto element = argument.type()->castRaw<c10::ListType>()->getElementType()->kind();
  if (element == c10::TypeKind::TensorType) return c10::IValue(std::vector<Tensor>{tensor, tensor});
  if (element == c10::TypeKind::IntType || element == c10::TypeKind::SymIntType) {
    return c10::IValue(std::vector<std::int64_t>(static_cast<std::size_t>(argument.N().value_or(1)), 1));
  }
  return std::nullopt;
}

/// Arguments by the schema, with tensors of the operands, or nothing. What is written is a copy of its own.
std::optional<Stack> arguments_for(const c10::FunctionSchema& schema, const Operands& operands,
                                   const std::function<Tensor(const Tensor&)>& place) {
  Stack stack;
  bool is_first = true;
  for (const c10::Argument& argument : schema.arguments()) {
    if (argument.is_out()) return std::nullopt;
    if (argument.default_value()) {
      stack.push_back(*argument.default_value());
      continue;
    }
    const bool is_tensor = argument.type()->kind() != c10::TypeKind::OptionalType &&
                           argument.type()->str().find("Tensor") != std::string::npos;
    const Tensor tensor = is_tensor ? place((is_first ? operands.first : operands.others).clone()) : Tensor();
    is_first = is_first && !is_tensor;
    const auto value = value_for(argument, tensor);
    if (!value) return std::nullopt;
    stack.push_back(*value);
  }
  if (is_first) return std::nullopt;
  return stack;
}

std::vector<Tensor> tensors_of(const Stack& results) {
  std::vector<Tensor> tensors;
  for (const c10::IValue& result : results) {
    if (result.isTensor()) tensors.push_back(result.toTensor());
    if (!result.isTensorList()) continue;
    for (const Tensor& tensor : result.toTensorVector()) tensors.push_back(tensor);
  }
  std::erase_if(tensors, [](const Tensor& tensor) { return !tensor.defined(); });
  return tensors;
}

/// What the call gives on one device, if the arguments suit it at all.
std::optional<std::vector<Tensor>> alone(const c10::OperatorHandle& op, const Operands& operands) {
  try {
    auto stack = arguments_for(op.schema(), operands, [](const Tensor& tensor) { return tensor; });
    if (!stack) return std::nullopt;
    op.callBoxed(*stack);
    std::vector<Tensor> found = tensors_of(*stack);
    const auto is_odd = [](const Tensor& tensor) {
      return tensor.layout() != at::kStrided || tensor.is_quantized() || !tensor.device().is_cpu();
    };
    if (found.empty() || std::any_of(found.begin(), found.end(), is_odd)) return std::nullopt;
    return found;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

std::string difference(const std::vector<Tensor>& found, const std::vector<Tensor>& expected) {
  if (found.size() != expected.size()) return "another number of results";
  for (std::size_t i = 0; i < found.size(); ++i) {
    const Tensor whole = full(found[i]).resolve_conj().resolve_neg();
    if (whole.sizes() != expected[i].sizes() || whole.scalar_type() != expected[i].scalar_type()) {
      return "another shape or dtype";
    }
    const bool is_single = whole.element_size() == (whole.is_complex() ? 8 : 4);
    const double rounding = is_single ? 1e-5 : 1e-10;
    if (!at::allclose(whole, expected[i], rounding, rounding, /*equal_nan=*/true)) return "other numbers";
  }
  return "";
}

bool has_named_kin(const c10::FunctionSchema& schema) {
  return std::any_of(schema.arguments().begin(), schema.arguments().end(), [](const c10::Argument& argument) {
    return argument.type()->str().find("Dimname") != std::string::npos;
  });
}

/// Composites whose names say that they are not for dense tensors with numbers, or not for users.
bool is_meant(const c10::OperatorHandle& op) {
  const std::string& name = op.schema().name();
  if (!name.starts_with("aten::") || name.starts_with("aten::_") || has_named_kin(op.schema())) return false;
  if (!op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) return false;
  if (op.hasTag(at::Tag::nondeterministic_seeded) || op.hasTag(at::Tag::inplace_view)) return false;
  static const std::set<std::string> kOthers{
      // The composite takes sigmoid of integers in float32, the kernel for one device in the gradient's type.
      "aten::silu_backward",
      // Handles, not values.
      "aten::set_", "aten::data", "aten::_version", "aten::is_leaf", "aten::requires_grad_", "aten::retain_grad",
      "aten::cuda",
      // Draw numbers of their own.
      "aten::dropout", "aten::dropout_", "aten::alpha_dropout", "aten::alpha_dropout_", "aten::feature_dropout",
      "aten::feature_dropout_", "aten::feature_alpha_dropout", "aten::feature_alpha_dropout_", "aten::rrelu",
      "aten::rrelu_"};
  return !kOthers.contains(name) && name.find("quant") == std::string::npos &&
         name.find("sparse") == std::string::npos && name.find("fbgemm") == std::string::npos;
}

TEST(EveryComposite, GivesWithoutAGradientWhatOneDeviceGives) {
  struct Sample {
    c10::OperatorHandle op;
    const Operands* operands;
    std::vector<Tensor> expected;
  };
  const at::NoGradGuard no_grad;
  std::vector<Sample> samples;
  std::set<std::string> names;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || !op->hasSchema() || !is_meant(*op)) continue;
    for (const Operands& each : operands()) {
      if (auto expected = alone(*op, each)) {
        names.insert(name.name);
        samples.push_back({*op, &each, std::move(*expected)});
      }
    }
  }
  EXPECT_GT(names.size(), 200U);
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    const at::NoGradGuard guard;
    for (const Sample& sample : samples) {
      std::string fault;
      try {
        auto stack = arguments_for(sample.op.schema(), *sample.operands, [&](const Tensor& tensor) {
          return distribute(tensor, mesh, {tensor.dim() == 0 ? Replicate() : Shard(0)});
        });
        sample.op.callBoxed(*stack);
        fault = difference(tensors_of(*stack), sample.expected);
      } catch (const std::exception& error) {
        const std::string text = error.what();
        fault = text.substr(0, text.find('\n'));
      }
      if (mesh.rank() != 0) continue;
      EXPECT_EQ(fault, "") << toString(sample.op.operator_name()) << " of [" << sample.operands->first.sizes() << "] "
                           << sample.operands->first.scalar_type();
    }
  });
}

TEST(EveryComposite, WithArgumentsThatNoSchemaTells) {
  using Call = std::function<std::vector<Tensor>(const Tensor&)>;
  const Tensor window = at::hann_window(4, at::kDouble);
  const std::vector<std::pair<std::string, Call>> calls{
      {"max_pool1d", [](const Tensor& x) { return std::vector{at::max_pool1d(x.unsqueeze(1), {3}, {2}, {1})}; }},
      {"stft and back",
       [&](const Tensor& x) {
         const Tensor spectrum = torch::stft(x, 4, 2, 4, window, /*center=*/true, "reflect", false, std::nullopt, true);
         return std::vector{spectrum, torch::istft(spectrum, 4, 2, 4, window)};
       }},
      {"stft of one sample",
       [&](const Tensor& x) {
         return std::vector{torch::stft(x[1], 4, 2, 4, window, /*center=*/false, "reflect", true, false, true)};
       }},
      {"cdist", [](const Tensor& x) { return std::vector{at::cdist(x, x.flip({0}))}; }},
      {"combinations", [](const Tensor& x) { return std::vector{at::combinations(x.select(1, 0), 2)}; }},
      {"take_along_dim",
       [](const Tensor& x) { return std::vector{at::take_along_dim(x, x.argsort(std::int64_t{1}), 1)}; }},
      {"unflatten",
       [](const Tensor& x) {
         return std::vector{x.unflatten(1, {4, 2}), x.unflatten(0, {2, 2})};
       }},
      {"repeat_interleave",
       [](const Tensor& x) {
         return std::vector{x.repeat_interleave(3, 0), x.repeat_interleave(at::tensor({1, 0, 2, 1}, at::kLong), 0)};
       }},
      {"where", [](const Tensor& x) { return at::where(x > 0.2); }},
      {"meshgrid",
       [](const Tensor& x) {
         return at::meshgrid({x[0], x[1]}, "xy");
       }},
      {"quantile",
       [](const Tensor& x) {
         return std::vector{at::quantile(x, 0.3, 1), at::nanquantile(x, 0.3, 0)};
       }},
      {"histogramdd",
       [](const Tensor& x) {
         return std::vector{std::get<0>(at::histogramdd(x.slice(1, 0, 2), {3, 3}))};
       }},
      {"is_nonzero",
       [](const Tensor& x) { return std::vector{at::full({}, x.select(0, 1).select(0, 1).is_nonzero())}; }},
      {"cov",
       [](const Tensor& x) {
         return std::vector{at::cov(x), at::corrcoef(x)};
       }},
      {"pad_sequence",
       [](const Tensor& x) {
         return std::vector{at::pad_sequence({x, x.slice(0, 0, 2)}, true)};
       }},
      {"einsum",
       [](const Tensor& x) {
         return std::vector{at::einsum("bi,ci->bc", {x, x})};
       }},
      {"trapezoid", [](const Tensor& x) { return std::vector{at::trapezoid(x, 1, 0)}; }}};
  for (const auto& [name, call] : calls) {
    SCOPED_TRACE(name);
    const at::NoGradGuard no_grad;
    const std::vector<Tensor> expected = call(waves({4, 8}));
    for (const int dim : {0, 1}) {
      test::on_mesh("dp=2", [&, call = call](const Mesh& mesh) {
        const at::NoGradGuard guard;
        EXPECT_EQ(difference(call(distribute(waves({4, 8}), mesh, {Shard(dim)})), expected), "") << "shard " << dim;
      });
    }
  }
}

TEST(TensorSplit, TakesItsSectionsFromATensor) {
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    const Tensor rows = distribute(waves({5, 6}), mesh, {Shard(0)});
    for (const Tensor& sections : {at::tensor(3, at::kLong), at::tensor({1, 4}, at::kLong)}) {
      const auto expected = at::tensor_split(waves({5, 6}), sections, 1);
      for (const Tensor& given :
           {sections, distribute(sections, mesh, {sections.dim() == 0 ? Replicate() : Shard(0)})}) {
        EXPECT_EQ(difference(at::tensor_split(rows, given, 1), expected), "");
      }
    }
  });
}

TEST(OneHot, LiesAsTheClassesDoAndRefusesWhatIsNoClass) {
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    const Tensor rows = distribute(classes({5, 2}), mesh, {Shard(0)});
    for (const std::int64_t count : {-1, 4, 7}) {
      const Tensor found = at::one_hot(rows, count);
      EXPECT_EQ(placements(found), (Placements{Shard(0)}));
      EXPECT_EQ(difference({found}, {at::one_hot(classes({5, 2}), count)}), "");
    }
    EXPECT_THROW((void)at::one_hot(rows, 3), c10::Error);
    EXPECT_THROW((void)at::one_hot(rows - 1, 4), c10::Error);
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(SparseEmbedding, HasDenseGradientsOfTheSameNumbers) {
  const auto gradient = [](const Tensor& table, const Tensor& ids, bool in_bags) {
    const Tensor weight = table.detach().requires_grad_();
    const Tensor offsets = at::tensor({0, 2, 5}, at::kLong);
    const Tensor found = in_bags
                             ? std::get<0>(at::embedding_bag(weight, ids.flatten(), offsets, false, 0, /*sparse=*/true))
                             : at::embedding(weight, ids, /*padding_idx=*/2, false, /*sparse=*/true);
    found.pow(2).sum().backward();
    return weight.grad();
  };
  for (const bool in_bags : {false, true}) {
    const Tensor expected = gradient(waves({7, 4}), classes({4, 2}), in_bags).to_dense();
    test::on_mesh("dp=2", [&](const Mesh& mesh) {
      for (const Placement of_table : {Replicate(), Shard(0), Shard(1)}) {
        for (const Placement of_ids : {Replicate(), Shard(0)}) {
          const Tensor found = gradient(distribute(waves({7, 4}), mesh, {of_table}),
                                        distribute(classes({4, 2}), mesh, {of_ids}), in_bags);
          EXPECT_EQ(found.layout(), at::kStrided);
          EXPECT_EQ(difference({found}, {expected}), "") << to_string(of_table) << to_string(of_ids);
        }
      }
    });
  }
}

}  // namespace
}  // namespace tessera

// SPDX-License-Identifier: Apache-2.0
// Every rule against plain tensors: forward and gradients equal for every placement of every input, on even and uneven
// meshes, without a replicated fallback.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

struct Case {
  std::string name;
  std::function<Tensors()> inputs;
  std::function<Tensors(const Tensors&)> run;
};

Tensor values(at::IntArrayRef sizes) {
  const Tensor ramp = at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes);
  return (ramp * 0.7 + 0.3).sin();
}
Tensor indices(at::IntArrayRef sizes, std::int64_t limit) {
  return (at::arange(c10::multiply_integers(sizes), at::kLong) * 5 + 3).remainder(limit).view(sizes);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases{
      {"add_broadcast", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{x[0] + x[1]}; }},
      {"sub_scalar", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{x[0] - 2.0}; }},
      {"mul", [] { return Tensors{values({4, 6}), values({4, 1})}; }, [](const Tensors& x) { return Tensors{x[0] * x[1]}; }},
      {"div", [] { return Tensors{values({4, 6}), values({4, 6}) + 2}; }, [](const Tensors& x) { return Tensors{x[0] / x[1]}; }},
      {"relu_gelu", [] { return Tensors{values({5, 3})}; }, [](const Tensors& x) { return Tensors{torch::relu(x[0]), torch::gelu(x[0], "tanh"), torch::sigmoid(x[0]), torch::tanh(x[0])}; }},
      {"where", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::where(x[0] > 0, x[0], x[1])}; }},
      {"in_place", [] { return Tensors{values({4, 6}), values({4, 6})}; }, [](const Tensors& x) { Tensor y = x[0].clone(); y.mul_(2).add_(x[1], 0.5).addcmul_(x[1], x[1], 0.1); return Tensors{y}; }},
      {"zeros_like", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::zeros_like(x[0]) + x[0], torch::ones_like(x[0]) * x[0]}; }},
      {"mm", [] { return Tensors{values({4, 6}), values({6, 5})}; }, [](const Tensors& x) { return Tensors{torch::mm(x[0], x[1])}; }},
      {"addmm", [] { return Tensors{values({5}), values({4, 6}), values({6, 5})}; }, [](const Tensors& x) { return Tensors{torch::addmm(x[0], x[1], x[2])}; }},
      {"linear", [] { return Tensors{values({2, 4, 6}), values({5, 6}), values({5})}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::linear(x[0], x[1], x[2])}; }},
      {"bmm", [] { return Tensors{values({2, 4, 6}), values({2, 6, 5})}; }, [](const Tensors& x) { return Tensors{torch::bmm(x[0], x[1])}; }},
      {"baddbmm", [] { return Tensors{values({2, 4, 5}), values({2, 4, 6}), values({2, 6, 5})}; }, [](const Tensors& x) { return Tensors{torch::baddbmm(x[0], x[1], x[2])}; }},
      {"matmul_mv", [] { return Tensors{values({4, 6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::mv(x[0], x[1]), torch::dot(x[1], x[1])}; }},
      {"transpose_permute", [] { return Tensors{values({2, 4, 6})}; }, [](const Tensors& x) { return Tensors{x[0].transpose(1, 2), x[0].permute({2, 0, 1}), x[0].select(1, 2), x[0].unsqueeze(1).squeeze(1)}; }},
      {"view_merge_split", [] { return Tensors{values({4, 6, 2})}; }, [](const Tensors& x) { return Tensors{x[0].reshape({24, 2}), x[0].view({4, 12}), x[0].view({2, 2, 6, 2}), x[0].view({4, 3, 2, 2})}; }},
      {"expand", [] { return Tensors{values({4, 1})}; }, [](const Tensors& x) { return Tensors{x[0].expand({4, 3}), x[0].expand({2, 4, 3})}; }},
      {"squeeze", [] { return Tensors{values({4, 1, 2})}; }, [](const Tensors& x) { return Tensors{x[0].squeeze()}; }},
      {"slice_split", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { const auto parts = x[0].split(2, 1); const auto rows = x[0].unbind(0); return Tensors{x[0].slice(1, 1, 5), x[0].narrow(0, 1, 2), parts[0] * parts[2], rows[1] + rows[3]}; }},
      {"cat_stack", [] { return Tensors{values({4, 6}), values({4, 6}) * 2}; }, [](const Tensors& x) { return Tensors{torch::cat({x[0], x[1]}, 1), torch::cat({x[0], x[1]}, 0), torch::stack({x[0], x[1]}, 1)}; }},
      {"reductions", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{x[0].sum(), x[0].sum({1}), x[0].mean(), x[0].mean({0}, true), x[0].amax({1}), x[0].logsumexp({1}), x[0].norm(), torch::linalg_vector_norm(x[0], 3.0, {1}, false, c10::nullopt)}; }},
      {"extremes", [] { return Tensors{values({5, 3})}; }, [](const Tensors& x) { return Tensors{x[0].max(), x[0].min(), x[0].amin({0})}; }},
      {"softmax", [] { return Tensors{values({4, 6})}; }, [](const Tensors& x) { return Tensors{torch::softmax(x[0], 1), torch::log_softmax(x[0], 0)}; }},
      {"layer_norm", [] { return Tensors{values({4, 3, 6}), values({6}), values({6})}; }, [](const Tensors& x) { return Tensors{torch::layer_norm(x[0], {6}, x[1], x[2])}; }},
      {"group_norm", [] { return Tensors{values({4, 8, 3, 3}), values({8}), values({8})}; }, [](const Tensors& x) { return Tensors{torch::group_norm(x[0], 4, x[1], x[2])}; }},
      {"conv2d", [] { return Tensors{values({4, 6, 5, 5}), values({8, 6, 3, 3}), values({8})}; }, [](const Tensors& x) { return Tensors{torch::conv2d(x[0], x[1], x[2], 2, 1)}; }},
      {"conv2d_groups", [] { return Tensors{values({4, 6, 5, 5}), values({8, 3, 3, 3})}; }, [](const Tensors& x) { return Tensors{torch::conv2d(x[0], x[1], {}, 1, 1, 1, 2)}; }},
      {"pooling", [] { return Tensors{values({4, 3, 6, 6})}; }, [](const Tensors& x) { return Tensors{torch::max_pool2d(x[0], 2), torch::avg_pool2d(x[0], 2)}; }},
      {"embedding", [] { return Tensors{values({7, 4}), indices({3, 5}, 7)}; }, [](const Tensors& x) { return Tensors{torch::embedding(x[0], x[1])}; }},
      {"attention", [] { return Tensors{values({2, 4, 5, 3}), values({2, 4, 5, 3}) * 2, values({2, 4, 5, 3}) + 1}; }, [](const Tensors& x) { return Tensors{torch::scaled_dot_product_attention(x[0], x[1], x[2], {}, 0.0, true)}; }},
      {"reshape_transposed", [] { return Tensors{values({3, 4, 5, 2})}; }, [](const Tensors& x) { return Tensors{x[0].transpose(2, 3).reshape({12, 2, 5}), torch::matmul(x[0], x[0].transpose(2, 3))}; }},
      {"cross_entropy", [] { return Tensors{values({10, 7}), indices({10}, 7)}; }, [](const Tensors& x) { return Tensors{torch::nn::functional::cross_entropy(x[0], x[1])}; }},
      {"cross_entropy_ignore", [] { return Tensors{values({10, 7}), indices({10}, 7)}; }, [](const Tensors& x) { namespace F = torch::nn::functional; return Tensors{F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().ignore_index(3)), F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().reduction(torch::kSum)), F::cross_entropy(x[0], x[1], F::CrossEntropyFuncOptions().reduction(torch::kNone))}; }},
      {"mse", [] { return Tensors{values({5, 3}), values({5, 3}) * 2}; }, [](const Tensors& x) { return Tensors{torch::mse_loss(x[0], x[1]), torch::mse_loss(x[0], x[1], at::Reduction::Sum), torch::smooth_l1_loss(x[0], x[1]), torch::huber_loss(x[0], x[1])}; }},
  };
  return kCases;
}

/// Placements that one input may have on one axis.
std::vector<Placement> choices(const Tensor& input) {
  std::vector<Placement> result{Replicate()};
  for (std::int64_t dim = 0; dim < input.dim(); ++dim) result.push_back(Shard(dim));
  if (input.is_floating_point()) result.push_back(Partial());
  return result;
}

/// Every combination of placements of all inputs on one axis.
std::vector<std::vector<Placement>> combinations(const Tensors& inputs) {
  std::vector<std::vector<Placement>> result{{}};
  for (const Tensor& input : inputs) {
    std::vector<std::vector<Placement>> more;
    for (const auto& chosen : result) {
      for (const Placement& choice : choices(input)) {
        more.push_back(chosen);
        more.back().push_back(choice);
      }
    }
    result = std::move(more);
  }
  return result;
}

Tensor spread(const Tensor& value, const Placement& placement, const Mesh& mesh) {
  if (!placement.is_partial()) return distribute(value, mesh, {placement});
  const Tensor share = mesh.rank() == 0 ? value - (mesh.size() - 1) : at::ones_like(value);
  return from_local(share, mesh, {placement}, value.sizes());
}

/// Gradients of a weighted sum of the outputs, so that no cotangent is all ones.
void backward(const Tensors& outputs) {
  Tensor total;
  for (const Tensor& output : outputs) {
    const Tensor weighted = (output * 1.5 + output * output * 0.25).sum();
    total = total.defined() ? total + weighted : weighted;
  }
  total.backward();
}

struct Result {
  Tensors outputs;
  Tensors gradients;
};

Result evaluate(const Case& test, Tensors inputs) {
  for (Tensor& input : inputs) {
    if (input.is_floating_point()) input.requires_grad_();
  }
  Result result;
  result.outputs = test.run(inputs);
  backward(result.outputs);
  for (const Tensor& input : inputs) result.gradients.push_back(input.grad());
  return result;
}

void expect_equal(const Tensors& expected, const Tensors& found, const std::string& what) {
  ASSERT_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(expected[i].defined(), found[i].defined()) << what << i;
    if (!expected[i].defined()) continue;
    const Tensor value = full(found[i]);
    ASSERT_EQ(value.sizes(), expected[i].sizes()) << what << i;
    // 1e-12: sums of at most a few hundred terms of size about 1, in another order.
    ASSERT_TRUE(at::allclose(value, expected[i], 1e-12, 1e-12)) << what << i << " differs by "
                                                                << (value - expected[i]).abs().max().item<double>();
  }
}

class EveryOperator : public testing::TestWithParam<std::tuple<std::size_t, int>> {};

TEST_P(EveryOperator, EqualsPlainTensorsForEveryPlacement) {
  const auto& [index, ranks] = GetParam();
  const Case& test = cases()[index];
  const Result expected = evaluate(test, test.inputs());
  test::on_mesh("dp=" + std::to_string(ranks), [&](const Mesh& mesh) {
    const Tensors plain = test.inputs();
    for (const auto& placements : combinations(plain)) {
      Tensors inputs;
      std::string what = test.name;
      for (std::size_t i = 0; i < plain.size(); ++i) {
        inputs.push_back(spread(plain[i], placements[i], mesh));
        what += " " + to_string(placements[i]);
      }
      const Result found = evaluate(test, inputs);
      expect_equal(expected.outputs, found.outputs, what + ": output ");
      expect_equal(expected.gradients, found.gradients, what + ": gradient ");
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_TRUE(replicated_fallbacks(mesh).empty()) << replicated_fallbacks(mesh).begin()->first;
  });
}

std::string case_name(const testing::TestParamInfo<std::tuple<std::size_t, int>>& info) {
  return cases()[std::get<0>(info.param)].name + "On" + std::to_string(std::get<1>(info.param)) + "Ranks";
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryOperator,
                         testing::Combine(testing::Range<std::size_t>(0, cases().size()), testing::Values(2, 3)),
                         case_name);

TEST(OutVariant, FillsAMeshTensorWhereItLies) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor a = distribute(values({4, 6}), mesh, {Shard(0)});
    const Tensor b = distribute(values({4, 6}), mesh, {Replicate()});
    Tensor out = distribute(at::zeros({4, 6}, at::kDouble), mesh, {Shard(1)});
    at::add_out(out, a, b);
    EXPECT_EQ(placements(out), (Placements{Shard(1)}));
    EXPECT_TRUE(at::equal(full(out), values({4, 6}) * 2));
  });
}

TEST(OutVariant, TakesTheResultsSizesAndPlacementsIfItHadOthers) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor a = distribute(values({4, 6}), mesh, {Shard(0)});
    Tensor out = distribute(at::zeros({0}, at::kDouble), mesh, {Replicate()});
    at::mul_out(out, a, a);
    EXPECT_TRUE(at::equal(full(out), values({4, 6}) * values({4, 6})));
    EXPECT_EQ(placements(out), (Placements{Shard(0)}));
  });
}

TEST(InPlace, KeepsThePlacementOfSelfWhateverTheOther) {
  test::on_mesh("dp=3", [](const Mesh& mesh) {
    for (const Placement& self : {Replicate(), Shard(0), Shard(1)}) {
      for (const Placement& other : choices(values({4, 6}))) {
        Tensor target = distribute(values({4, 6}), mesh, {self});
        target.mul_(spread(values({4, 6}) + 3, other, mesh)).add_(1.0);
        EXPECT_EQ(placements(target), (Placements{self}));
        EXPECT_TRUE(at::allclose(full(target), values({4, 6}) * (values({4, 6}) + 3) + 1, 1e-14, 1e-14));
      }
    }
  });
}

TEST(InPlace, ChangesMetadataOfTheTensorItself) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Tensor matrix = distribute(values({4, 6}), mesh, {Shard(0)});
    matrix.t_();
    EXPECT_EQ(placements(matrix), (Placements{Shard(1)}));
    EXPECT_TRUE(at::equal(full(matrix), values({4, 6}).t()));
  });
}

TEST(PlainTensor, CountsAsReplicatedBesideMeshTensors) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({4, 6}), mesh, {Shard(0)});
    EXPECT_TRUE(at::equal(full(spread_values * values({6}) + 1.0), values({4, 6}) * values({6}) + 1.0));
    EXPECT_TRUE(replicated_fallbacks(mesh).empty());
  });
}

TEST(DecisionCache, IgnoresScalarsThatDecideNothing) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    Tensor total = distribute(values({4, 6}), mesh, {Shard(0)});
    Tensor expected = values({4, 6});
    for (int i = 0; i < 5; ++i) {
      total = total * (1.0 + 0.1 * i) + i;
      expected = expected * (1.0 + 0.1 * i) + i;
    }
    EXPECT_TRUE(at::allclose(full(total), expected, 1e-14, 1e-14));
  });
}

TEST(Fallback, IsCountedByOperatorName) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({6}), mesh, {Shard(0)});
    const Tensor sorted = std::get<0>(torch::sort(spread_values));
    EXPECT_TRUE(at::equal(full(sorted), std::get<0>(torch::sort(values({6})))));
    EXPECT_EQ(replicated_fallbacks(mesh).at("aten::sort"), 1);
  });
}

TEST(Fallback, IsAnErrorInStrictMode) {
  test::on_mesh(
      "dp=2",
      [](const Mesh& mesh) {
        const Tensor spread_values = distribute(values({6}), mesh, {Shard(0)});
        EXPECT_THROW((void)torch::sort(spread_values), ShapeError);
      },
      {.strict = true});
}

TEST(ViewAlongAShardedDim, RefusesToBeWrittenInto) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor spread_values = distribute(values({6}), mesh, {Shard(0)});
    Tensor view = spread_values.slice(0, 0, 2);
    EXPECT_THROW(view.fill_(1.0), ShapeError);
    EXPECT_THROW(view.unsqueeze(0).fill_(1.0), ShapeError) << "a view of such a view does not reach the base either";
  });
}

TEST(ViewAlongAWholeDim, WritesIntoItsBase) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor base = distribute(values({4, 6}), mesh, {Shard(0)});
    base.select(1, 2).fill_(9.0);
    Tensor expected = values({4, 6});
    expected.select(1, 2).fill_(9.0);
    EXPECT_TRUE(at::equal(full(base), expected));
  });
}

TEST(Meshes, RefuseToBeMixedInOneOperator) {
  test::on_ranks(2, [](const auto& world) {
    const Mesh a(world, parse_axes("dp=2"));
    const Mesh b(world, parse_axes("tp=2"));
    EXPECT_THROW((void)(distribute(values({4}), a, {Shard(0)}) + distribute(values({4}), b, {Shard(0)})), ShapeError);
  });
}

}  // namespace
}  // namespace tessera

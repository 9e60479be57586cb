// SPDX-License-Identifier: Apache-2.0
// Shards in groups and units: what a fused projection is made of comes apart, and goes together, without a message.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "support/ranks.h"
#include "tensor/layout.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;

struct Case {
  std::string name;
  Placement input;
  Placement output;
  std::function<Tensor(const Tensor&)> run;
};

constexpr std::int64_t kSamples = 2;
constexpr std::int64_t kTokens = 3;
constexpr std::int64_t kHeads = 4;
constexpr std::int64_t kWidth = 2;  ///< of a head
constexpr std::int64_t kDim = kHeads * kWidth;
constexpr Cut kQkv{.groups = 3, .unit = kWidth};
constexpr Cut kOne{.unit = kWidth};
constexpr Cut kTwo{.groups = 2, .unit = kWidth};

/// Of a tensor [samples, tokens, 3 x heads x width].
const std::vector<Case>& cases() {
  static const std::vector<Case> kCases{
      {"chunk", Shard(2, kQkv), Shard(2, kOne), [](const Tensor& x) { return x.chunk(3, -1)[1]; }},
      {"split", Shard(2, kQkv), Shard(2, kOne), [](const Tensor& x) { return x.split(kDim, 2)[2] * x.split(kDim, 2)[0]; }},
      {"split_with_sizes", Shard(2, kQkv), Shard(2, kOne), [](const Tensor& x) { return x.split_with_sizes({kDim, kDim, kDim}, 2)[0]; }},
      {"narrow_one", Shard(2, kQkv), Shard(2, kOne), [](const Tensor& x) { return x.narrow(2, kDim, kDim); }},
      {"narrow_two", Shard(2, kQkv), Shard(2, kTwo), [](const Tensor& x) { return x.narrow(2, kDim, 2 * kDim); }},
      {"slice_from_the_end", Shard(2, kQkv), Shard(2, kTwo), [](const Tensor& x) { return x.slice(2, -2 * kDim); }},
      {"view_three", Shard(2, kQkv), Shard(3), [](const Tensor& x) { return x.view({kSamples, kTokens, 3, kHeads, kWidth}); }},
      {"view_heads", Shard(2, kQkv), Shard(2, {.groups = 3}), [](const Tensor& x) { return x.view({kSamples, kTokens, 3 * kHeads, kWidth}); }},
      {"view_groups", Shard(2, kQkv), Shard(3, kOne), [](const Tensor& x) { return x.view({kSamples, kTokens, 3, kDim}); }},
      {"view_and_back", Shard(2, kQkv), Shard(2, kQkv), [](const Tensor& x) { return x.view({kSamples, kTokens, 3, kHeads, kWidth}).view({kSamples, kTokens, 3 * kDim}); }},
      {"flatten_rows", Shard(2, kQkv), Shard(1, kQkv), [](const Tensor& x) { return x.view({kSamples * kTokens, 3 * kDim}); }},
      {"permute_unbind", Shard(2, kQkv), Shard(1), [](const Tensor& x) { const auto parts = x.view({kSamples, kTokens, 3, kHeads, kWidth}).permute({2, 0, 3, 1, 4}).unbind(0); return parts[0] * parts[1] + parts[2]; }},
      {"cat_of_chunks", Shard(2, kQkv), Shard(2, kQkv), [](const Tensor& x) { const auto parts = x.chunk(3, -1); return torch::cat({parts[2], parts[0], parts[1]}, 2); }},
      {"cat_of_two", Shard(2, kQkv), Shard(2, kTwo), [](const Tensor& x) { const auto parts = x.chunk(3, -1); return torch::cat({parts[2], parts[0]}, 2); }},
      {"stack_of_chunks", Shard(2, kQkv), Shard(3, kOne), [](const Tensor& x) { const auto parts = x.chunk(3, -1); return torch::stack({parts[2], parts[0]}, 0); }},
      {"heads_of_a_chunk", Shard(2, kQkv), Shard(1), [](const Tensor& x) { return x.chunk(3, -1)[1].view({kSamples, kTokens, kHeads, kWidth}).transpose(1, 2); }},
      {"heads_into_samples", Shard(2, kQkv), Shard(0, {.groups = kSamples}), [](const Tensor& x) { return x.chunk(3, -1)[1].view({kSamples, kTokens, kHeads, kWidth}).transpose(1, 2).reshape({kSamples * kHeads, kTokens, kWidth}); }},
      {"heads_out_of_samples", Shard(2, kQkv), Shard(1), [](const Tensor& x) { return x.chunk(3, -1)[1].view({kSamples, kTokens, kHeads, kWidth}).transpose(1, 2).reshape({kSamples * kHeads, kTokens, kWidth}).relu().view({kSamples, kHeads, kTokens, kWidth}); }},
      {"glu", Shard(2, {.groups = 2, .unit = 3}), Shard(2, {.unit = 3}), [](const Tensor& x) { return torch::glu(x, -1); }},
      {"silu_gate", Shard(2, {.groups = 2, .unit = 3}), Shard(2, {.unit = 3}), [](const Tensor& x) { const auto parts = x.chunk(2, -1); return torch::silu(parts[0]) * parts[1]; }},
      {"pointwise", Shard(2, kQkv), Shard(2, kQkv), [](const Tensor& x) { return torch::gelu(x) * 2 + x.sigmoid(); }},
      {"reductions", Shard(2, kQkv), Shard(1, kQkv), [](const Tensor& x) { return x.mean({1}) + x.var({1}) + x.sum(1); }},
      {"softmax_along_another", Shard(2, kQkv), Shard(2, kQkv), [](const Tensor& x) { return torch::softmax(x, 1) + torch::cumsum(x, 1); }},
      {"rows_of_heads", Shard(2, kQkv), Shard(2, kQkv), [](const Tensor& x) { return x.index_select(1, torch::tensor({2, 0, 0}).to(x.device())); }},
  };
  return kCases;
}

class Cuts : public testing::TestWithParam<std::tuple<std::size_t, int>> {};

TEST_P(Cuts, StayWithoutAMessage) {
  const Case& test = cases()[std::get<0>(GetParam())];
  const Tensor value = (at::arange(kSamples * kTokens * 3 * kDim, at::kDouble) * 0.7 + 0.3).sin().view({kSamples, kTokens, -1});
  Tensor alone = value.clone().set_requires_grad(true);
  const Tensor expected = test.run(alone);
  (expected * expected).sum().backward();
  test::on_mesh("tp=" + std::to_string(std::get<1>(GetParam())), [&](const Mesh& mesh) {
    Tensor x = distribute(value, mesh, {test.input});
    x.requires_grad_();
    const auto before = mesh.traffic();
    const Tensor found = test.run(x);
    (found * found).sum().backward();
    EXPECT_EQ(mesh.traffic().calls, before.calls) << describe(found) << "; gradient " << describe(x.grad());
    EXPECT_EQ(placements(found), tensor::canonical({test.output}, found.sizes(), mesh)) << describe(found);
    EXPECT_EQ(placements(x.grad()), placements(x)) << describe(x.grad());
    EXPECT_EQ(found.strides(), expected.strides());
    EXPECT_TRUE(at::allclose(full(found), expected, 1e-12, 1e-12));
    EXPECT_TRUE(at::allclose(full(x.grad()), alone.grad(), 1e-12, 1e-12));
  });
}

INSTANTIATE_TEST_SUITE_P(Rules, Cuts,
                         testing::Combine(testing::Range<std::size_t>(0, cases().size()), testing::Values(2, 3, 5)),
                         [](const auto& chosen) {
                           return cases()[std::get<0>(chosen.param)].name + "On" +
                                  std::to_string(std::get<1>(chosen.param)) + "Ranks";
                         });

/// Columns of a weight in groups, rows of the next one cut as what it reads.
TEST(Products, OfAGroupedWeightGiveGroupsAndTakeThem) {
  for (const char* axes : {"tp=2", "tp=3"}) {
    test::on_mesh(axes, [](const Mesh& mesh) {
      const auto random = [](at::IntArrayRef sizes) {
        return (at::arange(c10::multiply_integers(sizes), at::kDouble) * 1.3).sin().view(sizes);
      };
      const Tensor x = random({kSamples, kTokens, 5});
      const Tensor up = random({2 * kDim, 5});
      const Tensor bias = random({2 * kDim});
      const Tensor down = random({5, kDim});
      const auto run = [](const Tensor& input, const Tensor& w, const Tensor& b, const Tensor& out) {
        const auto parts = torch::nn::functional::linear(input, w, b).chunk(2, -1);
        return torch::nn::functional::linear(torch::silu(parts[0]) * parts[1], out);
      };
      std::vector<Tensor> alone;
      for (const Tensor& tensor : {x, up, bias, down}) alone.push_back(tensor.clone().set_requires_grad(true));
      const Tensor expected = run(alone[0], alone[1], alone[2], alone[3]);
      expected.square().sum().backward();
      const Placement columns = Shard(0, {.groups = 2, .unit = 3});
      std::vector<Tensor> spread{distribute(x, mesh, {Replicate()}), distribute(up, mesh, {columns}),
                                 distribute(bias, mesh, {columns}), distribute(down, mesh, {Shard(1, {.unit = 3})})};
      for (Tensor& tensor : spread) tensor.requires_grad_();
      const auto before = mesh.traffic();
      const Tensor found = run(spread[0], spread[1], spread[2], spread[3]);
      EXPECT_EQ(mesh.traffic().calls, before.calls);
      EXPECT_EQ(placements(found)[0], Partial());
      found.square().sum().backward();
      // The output in forward: the gradient of the input stays a sum until somebody reads it.
      EXPECT_EQ(mesh.traffic().calls - before.calls, 1);
      std::vector<Placements> lies_before;
      for (const Tensor& tensor : spread) lies_before.push_back(placements(tensor.grad()));
      EXPECT_TRUE(at::allclose(full(found), expected, 1e-12, 1e-12));
      for (std::size_t i = 0; i < spread.size(); ++i) {
        EXPECT_TRUE(at::allclose(full(spread[i].grad()), alone[i].grad(), 1e-12, 1e-12)) << i;
        const Placements lies = i == 0 ? Placements{Partial()} : placements(spread[i]);
        EXPECT_EQ(lies_before[i], lies) << i;
      }
    });
  }
}

/// Samples and heads in one dim, as torch::nn::MultiheadAttention has them, each cut by an axis.
TEST(Cuts, OfSamplesAndHeadsMeetInOneDim) {
  for (const char* axes : {"dp=2,tp=2", "dp=2,tp=3", "dp_replicate=2,dp_shard=2,tp=2"}) {
    test::on_mesh(axes, [](const Mesh& mesh) {
      const Tensor value = at::arange(kTokens * 4 * kDim, at::kDouble).view({kTokens, 4, kDim});
      const auto run = [](const Tensor& y) {
        const Tensor heads = (y * 2).view({kTokens, 4 * kHeads, kWidth}).transpose(0, 1);
        const Tensor scores = torch::bmm(heads, heads.transpose(1, 2));
        const Tensor split = scores.view({4, kHeads, kTokens, kTokens});
        return torch::bmm(split.view({4 * kHeads, kTokens, kTokens}), heads).transpose(0, 1).contiguous().view({kTokens, 4, kDim});
      };
      Placements lies = Placements::replicated(mesh.num_axes());
      for (int axis = 0; axis + 1 < mesh.num_axes(); ++axis) lies[axis] = Shard(1);
      lies[mesh.num_axes() - 1] = Shard(2, kOne);
      Tensor alone = value.clone().set_requires_grad(true);
      run(alone).square().sum().backward();
      Tensor x = distribute(value, mesh, lies).set_requires_grad(true);
      const auto before = mesh.traffic();
      const Tensor found = run(x);
      found.square().sum().backward();
      EXPECT_EQ(mesh.traffic().calls, before.calls);
      EXPECT_EQ(placements(found), placements(x));
      EXPECT_TRUE(at::allclose(full(found), run(value), 1e-12, 1e-12));
      EXPECT_TRUE(at::allclose(full(x.grad()), alone.grad(), 1e-12, 1e-12));
    });
  }
}

}  // namespace
}  // namespace tessera

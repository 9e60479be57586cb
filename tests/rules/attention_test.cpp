// SPDX-License-Identifier: Apache-2.0
// Attention whose heads are cut: any number of query heads, of key heads and of ranks, against one device.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"

namespace tessera {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

constexpr std::int64_t kQueries = 3;
constexpr std::int64_t kKeys = 4;
constexpr std::int64_t kWidth = 2;
constexpr std::int64_t kMaxHeads = 12;

Tensor values(at::IntArrayRef sizes, double shift) {
  const Tensor ramp = at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes);
  return (ramp * 0.7 + shift).sin();
}

/// What there is beside query, key and value.
struct Kind {
  std::string name;
  bool causal = false;
  std::optional<double> scale = {};
  std::function<Tensor(std::int64_t batch, std::int64_t heads)> mask = {};  ///< null: none
  bool learned_mask = false;
};

Tensor some_are_seen(at::IntArrayRef sizes) {
  const Tensor mask = values(sizes, 0.2) > -0.5;
  mask.select(-1, 1).fill_(true);  // a row that sees nothing has no meaning
  return mask;
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> kKinds{
      {"plain"},
      {"causal", true, 0.3},
      {"broadcast_mask",
       false,
       {},
       [](std::int64_t, std::int64_t) {
         return values({kQueries, kKeys}, 0.4);
       }},
      {"mask_per_head", false, 0.9,
       [](std::int64_t, std::int64_t heads) {
         return values({1, heads, kQueries, kKeys}, 0.4);
       }},
      {"mask_per_row",
       false,
       {},
       [](std::int64_t batch, std::int64_t) {
         return some_are_seen({batch, 1, kQueries, kKeys});
       }},
      {"mask_of_all",
       false,
       {},
       [](std::int64_t batch, std::int64_t heads) {
         return some_are_seen({batch, heads, kQueries, kKeys});
       }},
      {"learned_mask",
       false,
       {},
       [](std::int64_t, std::int64_t heads) {
         return values({1, heads, kQueries, kKeys}, 0.4);
       },
       true},
  };
  return kKinds;
}

Tensors inputs_of(std::int64_t batch, std::int64_t heads, std::int64_t key_heads) {
  return {values({batch, heads, kQueries, kWidth}, 0.1), values({batch, key_heads, kKeys, kWidth}, 0.2),
          values({batch, key_heads, kKeys, kWidth}, 0.3)};
}

/// The output, and the gradients of everything that has one.
Tensors attend(const Tensors& inputs, const Kind& kind, const Tensor& mask) {
  for (const Tensor& input : inputs) Tensor(input).requires_grad_();
  if (kind.learned_mask) Tensor(mask).requires_grad_();
  const auto optional_mask = mask.defined() ? std::optional<Tensor>(mask) : std::nullopt;
  const Tensor output = torch::scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], optional_mask, 0.0,
                                                            kind.causal, kind.scale, /*enable_gqa=*/true);
  // What follows attention in every model: heads become features again.
  const Tensor merged = output.transpose(1, 2).reshape({output.size(0), kQueries, -1});
  (merged * 1.5 + merged * merged * 0.25).sum().backward();
  Tensors results{output.detach()};
  for (const Tensor& input : inputs) results.push_back(input.grad());
  if (kind.learned_mask) results.push_back(mask.grad());
  return results;
}

void expect_equal(const Tensors& expected, const Tensors& found, const std::string& what) {
  ASSERT_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Tensor value = full(found[i]).to(expected[i].device());
    ASSERT_EQ(value.sizes(), expected[i].sizes()) << what << ", result " << i;
    ASSERT_TRUE(at::allclose(value, expected[i], 1e-12, 1e-12))
        << what << ", result " << i << " differs by " << (value - expected[i]).abs().max().item<double>();
  }
}

/// How query, key and value lie on tp.
using Cut = std::array<Placement, 3>;
const std::map<std::string, Cut>& cuts() {
  static const std::map<std::string, Cut> kCuts{
      {"all cut", {Shard(1), Shard(1), Shard(1)}},
      {"keys whole", {Shard(1), Replicate(), Replicate()}},
      {"keys cut", {Replicate(), Shard(1), Replicate()}},
      {"keys partial", {Shard(1), Partial(), Shard(2)}},
  };
  return kCuts;
}

Tensor spread(const Tensor& value, const Mesh& mesh, bool cuts_batch, Placement tp) {
  Placements placements = Placements::replicated(mesh.num_axes());
  const int axis = mesh.axis_index("tp");
  if (cuts_batch) placements[0] = Shard(0);
  if (!tp.is_partial()) {
    placements[axis] = tp;
    return distribute(value, mesh, placements);
  }
  const Tensor share = distribute(value / mesh.axis_size(axis), mesh, placements);
  placements[axis] = tp;
  return from_local(local(share), mesh, placements, value.sizes());
}

constexpr std::int64_t kRows = 3;

/// A number of query heads, a number of key heads that divides it, and what one device makes of them.
struct OneDevice {
  std::int64_t heads;
  std::int64_t key_heads;
  Tensors results;
};

std::vector<OneDevice> all_heads(const Kind& kind) {
  std::vector<OneDevice> result;
  for (std::int64_t heads = 1; heads <= kMaxHeads; ++heads) {
    for (std::int64_t key_heads = 1; key_heads <= heads; ++key_heads) {
      if (heads % key_heads != 0) continue;
      const Tensor mask = kind.mask ? kind.mask(kRows, heads) : Tensor();
      result.push_back({heads, key_heads, attend(inputs_of(kRows, heads, key_heads), kind, mask)});
    }
  }
  return result;
}

void compare(const Mesh& mesh, const Kind& kind, const std::vector<OneDevice>& expected) {
  const bool cuts_batch = mesh.num_axes() > 1;
  for (const OneDevice& alone : expected) {
    const Tensors plain = inputs_of(kRows, alone.heads, alone.key_heads);
    const Tensor mask = kind.mask ? kind.mask(kRows, alone.heads) : Tensor();
    for (const auto& [name, cut] : cuts()) {
      Tensors inputs;
      for (std::size_t i = 0; i < 3; ++i) inputs.push_back(spread(plain[i], mesh, cuts_batch, cut[i]));
      const Tensor spread_mask =
          mask.defined() ? distribute(mask, mesh, Placements::replicated(mesh.num_axes())) : mask;
      expect_equal(alone.results, attend(inputs, kind, spread_mask),
                   kind.name + ", " + std::to_string(alone.heads) + " heads, " + std::to_string(alone.key_heads) +
                       " key heads, " + name + " on " + mesh.to_string());
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  EXPECT_TRUE(replicated_fallbacks(mesh).empty()) << replicated_fallbacks(mesh).begin()->first;
}

class GroupedHeads : public testing::TestWithParam<std::tuple<std::string, std::size_t>> {};

TEST_P(GroupedHeads, GiveWhatOneDeviceGivesForEveryNumberOfHeads) {
  const auto& [axes, kind] = GetParam();
  const std::vector<OneDevice> expected = all_heads(kinds()[kind]);
  test::on_mesh(axes, [&, kind = kind](const Mesh& mesh) { compare(mesh, kinds()[kind], expected); });
}

std::string grid_name(const testing::TestParamInfo<std::tuple<std::string, std::size_t>>& info) {
  std::string name = std::get<0>(info.param) + "_" + kinds()[std::get<1>(info.param)].name;
  std::erase(name, '=');
  std::replace(name.begin(), name.end(), ',', '_');
  return name;
}

// Masks do not know how many ranks there are: all kinds on few ranks, one on many.
INSTANTIATE_TEST_SUITE_P(OnFewRanks, GroupedHeads,
                         testing::Combine(testing::Values("tp=2", "tp=3", "dp=2,tp=2"),
                                          testing::Range<std::size_t>(0, kinds().size())),
                         grid_name);
INSTANTIATE_TEST_SUITE_P(OnManyRanks, GroupedHeads,
                         testing::Combine(testing::Values("tp=4", "tp=5", "tp=6", "tp=7", "tp=8", "dp=2,tp=3",
                                                          "dp=4,tp=2"),
                                          testing::Range<std::size_t>(1, 2)),
                         grid_name);

/// Communication of forward and backward, where they lie as a column-parallel projection leaves them.
std::uint64_t calls_of(const Mesh& mesh, std::int64_t heads, std::int64_t key_heads, Placement key, Tensors& results) {
  const Tensors plain = inputs_of(2, heads, key_heads);
  const Tensors inputs{distribute(plain[0], mesh, {Shard(1)}), distribute(plain[1], mesh, {key}),
                       distribute(plain[2], mesh, {key})};
  for (const Tensor& input : inputs) Tensor(input).requires_grad_();
  const auto before = mesh.traffic().calls;
  const Tensor output = torch::scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], {}, 0.0, true, {}, true);
  results = torch::autograd::grad({output}, {inputs[0], inputs[1], inputs[2]}, {torch::ones_like(output)});
  results.push_back(output);
  return mesh.traffic().calls - before;
}

TEST(GroupedHeadsOnShards, MoveNothingWhereKeyHeadsAreCutAsQueryHeadsAre) {
  // 12 over 8 leaves two ranks without heads.
  for (const auto& [axes, heads, key_heads] : std::vector<std::tuple<std::string, std::int64_t, std::int64_t>>{
           {"tp=2", 8, 2}, {"tp=4", 4, 4}, {"tp=3", 5, 5}, {"tp=8", 12, 6}}) {
    test::on_mesh(axes, [&, heads = heads, key_heads = key_heads](const Mesh& mesh) {
      Tensors results;
      EXPECT_EQ(calls_of(mesh, heads, key_heads, Shard(1), results), 0U);
      for (const Tensor& result : results) EXPECT_EQ(placements(result), (Placements{Shard(1)}));
    });
  }
}

TEST(GroupedHeadsOnShards, PickFromWholeKeysAndLeaveTheirGradientsPartial) {
  for (const auto& [axes, heads, key_heads] : std::vector<std::tuple<std::string, std::int64_t, std::int64_t>>{
           {"tp=2", 4, 1}, {"tp=4", 8, 2}, {"tp=3", 8, 4}, {"tp=8", 4, 2}}) {
    test::on_mesh(axes, [&, heads = heads, key_heads = key_heads](const Mesh& mesh) {
      Tensors results;
      EXPECT_EQ(calls_of(mesh, heads, key_heads, Replicate(), results), 0U);
      for (const std::size_t cut : {std::size_t{0}, std::size_t{3}})
        EXPECT_EQ(placements(results[cut]), (Placements{Shard(1)}));
      for (const std::size_t whole : {std::size_t{1}, std::size_t{2}})
        EXPECT_EQ(placements(results[whole]), (Placements{Partial()}));
    });
  }
}

TEST(GroupedHeadsOnShards, DropProbabilitiesAsOneRankDoes) {
  const auto run = [](const std::string& axes, std::int64_t heads, std::int64_t key_heads) {
    Tensors results;
    test::on_mesh(axes, [&](const Mesh& mesh) {
      manual_seed(mesh, 7);
      Tensors inputs;
      for (const Tensor& input : inputs_of(2, heads, key_heads))
        inputs.push_back(distribute(input, mesh, {Shard(1)}).requires_grad_());
      const Tensor output =
          torch::scaled_dot_product_attention(inputs[0], inputs[1], inputs[2], {}, 0.4, true, {}, true);
      (output * output).sum().backward();
      Tensors mine{full(output.detach())};
      for (const Tensor& input : inputs) mine.push_back(full(input.grad()));
      if (mesh.rank() == 0) results = mine;
    });
    return results;
  };
  for (const auto& [heads, key_heads] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{4, 2}, {6, 3}, {6, 1}, {3, 3}}) {
    const Tensors expected = run("tp=1", heads, key_heads);
    for (const char* axes : {"tp=2", "tp=4"}) expect_equal(expected, run(axes, heads, key_heads), axes);
  }
}

TEST(AttentionKernel, IsChosenByWhatOneDeviceSees) {
  // Three query heads of a rank do not fit its two key heads, and a rank may have none at all.
  test::on_mesh("tp=4", [](const Mesh& mesh) {
    for (const auto& [heads, key_heads] : std::vector<std::pair<std::int64_t, std::int64_t>>{{10, 5}, {2, 1}, {4, 4}}) {
      const Tensors plain = inputs_of(2, heads, key_heads);
      const auto cut = [&](std::size_t i) { return distribute(plain[i], mesh, {Shard(1)}); };
      EXPECT_EQ(at::_fused_sdp_choice(cut(0), cut(1), cut(2), {}, 0.0, false, {}, true),
                at::_fused_sdp_choice(plain[0], plain[1], plain[2], {}, 0.0, false, {}, true));
    }
  });
}

}  // namespace
}  // namespace tessera

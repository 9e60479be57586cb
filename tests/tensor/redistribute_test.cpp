// SPDX-License-Identifier: Apache-2.0
// Redistribution between any two specs, over uneven shards and several axes.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "tessera/base/error.h"

#include "support/ranks.h"
#include "tensor/layout.h"
#include "tensor/redistribute.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

const std::vector<Placement> kChoices{Replicate(), Shard(0), Shard(1), Partial()};

/// Every spec of two dims over `num_axes` axes.
std::vector<Placements> all_specs(int num_axes, const std::vector<Placement>& choices = kChoices) {
  std::vector<Placements> specs{Placements::replicated(num_axes)};
  for (int axis = 0; axis < num_axes; ++axis) {
    std::vector<Placements> more;
    for (const Placements& spec : specs) {
      for (const Placement& choice : choices) {
        Placements next = spec;
        next[axis] = choice;
        more.push_back(next);
      }
    }
    specs = more;
  }
  return specs;
}

/// Part `index` of `value` along `dim`, by definition: of each group the chunk of units that is this part's.
at::Tensor cut_part(const at::Tensor& value, std::int64_t dim, const Cut& cut, int parts, int index) {
  std::vector<at::Tensor> pieces{value.narrow(dim, 0, 0)};
  for (const at::Tensor& group : value.chunk(cut.groups, dim)) {
    const auto units = group.split(cut.unit, dim);
    const std::size_t each = (units.size() + static_cast<std::size_t>(parts) - 1) / static_cast<std::size_t>(parts);
    for (std::size_t i = each * static_cast<std::size_t>(index); i < units.size(); ++i) {
      if (i < each * static_cast<std::size_t>(index + 1)) pieces.push_back(units[i]);
    }
  }
  return at::cat(pieces, dim);
}

/// The local part of `value` under `spec`; a partial sum is spread as r + 1 shares of unequal weight that add up.
at::Tensor local_part(const at::Tensor& value, const Placements& spec, const Mesh& mesh) {
  at::Tensor part = value;
  for (int axis = spec.size() - 1; axis >= 0; --axis) {
    if (spec[axis].is_shard()) {
      part = cut_part(part, spec[axis].dim, spec[axis].cut, mesh.axis_size(axis), mesh.coordinate(axis));
    } else if (spec[axis].is_partial()) {
      part = mesh.coordinate(axis) == 0 ? part - 2.0 * (mesh.axis_size(axis) - 1) : at::zeros_like(part) + 2.0;
    }
  }
  return part.clone();
}

/// Groups are of the axis that cuts a dim first.
bool has_late_groups(const Placements& spec) {
  for (int axis = 0; axis < spec.size(); ++axis) {
    for (int later = axis + 1; later < spec.size(); ++later) {
      if (spec[axis].is_shard() && spec[axis].cut.groups > 1 && spec[later].is_shard(spec[axis].dim)) return true;
    }
  }
  return false;
}

void expect_every_pair(const std::string& axes, at::IntArrayRef sizes, const std::vector<Placement>& choices = kChoices) {
  test::on_mesh(axes, [&](const Mesh& mesh) {
    const at::Tensor value = at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes);
    for (const Placements& from : all_specs(mesh.num_axes(), choices)) {
      for (const Placements& to : all_specs(mesh.num_axes(), choices)) {
        if (to.any_partial() || has_late_groups(from) || has_late_groups(to)) continue;
        const at::Tensor start = from_local(local_part(value, from, mesh), mesh, from, sizes);
        const at::Tensor end = redistribute(start, to);
        ASSERT_EQ(placements(end), tensor::canonical(to, sizes, mesh)) << describe(start) << " -> " << describe(end);
        ASSERT_TRUE(at::equal(local(end), local_part(value, to, mesh)))
            << describe(start) << " -> " << describe(end) << " on rank " << mesh.rank();
        ASSERT_TRUE(at::equal(full(start), value)) << describe(start);
      }
    }
  });
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnOneAxis) {
  for (const char* axes : {"dp=2", "dp=3", "dp=4"}) expect_every_pair(axes, {6, 5});
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnTwoAxes) {
  expect_every_pair("dp=2,tp=2", {5, 7});
  expect_every_pair("dp=2,tp=3", {4, 9});
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnThreeAxes) {
  expect_every_pair("dp_replicate=2,dp_shard=2,tp=2", {3, 5});
}

TEST(Redistribute, LeavesRanksEmptyWhenThereAreFewerRowsThanRanks) { expect_every_pair("dp=4", {2, 1}); }

TEST(Redistribute, ReachesEveryCutFromEveryCutOnOneAxis) {
  for (const char* axes : {"tp=2", "tp=3", "tp=5"}) {
    expect_every_pair(axes, {12, 4},
                      {Replicate(), Shard(0), Shard(0, {.groups = 3}), Shard(0, {.groups = 3, .unit = 2}),
                       Shard(0, {.groups = 2, .unit = 4}), Shard(0, {.groups = 12}), Shard(0, {.unit = 5}),
                       Shard(0, {.unit = 20}), Shard(1, {.groups = 2}), Shard(1, {.groups = 2, .unit = 2}), Partial()});
  }
}

TEST(Redistribute, ReachesEveryCutFromEveryCutOnTwoAxes) {
  const std::vector<Placement> choices{Replicate(), Shard(0), Shard(0, {.groups = 3, .unit = 2}), Shard(1, {.unit = 3}),
                                       Shard(1, {.groups = 2}), Partial()};
  expect_every_pair("dp=2,tp=2", {18, 4}, choices);
  expect_every_pair("dp=2,tp=3", {6, 8}, choices);
}

TEST(Redistribute, CutsAgainWithOneExchange) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    const at::Tensor value = at::arange(24, at::kDouble).view({12, 2});
    const at::Tensor spread = distribute(value, mesh, {Shard(0)});
    const auto before = mesh.traffic();
    (void)redistribute(spread, {Shard(0, {.groups = 3})});
    EXPECT_EQ(mesh.traffic().calls - before.calls, 1);
    EXPECT_LT(mesh.traffic().bytes - before.bytes, static_cast<std::int64_t>(value.nbytes()) / 2 + 1);
  });
}

TEST(Cut, IsWrittenInOneWay) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    const auto found = [&](std::int64_t size, const Cut& cut) {
      return placements(distribute(at::zeros({size}), mesh, {Shard(0, cut)}))[0].cut;
    };
    EXPECT_EQ(found(12, {.unit = 3}), Cut{});
    EXPECT_EQ(found(12, {.groups = 3, .unit = 2}), (Cut{.groups = 3}));
    EXPECT_EQ(found(18, {.groups = 2, .unit = 2}), (Cut{.groups = 2, .unit = 6}));
    EXPECT_EQ(found(18, {.groups = 2, .unit = 6}), (Cut{.groups = 2, .unit = 6}));
  });
}

TEST(Cut, LeavesRanksWithoutUnitsEmpty) {
  test::on_mesh("tp=3", [](const Mesh& mesh) {
    const at::Tensor heads = distribute(at::arange(8), mesh, {Shard(0, {.groups = 2, .unit = 2})});
    const std::vector<std::int64_t> lengths{4, 4, 0};
    EXPECT_EQ(local(heads).numel(), lengths[static_cast<std::size_t>(mesh.rank())]);
  });
}

TEST(Cut, RefusesGroupsThatDoNotDivideOrThatCutLate) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    EXPECT_THROW((void)distribute(at::arange(10), mesh, {Replicate(), Shard(0, {.groups = 3})}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(12), mesh, {Replicate(), Shard(0, {.unit = 0})}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(12), mesh, {Shard(0, {.groups = 3}), Shard(0)}), ShapeError);
    EXPECT_NO_THROW((void)distribute(at::arange(12), mesh, {Shard(0), Shard(0, {.groups = 3})}));
  });
}

TEST(Redistribute, TakesTensorsWithoutElements) { expect_every_pair("dp=3", {0, 4}); }

/// `value` with dims that lie in memory as `order` says.
at::Tensor laid(const at::Tensor& value, const tensor::DimOrder& order) { return tensor::in_order(value.clone(), order); }

/// `found` shows the strides of `plain`, and its shard lies as these say, to the stride of a dim of one element.
void expect_lies_as(const at::Tensor& plain, const at::Tensor& found) {
  const tensor::DimOrder order = tensor::memory_order(plain.sizes(), plain.strides());
  ASSERT_EQ(found.strides(), plain.strides()) << describe(found);
  ASSERT_EQ(local(found).strides(), at::IntArrayRef(tensor::dense_strides(local(found).sizes(), order)))
      << describe(found) << " of strides " << found.strides();
}

TEST(Redistribute, KeepsTheOrderOfDimsInMemory) {
  // With dims of one element, and dims of which some rank has one or none.
  const std::vector<std::vector<std::int64_t>> shapes{{3, 2, 5}, {4, 1, 3}, {6, 7, 8}};
  const std::vector<tensor::DimOrder> orders{{0, 1, 2}, {0, 2, 1}, {2, 0, 1}, {2, 1, 0}};
  for (const std::string axes : {"dp=2", "dp=3", "dp=2,tp=2"}) {
    for (const auto& sizes : shapes) {
      for (const tensor::DimOrder& order : orders) {
        test::on_mesh(axes, [&](const Mesh& mesh) {
          const at::Tensor value =
              laid(at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes), order);
          for (const Placements& from : all_specs(mesh.num_axes())) {
            if (from.any_partial()) continue;
            const at::Tensor start = distribute(value, mesh, from);
            expect_lies_as(value, start);
            for (const Placements& to : all_specs(mesh.num_axes())) {
              if (to.any_partial()) continue;
              const at::Tensor end = redistribute(start, to);
              expect_lies_as(value, end);
              ASSERT_TRUE(at::equal(full(end), value)) << describe(start) << " -> " << describe(end);
              if (testing::Test::HasFatalFailure()) return;
            }
          }
        });
      }
    }
  }
}

TEST(Redistribute, ReducesInTheOrderOfDimsInMemory) {
  test::on_mesh("dp=3", [](const Mesh& mesh) {
    const at::Tensor value = laid(at::arange(7 * 6 * 8, at::kDouble).view({7, 6, 8}), {0, 2, 1});
    for (const Placement& to : {Replicate(), Shard(0), Shard(1), Shard(2)}) {
      const at::Tensor end = redistribute(from_local(value.clone(), mesh, {Partial()}, value.sizes()), {to});
      expect_lies_as(value, end);
      EXPECT_TRUE(at::equal(full(end), value * 3));
    }
  });
}

TEST(Distribute, TakesTheLayoutOfRankZeroWithItsValue) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor value = at::arange(2 * 3 * 4 * 5, at::kDouble).view({2, 3, 4, 5});
    const at::Tensor mine = mesh.rank() == 0 ? value.contiguous(at::MemoryFormat::ChannelsLast) : value + 1;
    const at::Tensor spread = distribute(mine, mesh, {Shard(1)}, Source::kRankZero);
    expect_lies_as(value.contiguous(at::MemoryFormat::ChannelsLast), spread);
    EXPECT_TRUE(at::equal(full(spread), value));
  });
}

TEST(FromLocal, BringsShardsThatCannotTellTheirLayoutIntoRows) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor shard = at::ones({1, 3, 4, 5}, at::kDouble).contiguous(at::MemoryFormat::ChannelsLast);
    expect_lies_as(at::ones({2, 3, 4, 5}), from_local(shard, mesh, {Shard(0)}, {2, 3, 4, 5}));
  });
}

TEST(Distribute, CutsAsChunkCuts) {
  test::on_mesh("dp=4", [](const Mesh& mesh) {
    const at::Tensor value = at::arange(10, at::kFloat);
    const at::Tensor spread = distribute(value, mesh, {Shard(0)});
    const auto chunks = value.chunk(4);
    EXPECT_TRUE(at::equal(local(spread), chunks[static_cast<std::size_t>(mesh.rank())]));
    EXPECT_EQ(spread.sizes(), value.sizes());
  });
}

TEST(Distribute, SendsTheValueOfRankZeroWhenAsked) {
  test::on_mesh("dp=3", [](const Mesh& mesh) {
    const at::Tensor mine = at::arange(4, at::kDouble) + mesh.rank();
    EXPECT_TRUE(at::equal(full(distribute(mine, mesh, {Shard(0)}, Source::kRankZero)), at::arange(4, at::kDouble)));
  });
}

TEST(Distribute, RefusesAShardOfADimThatTheTensorDoesNotHave) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Shard(1)}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Replicate(), Replicate()}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Partial()}), ShapeError);
  });
}

TEST(FromLocal, RefusesAShardOfTheWrongSize) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    EXPECT_THROW((void)from_local(at::arange(3), mesh, {Shard(0)}, {8}), ShapeError);
  });
}

TEST(Redistribute, PassesTheGradientThrough) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    at::Tensor weight = distribute(at::arange(12, at::kDouble).view({4, 3}), mesh, {Replicate(), Shard(0)});
    weight.requires_grad_();
    const at::Tensor moved = redistribute(weight, {Shard(1), Replicate()});
    (moved * moved).sum().backward();
    EXPECT_TRUE(at::equal(full(weight.grad()), 2 * at::arange(12, at::kDouble).view({4, 3})));
  });
}

TEST(MeshTensor, RefusesToShowItsDataPointer) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor spread = distribute(at::arange(4, at::kFloat), mesh, {Shard(0)});
    EXPECT_ANY_THROW((void)spread.data_ptr());
    EXPECT_ANY_THROW((void)spread.const_data_ptr());
  });
}

TEST(MeshTensor, DescribesItself) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    const at::Tensor spread = distribute(at::arange(8, at::kFloat).view({4, 2}), mesh, {Replicate(), Shard(0)});
    EXPECT_EQ(describe(spread), "[4, 2] Float on dp_replicate=2,tp=2: replicate, shard(0)");
  });
}

TEST(Partial, IsReducedOnceForAllWhoShareTheStorage) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor partial = from_local(at::arange(4, at::kDouble), mesh, {Partial()}, {4});
    const at::Tensor alias = partial.detach();
    const auto before = mesh.traffic().calls;
    (void)full(partial);
    EXPECT_TRUE(at::equal(full(alias), 2 * at::arange(4, at::kDouble)));
    EXPECT_EQ(mesh.traffic().calls - before, 1);
    EXPECT_TRUE(placements(alias).all_replicate());
  });
}

}  // namespace
}  // namespace tessera

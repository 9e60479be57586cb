// SPDX-License-Identifier: Apache-2.0
// Views along sharded dims: what is written and added up is what one device writes and adds up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/distribute.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;

Tensor values(at::IntArrayRef sizes) {
  return (torch::arange(c10::multiply_integers(sizes), torch::kDouble) * 0.37 + 0.2).sin().view(sizes);
}

/// A mesh, and placements of a matrix on it.
struct Lies {
  const char* axes;
  Placements placements;
};

/// Even, uneven and empty shards of 7 x 5; both dims cut; one dim cut twice; on pipeline stages.
const std::vector<Lies> kWays = {{"dp=2", {Shard(0)}},
                                 {"tp=2", {Shard(1)}},
                                 {"tp=3", {Shard(0)}},
                                 {"tp=6", {Shard(1)}},
                                 {"dp=2", {Replicate()}},
                                 {"dp=2,tp=2", {Shard(0), Shard(1)}},
                                 {"dp=2,tp=2", {Shard(0), Shard(0)}},
                                 {"dp=2,tp=2", {Replicate(), Shard(0)}},
                                 {"pp=2,dp=2", {Stage(0), Shard(0)}},
                                 {"pp=2,tp=2", {Stage(1), Shard(1)}}};

/// Calls `body` with a plain 7 x 5 matrix and the same in each way on a mesh.
void on_each_way(const std::function<void(const Tensor& plain, const Tensor& spread)>& body) {
  for (const Lies& lies : kWays) {
    std::string name = lies.axes;
    for (const Placement& placement : lies.placements) name += " " + to_string(placement);
    SCOPED_TRACE(name);
    const Tensor plain = values({7, 5});
    test::on_mesh(lies.axes, [&](const Mesh& mesh) {
      SCOPED_TRACE(name);
      body(plain, distribute(plain, mesh, lies.placements));
    });
  }
}

TEST(CutView, GradientsThatAreViewsAddUp) {
  using Loss = std::function<Tensor(const Tensor&)>;
  const std::vector<std::pair<const char*, Loss>> losses = {
      {"a tensor joined to itself", [](const Tensor& h) { return torch::cat({h, h}, 0).exp(); }},
      {"along the other dim", [](const Tensor& h) { return torch::cat({h, h, h}, 1).exp(); }},
      {"states of a recurrence",
       [](const Tensor& h) {
         Tensor state = torch::zeros({5}, torch::kDouble);
         std::vector<Tensor> states;
         for (std::int64_t i = 0; i < h.size(0); ++i) states.push_back(state = torch::tanh(h[i] + state));
         return torch::stack(states, 0) * h;
       }},
      {"pieces that are used again",
       [](const Tensor& h) {
         const auto pieces = h.split(3, 0);
         return torch::cat({pieces[0], pieces[1].exp(), pieces[0] * 2, pieces[2]}, 0);
       }},
  };
  for (const auto& [name, loss] : losses) {
    SCOPED_TRACE(name);
    const auto gradient = [&, &loss = loss](const Tensor& x) {
      const Tensor leaf = x.detach().requires_grad_();
      loss(leaf * 1.5).pow(2).sum().backward();
      return leaf.grad();
    };
    on_each_way([&](const Tensor& plain, const Tensor& spread) {
      EXPECT_TRUE(at::allclose(full(gradient(spread)), gradient(plain), 1e-12, 1e-12));
    });
  }
}

using torch::indexing::Slice;
using Body = std::function<Tensor(const Tensor&)>;

/// What a program sees of both at its end.
Tensor both(const Tensor& a, const Tensor& b) { return torch::cat({a.reshape({-1}), b.reshape({-1})}); }

const std::vector<std::pair<const char*, Body>> kWrites = {
    {"row", [](const Tensor& w) { return w[0].zero_(); }},
    {"last row", [](const Tensor& w) { return w[-1].fill_(2); }},
    {"row from values", [](const Tensor& w) { return w[3].copy_(values({5})); }},
    {"column", [](const Tensor& w) { return w.select(1, 4).exp_(); }},
    {"rows", [](const Tensor& w) { return w.slice(0, 1, 6).mul_(2); }},
    {"no rows", [](const Tensor& w) { return w.slice(0, 3, 3).mul_(2); }},
    {"every other row", [](const Tensor& w) { return w.slice(0, 1, 7, 2).mul_(2); }},
    {"columns from values", [](const Tensor& w) { return w.slice(1, 1, 4).copy_(values({7, 3})); }},
    {"columns from a row", [](const Tensor& w) { return w.slice(1, 1, 4).copy_(values({3})); }},
    {"diagonal", [](const Tensor& w) { return w.diagonal().fill_(7); }},
    {"upper diagonal", [](const Tensor& w) { return w.diagonal(1).add_(1); }},
    {"lower diagonal", [](const Tensor& w) { return w.diagonal(-2).copy_(values({5})); }},
    {"chunk", [](const Tensor& w) { return w.chunk(4)[1].fill_(3); }},
    {"chunk of columns", [](const Tensor& w) { return w.chunk(2, 1)[1].neg_(); }},
    {"split", [](const Tensor& w) { return w.split(3)[2].exp_(); }},
    {"unbind", [](const Tensor& w) { return w.unbind(1)[3].tanh_(); }},
    {"transposed row", [](const Tensor& w) { return w.t()[2].zero_(); }},
    {"row of transposed rows", [](const Tensor& w) { return w.slice(0, 2, 6).t().slice(0, 1, 3).copy_(values({2, 4})); }},
    {"view of a view", [](const Tensor& w) { return w.slice(0, 2, 6)[1].slice(0, 1, 4).sigmoid_(); }},
    {"dims added", [](const Tensor& w) { return w.unsqueeze(0)[0].slice(0, 2, 4).unsqueeze(1).zero_(); }},
    {"flat", [](const Tensor& w) { return w.view(-1).slice(0, 3, 20).fill_(1); }},
    {"folded", [](const Tensor& w) { return w.view({5, 7}).slice(1, 2, 5).mul_(-1); }},
    {"windows", [](const Tensor& w) { return w.unfold(0, 2, 3)[1].fill_(4); }},
    {"number at an index", [](const Tensor& w) { return Tensor(w).index_put_({1, Slice(1, 3)}, 5.); }},
    {"element", [](const Tensor& w) { return Tensor(w).index_put_({6, 4}, 5.); }},
    {"values at a slice", [](const Tensor& w) { return Tensor(w).index_put_({Slice(2, 5)}, values({3, 5})); }},
    {"values at steps", [](const Tensor& w) { return Tensor(w).index_put_({Slice(0, 6, 3), Slice(1, 5, 2)}, values({2, 2})); }},
    {"values at rows",
     [](const Tensor& w) { return Tensor(w).index_put_({torch::tensor({6, 0, 3})}, values({3, 5})); }},
    {"shifted", [](const Tensor& w) { return w.slice(1, 1).copy_(w.slice(1, 0, -1).clone()); }},
    {"shifted rows", [](const Tensor& w) { return w.slice(0, 1).copy_((w * 2).slice(0, 0, -1)); }},
    {"masked", [](const Tensor& w) { return w.slice(0, 2, 7).masked_fill_(values({5, 5}).gt(0), 3); }},
    {"at indices", [](const Tensor& w) { return w.slice(0, 2, 7).index_fill_(0, torch::tensor({1, 4}), 3); }},
    {"two rows",
     [](const Tensor& w) {
       at::_foreach_mul_({w[1], w[5]}, 3.);
       return w[5];
     }},
    {"of itself", [](const Tensor& w) { return w.slice(0, 0, 3).add_(w.slice(0, 4, 7)); }},
    {"out", [](const Tensor& w) {
       Tensor view = w.slice(0, 1, 3);
       return at::exp_out(view, values({2, 5}));
     }},
};

TEST(CutView, WritesReachTheShards) {
  for (const auto& [name, write] : kWrites) {
    SCOPED_TRACE(name);
    on_each_way([&, &write = write](const Tensor& plain, const Tensor& spread) {
      const Tensor expected = plain.clone();
      const Tensor wanted = write(expected);
      const Tensor found = write(spread);
      EXPECT_TRUE(at::equal(full(spread), expected)) << full(spread) << expected;
      EXPECT_TRUE(at::equal(full(found), wanted));
    });
  }
}

/// Autograd refuses writes into one of several views of an operator, and these two.
const std::set<std::string> kWithoutGradient = {"chunk", "chunk of columns", "split", "unbind", "two rows", "out"};

TEST(CutView, WritesHaveTheGradientsOfOneDevice) {
  for (const auto& [name, write] : kWrites) {
    if (kWithoutGradient.contains(name)) continue;
    SCOPED_TRACE(name);
    const auto gradient = [&, &write = write](const Tensor& x) {
      const Tensor leaf = x.detach().requires_grad_();
      const Tensor h = leaf * 1.5;
      const Tensor view = write(h);
      (h.pow(2).mean() + view.sum()).backward();
      return leaf.grad();
    };
    on_each_way([&](const Tensor& plain, const Tensor& spread) {
      EXPECT_TRUE(at::allclose(full(gradient(spread)), gradient(plain), 1e-12, 1e-12));
    });
  }
}

TEST(CutView, NobodyReadsWhatWasThereBefore) {
  const std::vector<std::pair<const char*, Body>> bodies = {
      {"base written",
       [](const Tensor& w) {
         const Tensor view = w.slice(0, 1, 6);
         w.mul_(2);
         return view * 1;
       }},
      {"another view written",
       [](const Tensor& w) {
         const Tensor view = w.slice(0, 0, 3);
         const Tensor column = w.select(1, 2);
         w[1].fill_(9);
         return both(view, column);
       }},
      {"a view that shares memory written",
       [](const Tensor& w) {
         const Tensor turned = w.t();
         const Tensor view = w[2];
         turned.zero_();
         return view * 1;
       }},
      {"a view of a view written",
       [](const Tensor& w) {
         const Tensor outer = w.slice(0, 1, 6);
         const Tensor inner = outer.slice(1, 1, 4);
         inner.exp_();
         outer.mul_(3);
         return both(outer, inner);
       }},
      {"an outer view written",
       [](const Tensor& w) {
         const Tensor outer = w.slice(0, 1, 6);
         const Tensor inner = outer[2];
         w.slice(1, 0, 2).zero_();
         outer.add_(1);
         return both(inner, w);
       }},
      {"flat, base written",
       [](const Tensor& w) {
         const Tensor flat = w.view(-1);
         const Tensor folded = w.view({5, 7});
         w[4].zero_();
         return both(flat, folded);
       }},
      {"read, written, read",
       [](const Tensor& w) {
         const Tensor view = w.slice(0, 2, 5);
         const Tensor before = view * 1;
         w.add_(1);
         view.mul_(2);
         return both(before, both(view, w));
       }},
      {"detached",
       [](const Tensor& w) {
         const Tensor view = w.detach()[1];
         w[1].mul_(4);
         view.detach().add_(1);
         return both(view, w);
       }},
      {"the base is gone",
       [](const Tensor& w) {
         Tensor base = w * 1;
         const Tensor view = base[1];
         const Tensor rows = base.slice(0, 0, 3);
         base = Tensor();
         view.fill_(3);
         return both(view, rows);
       }},
  };
  for (const auto& [name, body] : bodies) {
    SCOPED_TRACE(name);
    on_each_way([&, &body = body](const Tensor& plain, const Tensor& spread) {
      const Tensor expected = body(plain.clone());
      EXPECT_TRUE(at::equal(full(body(spread)), expected));
    });
  }
}

TEST(CutView, OfAParameterThatIsGatheredAtUseTakesWrites) {
  const auto run = [](const Mesh* mesh, std::int64_t prefetch_bytes) {
    torch::nn::Linear layer(torch::nn::LinearOptions(5, 7).bias(false));
    layer->to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    layer->weight.copy_(values({7, 5}));
    if (mesh != nullptr) distribute(*layer, *mesh, Plan().zero(3).prefetch_bytes(prefetch_bytes));
    const Tensor x = values({3, 5});
    const Tensor before = layer(x);
    layer->weight[0].zero_();
    layer->weight.slice(0, 2, 6).mul_(3);
    return both(full(before), both(full(layer(x)), full(layer->weight)));
  };
  for (const char* axes : {"dp_shard=2", "dp_shard=3", "dp_shard=2,tp=2"}) {
    test::on_mesh(axes, [&](const Mesh& mesh) {
      for (const std::int64_t prefetch_bytes : {0, 1 << 20}) {
        EXPECT_TRUE(at::allclose(run(&mesh, prefetch_bytes), run(nullptr, 0), 1e-12, 1e-12));
      }
    });
  }
}

TEST(CutView, OfAConjugateRefusesWrites) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor base = distribute(torch::complex(values({4, 2}), values({4, 2})), mesh, {Shard(0)});
    const Tensor view = base.conj();
    try {
      view.zero_();
      FAIL() << "lost silently";
    } catch (const ShapeError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("write into the base: base.copy_(values.conj())"));
    }
    base.copy_(torch::zeros({4, 2}, torch::kComplexDouble).conj());
    EXPECT_TRUE(at::equal(full(base), torch::zeros({4, 2}, torch::kComplexDouble)));
  });
}

TEST(CutView, ErrorsOfShardsSayWhatTheWholeIs) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor x = distribute(values({6, 4}), mesh, {Shard(0)});
    try {
      (void)x.index_select(1, torch::tensor({9}));
      FAIL() << "no such column";
    } catch (const c10::Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("aten::index_select of [6, 4] Double on dp_replicate=2: shard(0)"));
    }
  });
}

TEST(CutView, OfAPartialSumTakesWrites) {
  for (const auto& [name, write] : kWrites) {
    if (std::string(name) == "two rows" || std::string(name) == "out") continue;  // of sums: ViewFamily
    SCOPED_TRACE(name);
    const Tensor expected = values({7, 5});
    const Tensor wanted = write(expected);
    test::on_mesh("dp=2,tp=2", [&, &write = write](const Mesh& mesh) {
      const Placements lies{Partial(), Shard(0)};
      const Extent mine = chunk_extent(7, 2, mesh.coordinate(1));
      const Tensor sum = from_local(values({7, 5}).narrow(0, mine.offset, mine.length) / 2, mesh, lies, {7, 5});
      try {
        const Tensor found = write(sum);
        EXPECT_TRUE(at::allclose(full(sum), expected, 1e-14, 1e-14));
        EXPECT_TRUE(at::allclose(full(found), wanted, 1e-14, 1e-14));
      } catch (const ShapeError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("missed a write"));
      }
    });
  }
}

}  // namespace
}  // namespace tessera

// SPDX-License-Identifier: Apache-2.0
// Strides and offsets of mesh tensors are those of one device, so that what copies there copies here, and views are views.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using Body = std::function<Tensor(const Tensor&)>;

Tensor numbers(at::IntArrayRef sizes) {
  std::int64_t count = 1;
  for (const std::int64_t size : sizes) count *= size;
  return (torch::arange(count, torch::kDouble) * 0.37).sin().view(sizes);
}

const std::vector<std::vector<std::int64_t>> kShapes = {{2, 3, 4}, {3, 2, 5}, {4, 6, 2}, {1, 4, 3}, {6, 5, 4}};

/// Calls `check` with a plain tensor and the same cut along each of its dims, on meshes that cut evenly and unevenly.
void on_each_cut(const std::function<void(const Tensor&, const Tensor&)>& check) {
  for (const char* axes : {"dp=2", "dp=3", "dp=2,tp=2"}) {
    for (const auto& sizes : kShapes) {
      const Tensor plain = numbers(sizes);
      test::on_mesh(axes, [&](const Mesh& mesh) {
        for (int dim = 0; dim < plain.dim(); ++dim) {
          SCOPED_TRACE(std::string(axes) + " " + c10::str(plain.sizes()) + " along " + std::to_string(dim));
          Placements placements = Placements::replicated(mesh.num_axes());
          placements[mesh.num_axes() - 1] = Shard(dim);
          check(plain, distribute(plain, mesh, placements));
        }
      });
    }
  }
}

TEST(Strides, and_offsets_are_those_of_one_device) {
  const std::vector<std::pair<const char*, Body>> bodies = {
      {"transpose", [](const Tensor& x) { return x.transpose(0, 1); }},
      {"permute and compute", [](const Tensor& x) { return x.permute({2, 0, 1}).exp(); }},
      {"add of two orders", [](const Tensor& x) { return x.transpose(1, 2) + (x * 2).transpose(1, 2); }},
      {"select", [](const Tensor& x) { return x.select(1, 1); }},
      {"slice", [](const Tensor& x) { return x.transpose(0, 2).slice(0, 1, 3); }},
      {"split", [](const Tensor& x) { return x.transpose(1, 2).split(1, 2)[1]; }},
      {"view", [](const Tensor& x) { return x.unsqueeze(1).transpose(1, 2); }},
      {"clone", [](const Tensor& x) { return x.permute({1, 2, 0}).clone(); }},
      {"contiguous", [](const Tensor& x) { return x.permute({1, 2, 0}).contiguous(); }},
      {"cat", [](const Tensor& x) { return torch::cat({x.transpose(0, 1), x.transpose(0, 1)}, 2); }},
  };
  for (const auto& [name, body] : bodies) {
    SCOPED_TRACE(name);
    on_each_cut([&, &body = body](const Tensor& plain, const Tensor& cut) {
      const Tensor expected = body(plain);
      const Tensor found = body(cut);
      ASSERT_EQ(found.sizes(), expected.sizes());
      EXPECT_TRUE(at::equal(full(found), expected));
      // A view along the cut dim is of gathered data: it lies as it came.
      const Placements lies = placements(found);
      if (std::none_of(lies.begin(), lies.end(), [](Placement placement) { return placement.is_shard(); })) return;
      for (std::int64_t dim = 0; dim < expected.dim(); ++dim) {
        if (expected.size(dim) == 1) continue;
        EXPECT_EQ(found.stride(dim), expected.stride(dim)) << "of dim " << dim;
      }
      EXPECT_EQ(found.storage_offset(), expected.storage_offset());
    });
  }
}

TEST(Strides, say_when_contiguous_and_reshape_copy) {
  const std::vector<std::pair<const char*, Body>> bodies = {
      {"contiguous of a view",
       [](const Tensor& x) {
         const Tensor base = x * 1;
         const Tensor copy = base.transpose(0, 1).contiguous();
         copy.fill_(7);
         return base;
       }},
      {"contiguous of a result",
       [](const Tensor& x) {
         const Tensor result = x.permute({0, 2, 1}) * 2;
         result.contiguous().mul_(3);
         return result;
       }},
      {"contiguous of what is so",
       [](const Tensor& x) {
         const Tensor result = x * 2;
         result.contiguous().mul_(3);
         return result;
       }},
      {"reshape",
       [](const Tensor& x) {
         const Tensor result = x * 2;
         result.transpose(1, 2).reshape({x.size(0), -1}).mul_(3);
         return result;
       }},
  };
  for (const auto& [name, body] : bodies) {
    SCOPED_TRACE(name);
    on_each_cut([&, &body = body](const Tensor& plain, const Tensor& cut) {
      EXPECT_TRUE(at::equal(full(body(cut)), body(plain)));
    });
  }
}

TEST(Strides, are_not_asked_for_in_backward_of_a_write_into_a_view) {
  const std::vector<std::pair<const char*, Body>> writes = {
      {"select", [](const Tensor& x) { return x.select(1, 1).mul_(3); }},
      {"select first", [](const Tensor& x) { return x.select(0, 0).mul_(3); }},
      {"slice", [](const Tensor& x) { return x.slice(2, 0, 3, 2).exp_(); }},
      {"view", [](const Tensor& x) { return x.view({-1, x.size(2)}).mul_(2); }},
      {"transpose", [](const Tensor& x) { return x.transpose(0, 1).mul_(x.transpose(0, 1).clone()); }},
      {"unsqueeze", [](const Tensor& x) { return x.unsqueeze(1).sigmoid_(); }},
      {"copy", [](const Tensor& x) { return x.select(1, 0).copy_(x.select(1, 1).tanh()); }},
  };
  for (const auto& [name, write] : writes) {
    for (const bool replicated_gradient : {true, false}) {
      SCOPED_TRACE(name);
      const auto gradient = [&, &write = write](const Tensor& x) {
        const Tensor leaf = x.detach().requires_grad_();
        const Tensor h = leaf * 1;
        write(h);
        (replicated_gradient ? h.sum() : h.pow(2).mean()).backward();
        return leaf.grad();
      };
      on_each_cut([&](const Tensor& plain, const Tensor& cut) {
        const Tensor expected = gradient(plain);
        EXPECT_TRUE(at::allclose(full(gradient(cut)), expected, 1e-14, 1e-14));
      });
    }
  }
}

TEST(Strides, of_dims_of_size_one_may_change) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor plain = numbers({4, 3, 4, 4}).contiguous(at::MemoryFormat::ChannelsLast);
    const Tensor cut = distribute(plain, mesh, {Shard(0)}).contiguous(at::MemoryFormat::ChannelsLast);
    EXPECT_TRUE(at::allclose(full(torch::adaptive_avg_pool2d(cut, {1, 1})), torch::adaptive_avg_pool2d(plain, {1, 1})));
    EXPECT_THROW((void)cut.as_strided({2, 2}, {1, 2}), ShapeError);
  });
}

TEST(Strides, of_permuted_logits_do_not_stop_cross_entropy) {
  for (const char* axes : {"tp=2", "tp=3"}) {
    test::on_mesh(axes, [](const Mesh& mesh) {
      const auto gradient = [](const Tensor& logits, const Tensor& classes) {
        const Tensor leaf = logits.detach().requires_grad_();
        torch::nn::functional::cross_entropy(leaf.permute({0, 2, 1}), classes).backward();
        return leaf.grad();
      };
      const Tensor classes = torch::tensor({{0, 4, 2}, {3, 1, 1}});
      const Tensor logits = numbers({2, 3, 5});
      const Tensor found = gradient(distribute(logits, mesh, {Shard(2)}), distribute(classes, mesh, {Replicate()}));
      EXPECT_TRUE(at::allclose(full(found), gradient(logits, classes), 1e-14, 1e-14));
    });
  }
}

}  // namespace
}  // namespace tessera

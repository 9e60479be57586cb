// SPDX-License-Identifier: Apache-2.0
// Operators that write into tensors they are given (out=): what one device would write, or an error.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;

Tensor numbers() { return (torch::arange(24, torch::kDouble) * 0.7).sin().view({6, 4}); }

TEST(Out, of_two_tensors_is_filled) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    for (const Placement placement : {Placement(Shard(0)), Placement(Shard(1)), Placement(Replicate())}) {
      const Tensor x = distribute(numbers(), mesh, {placement});
      auto [values, indices] = x.max(0);
      at::max_out(values, indices, -x, 0);
      const auto [expected_values, expected_indices] = (-numbers()).max(0);
      EXPECT_TRUE(at::equal(full(values), expected_values));
      EXPECT_TRUE(at::equal(full(indices), expected_indices));
      Tensor sorted = torch::empty({0}, torch::kDouble);
      Tensor order = torch::empty({0}, torch::kLong);
      at::sort_out(sorted, order, x, 1);
      EXPECT_TRUE(at::equal(sorted, std::get<0>(numbers().sort(1))));
      EXPECT_TRUE(at::equal(order, std::get<1>(numbers().sort(1))));
    }
  });
}

TEST(Out, of_a_mean_is_the_mean) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor x = distribute(numbers(), mesh, {Shard(0)});
    Tensor columns = torch::empty({0}, torch::kDouble);
    at::mean_out(columns, x, {0});
    EXPECT_TRUE(at::allclose(columns, numbers().mean({0}), 1e-14, 1e-14));
    Tensor all = torch::empty({0}, torch::kDouble);
    at::mean_out(all, x);
    EXPECT_TRUE(at::allclose(all, numbers().mean(), 1e-14, 1e-14));
  });
}

TEST(Out, that_is_a_view_along_a_sharded_dim_reaches_its_base) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const Tensor base = distribute(torch::zeros({4, 2}, torch::kDouble), mesh, {Shard(0)});
    Tensor view = base.slice(0, 1, 3);
    const Tensor x = view.clone();
    at::exp_out(view, x);
    EXPECT_TRUE(at::equal(full(base).sum(1), torch::tensor({0., 2., 2., 0.}, torch::kDouble)));
  });
}

}  // namespace
}  // namespace tessera

// SPDX-License-Identifier: Apache-2.0
// Gradients that are added up in another dtype than their own.
#include <gtest/gtest.h>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/apply_in_backward.h"
#include "tessera/module/fused_optimizers.h"

namespace tessera {
namespace {

using at::Tensor;

void backward_in(at::ScalarType dtype, const Mesh& mesh, test::Net& net) {
  (void)step(*net, shard_batch(mesh, test::inputs().to(dtype)), shard_batch(mesh, test::targets().to(dtype)),
             test::squared_error);
}

/// What the ranks have of the gradient before it is reduced, added up exactly.
Tensor exact_sum(const Mesh& mesh, const Tensor& gradient) {
  const Tensor local = tessera::local(gradient).to(at::kDouble).contiguous();
  return mesh.everyone().all_gather(local.unsqueeze(0)).sum(0);
}

/// Gradients of bf16 parameters, of the first rank, and the exact sums rounded once.
std::pair<std::vector<Tensor>, std::vector<Tensor>> bf16_gradients(const Plan& plan) {
  std::pair<std::vector<Tensor>, std::vector<Tensor>> result;
  test::on_mesh("dp_replicate=2,dp_shard=3", [&](const Mesh& mesh) {
    test::Net net = test::make_net();
    net->to(at::kBFloat16);
    distribute(*net, mesh, plan);
    std::vector<Tensor> expected;
    {
      const NoSync no_sync(*net);
      backward_in(at::kBFloat16, mesh, net);
      for (const Tensor& parameter : net->parameters())
        expected.push_back(exact_sum(mesh, parameter.grad()).to(at::kBFloat16));
    }
    net->zero_grad();
    backward_in(at::kBFloat16, mesh, net);
    std::vector<Tensor> found;
    for (const Tensor& parameter : net->parameters()) {
      EXPECT_EQ(local(parameter.grad()).scalar_type(), at::kBFloat16);
      found.push_back(full(parameter.grad()).clone());
    }
    if (mesh.rank() == 0) result = {found, expected};
  });
  return result;
}

TEST(ReduceDtype, of_float32_rounds_gradients_of_bf16_parameters_once) {
  for (const int zero : {0, 2, 3}) {
    const auto [found, expected] = bf16_gradients(Plan().zero(zero).reduce_dtype(at::kFloat));
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(found[i], expected[i])) << i << zero;
  }
  // In their own dtype they are rounded after each of the two sums.
  const auto [found, expected] = bf16_gradients(Plan().zero(3));
  EXPECT_FALSE(
      at::equal(at::cat({found[0].view(-1), found[2].view(-1)}), at::cat({expected[0].view(-1), expected[2].view(-1)})))
      << "the test's data do not show the difference";
}

TEST(ReduceDtype, is_what_travels) {
  for (const int zero : {0, 2}) {
    for (const auto& [dtype, bytes_each] :
         std::vector<std::pair<at::ScalarType, std::int64_t>>{{at::kBFloat16, 2}, {at::kFloat, 4}, {at::kDouble, 8}}) {
      test::on_mesh("dp_shard=2", [&, dtype = dtype, bytes_each = bytes_each](const Mesh& mesh) {
        test::Net net = test::make_net();
        net->to(at::kFloat);
        distribute(*net, mesh, Plan().zero(zero).reduce_dtype(dtype));
        const std::int64_t before = mesh.traffic().bytes;
        backward_in(at::kFloat, mesh, net);
        // 5 outputs over two ranks travel as 6 rows.
        constexpr std::int64_t kLossBytes = 4;
        const std::int64_t elements = 10 * 14 + 14 + (zero == 0 ? 5 : 6) * (14 + 1);
        EXPECT_EQ(mesh.traffic().bytes - before, elements * bytes_each + kLossBytes) << zero;
        for (const Tensor& parameter : net->parameters()) {
          EXPECT_EQ(parameter.grad().scalar_type(), at::kFloat);
          EXPECT_EQ(local(parameter.grad()).scalar_type(), at::kFloat);
        }
      });
    }
  }
}

TEST(ReduceDtype, trains_as_one_device_up_to_its_rounding) {
  const torch::optim::SGDOptions options(0.1);
  test::Net alone = test::make_net();
  FusedSgd expected(alone->parameters(), options);
  for (int index = 0; index < 3; ++index) {
    expected.zero_grad();
    test::backward(alone, test::inputs(index), test::targets());
    expected.step();
  }
  for (const auto& [dtype, tolerance] :
       std::vector<std::pair<at::ScalarType, double>>{{at::kDouble, 1e-13}, {at::kFloat, 1e-6}}) {
    for (const char* axes : {"dp=2", "dp_shard=3", "dp_replicate=2,dp_shard=2", "pp=2,dp_shard=2"}) {
      for (const int zero : {0, 1, 2, 3}) {
        for (const bool in_backward : {false, true}) {
          test::on_mesh(axes, [&, dtype = dtype, tolerance = tolerance](const Mesh& mesh) {
            test::Net net = test::make_net();
            distribute(*net, mesh, Plan().stages({{"first"}, {"second"}}).zero(zero).reduce_dtype(dtype));
            std::optional<ApplyInBackward> updates;
            if (in_backward) updates.emplace(apply_in_backward<FusedSgd>(net->parameters(), options));
            FusedSgd optimizer(net->parameters(), options);
            for (int index = 0; index < 3; ++index) {
              optimizer.zero_grad();
              test::backward(mesh, net, index);
              if (!in_backward) optimizer.step();
            }
            for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
              EXPECT_LE(test::difference(net->parameters()[i], alone->parameters()[i]), tolerance)
                  << i << " on " << axes << " zero " << zero;
            }
          });
        }
      }
    }
  }
}

TEST(Plan, WritesAndReadsItsReduceDtype) {
  EXPECT_EQ(Plan::parse(Plan().reduce_dtype(at::kFloat).to_toml(), "plan.toml").reduce_dtype(), at::kFloat);
  EXPECT_EQ(Plan::parse("zero = 2", "plan.toml").reduce_dtype(), std::nullopt);
}

TEST(Plan, RefusesAReduceDtypeThatCannotAddUp) {
  EXPECT_THROW(Plan().reduce_dtype(at::kLong), ConfigError);
  try {
    (void)Plan::parse("reduce_dtype = \"fp32\"", "plan.toml");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("plan.toml:1: reduce_dtype = \"fp32\" is not known; allowed: float64"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace tessera

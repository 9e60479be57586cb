// SPDX-License-Identifier: Apache-2.0
// A partial value, its views, and writes: nothing that one device would show is lost.
#include "tensor/view_family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <functional>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;

/// Half of its value on each of two ranks.
Tensor partial(const Mesh& mesh) {
  return from_local(torch::arange(6, torch::kDouble).view({3, 2}) * 0.5 / 2, mesh, {Partial()}, {3, 2});
}
Tensor plain() { return torch::arange(6, torch::kDouble).view({3, 2}) * 0.5; }

/// `body` gives what a program sees at its end; on a mesh it may be refused instead, with these words.
void expect_same_or_refused(const std::function<Tensor(Tensor)>& body, const std::string& words = {}) {
  const Tensor expected = body(plain());
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    try {
      const Tensor found = full(body(partial(mesh)));
      EXPECT_TRUE(words.empty()) << "not refused";
      EXPECT_TRUE(at::allclose(found, expected, 1e-14, 1e-14)) << found << expected;
    } catch (const ShapeError& error) {
      EXPECT_FALSE(words.empty()) << error.what();
      EXPECT_THAT(error.what(), testing::HasSubstr(words));
    }
  });
}

TEST(ViewFamily, a_write_through_a_view_reaches_its_base) {
  expect_same_or_refused([](Tensor base) {
    base.narrow(0, 0, 2).mul_(3);
    return base;
  });
  expect_same_or_refused([](Tensor base) {
    base.narrow(0, 0, 2).exp_();
    return base;
  });
}

TEST(ViewFamily, a_write_to_a_base_reaches_its_view) {
  expect_same_or_refused([](Tensor base) {
    const Tensor view = base.narrow(0, 0, 2);
    base.exp_();
    return view;
  });
}

TEST(ViewFamily, a_write_through_a_view_after_its_base_was_reduced_is_not_read_past) {
  expect_same_or_refused(
      [](Tensor base) {
        Tensor view = base.narrow(0, 0, 2);
        const Tensor seen = torch::tanh(base);
        view.mul_(3);
        return base + seen;
      },
      "aten::add: a view of a partial sum, or the sum itself, missed a write");
}

TEST(ViewFamily, a_write_to_a_base_after_its_view_was_reduced_is_not_read_past) {
  expect_same_or_refused(
      [](Tensor base) {
        const Tensor view = base.narrow(0, 0, 2);
        const Tensor seen = torch::tanh(view);
        base.mul_(3);
        return view + seen;
      },
      "missed a write");
}

TEST(ViewFamily, who_wrote_and_who_shares_its_memory_may_be_read) {
  expect_same_or_refused([](Tensor base) {
    const Tensor view = base.narrow(0, 0, 2);
    const Tensor seen = torch::tanh(view) + torch::tanh(base).narrow(0, 0, 2);
    base.mul_(3);
    return base.narrow(0, 0, 2) + seen;
  });
  expect_same_or_refused([](Tensor base) {
    Tensor view = base.view({6});
    const Tensor seen = torch::tanh(view);
    Tensor end = view.narrow(0, 3, 3);
    end.mul_(3);
    return view + seen + torch::cat({end, end});
  });
}

TEST(ViewFamily, a_view_of_what_missed_a_write_missed_it_too) {
  expect_same_or_refused(
      [](Tensor base) {
        const Tensor view = base.view({6});
        const Tensor seen = torch::tanh(view);
        const Tensor end = view.narrow(0, 3, 3);
        base.mul_(3);
        return end + seen.narrow(0, 0, 3);
      },
      "missed a write");
}

TEST(ViewFamily, views_made_after_the_reduction_share_the_new_memory) {
  expect_same_or_refused([](Tensor base) {
    (void)torch::tanh(base);
    Tensor view = base.narrow(0, 0, 2);
    view.mul_(3);
    base.narrow(0, 1, 2).add_(1);
    return base + torch::cat({view, view.narrow(0, 0, 1)});
  });
}

}  // namespace
}  // namespace tessera

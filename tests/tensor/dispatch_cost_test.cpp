// SPDX-License-Identifier: Apache-2.0
// An operator whose decision is known costs a mesh tensor a few allocations more than a plain one, and no text: a message
// that is made before it is needed shows here.
#include <gtest/gtest.h>

#include <ATen/ops/add.h>
#include <ATen/ops/ones.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "support/ranks.h"
#include "tessera/tensor/mesh_tensor.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}  // namespace

// Counts every allocation of this program, LibTorch's and Tessera's included; data of tensors come from elsewhere.
void* operator new(std::size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace tessera {
namespace {

double allocations_per_add(const at::Tensor& a, const at::Tensor& b) {
  constexpr int kCalls = 100;
  at::Tensor warm = at::add(a, b);
  const std::int64_t before = allocations;
  for (int i = 0; i < kCalls; ++i) const at::Tensor sum = at::add(a, b);
  return static_cast<double>(allocations - before) / kCalls;
}

TEST(Dispatch, OfAKnownDecisionAllocatesATensorAStorageAndWhatTheirMessageTakes) {
  const at::Tensor a = at::ones({4});
  const double plain = allocations_per_add(a, a);
  test::on_mesh("dp=1", [&](const Mesh& mesh) {
    const at::Tensor spread = distribute(a, mesh, {Replicate()});
    // Tensor, storage, the stack of the boxed call; the storage's message for whoever asks for its data: two.
    EXPECT_LE(allocations_per_add(spread, spread) - plain, 6);
  });
}

}  // namespace
}  // namespace tessera

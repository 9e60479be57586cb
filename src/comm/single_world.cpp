// SPDX-License-Identifier: Apache-2.0
// The world of one rank.
#include "comm/devices.h"
#include "comm/group_book.h"
#include "comm/vector_math.h"
#include "tessera/comm/worlds.h"

namespace tessera::comm {

namespace {

class SingleWorld final : public World {
 public:
  explicit SingleWorld(c10::Device device) : World(0, 1, 0, device) {}
  std::string transport() const override { return "single"; }
  Communicator group(const std::vector<int>& members, const std::string& name) override {
    static_cast<void>(detail::position_in_group(0, 1, members, name));
    return Communicator(nullptr, name);
  }
};

}  // namespace

std::shared_ptr<World> make_single_world(c10::Device device) {
  detail::settle_vector_math();
  return std::make_shared<SingleWorld>(detail::device_of_rank(device, 0, /*shared=*/true));
}

}  // namespace tessera::comm

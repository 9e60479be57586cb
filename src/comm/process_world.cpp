// SPDX-License-Identifier: Apache-2.0
// One rank per process: groups over shared memory, Gloo, or a transport from elsewhere.
#include <fmt/format.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include <exception>
#include <utility>

#include "comm/gloo_backend.h"
#include "comm/group_book.h"
#include "comm/local_backend.h"
#include "comm/shm_region.h"
#include "comm/vector_math.h"
#include "tessera/base/error.h"
#include "tessera/comm/worlds.h"

namespace tessera::comm {

namespace {

class ProcessWorld final : public World {
 public:
  ProcessWorld(int rank, int size, int local_rank, c10::intrusive_ptr<c10d::Store> store, std::string transport,
               const WorldOptions& options)
      : World(rank, size, local_rank, options.device),
        store_(std::move(store)),
        transport_(std::move(transport)),
        options_(options),
        engine_(std::make_shared<detail::Engine>()) {}
  ~ProcessWorld() override {
    if (std::uncaught_exceptions() > 0) engine_->discard();
    engine_->finish();
  }

  std::string transport() const override { return transport_; }

  Communicator group(const std::vector<int>& members, const std::string& name) override {
    GroupRequest request{.rank = detail::position_in_group(rank(), size(), members, name),
                         .members = members,
                         .name = name,
                         .timeout = options_.timeout,
                         .device = device(),
                         .store = {},
                         .host = {}};
    if (members.size() == 1) return Communicator(nullptr, name);
    request.store = c10::make_intrusive<c10d::PrefixStore>(detail::group_key(members, name), store_);
    c10::intrusive_ptr<c10d::Backend> backend = make_backend(request);
    Communicator communicator(std::move(backend), name);
    // A member that is missing is missed here and not in the first step of training.
    communicator.barrier();
    return communicator;
  }

  void leave() noexcept override { engine_->finish(); }

  void abort(const std::string& reason) noexcept override {
    book_.abort(fmt::format("rank {} failed: {}", rank(), reason));
  }

 private:
  c10::intrusive_ptr<c10d::Backend> make_backend(const GroupRequest& request) {
    if (transport_ == "shm" && !options_.makers.contains("shm")) return make_shm_backend(request);
    const auto maker = options_.makers.find(transport_);
    auto backend =
        maker != options_.makers.end()
            ? maker->second(request)
            : detail::make_gloo_backend(request.store, request.rank, static_cast<int>(request.members.size()),
                                        request.name, options_.address, options_.timeout);
    book_.add(backend);
    return backend;
  }

  c10::intrusive_ptr<c10d::Backend> make_shm_backend(const GroupRequest& request) {
    const int group_size = static_cast<int>(request.members.size());
    detail::ShmRegion shared =
        detail::make_shm_region(*request.store, request.rank, group_size, request.name, options_.timeout);
    book_.add(shared.region);
    return c10::make_intrusive<detail::LocalBackend>(detail::LocalGroup{
        .region = std::move(shared.region),
        .reach = detail::Reach::kStaged,
        .rank = request.rank,
        .transport = "shm",
        .arrival = {.group = request.name,
                    .timeout = options_.timeout,
                    .patience =
                        detail::choose_patience(options_.ranks_on_machine > 0 ? options_.ranks_on_machine : size()),
                    .is_alive = std::move(shared.is_alive)},
        .engine = engine_});
  }

  c10::intrusive_ptr<c10d::Store> store_;
  std::string transport_;
  WorldOptions options_;
  std::shared_ptr<detail::Engine> engine_;
  detail::GroupBook book_;
};

void check_transport(const std::string& transport, const WorldOptions& options) {
  if (options.makers.contains(transport) || transport == "shm") return;
  std::string known = "shm, gloo";
  for (const auto& [name, maker] : options.makers) known += ", " + name;
  check<ConfigError>(transport == "gloo", "transport {} is not known here; allowed are {}", transport, known);
  check<ConfigError>(detail::has_gloo(),
                     "transport gloo is not in this build; install Gloo's headers (Debian: libgloo-dev) and configure "
                     "with -DTESSERA_GLOO=ON, or use the transport shm on one machine");
}

}  // namespace

std::shared_ptr<World> make_process_world(int rank, int size, int local_rank, c10::intrusive_ptr<c10d::Store> store,
                                          const std::string& transport, const WorldOptions& options) {
  detail::check_world("make_process_world", rank, size);
  check_transport(transport, options);
  detail::settle_vector_math();
  return std::make_shared<ProcessWorld>(rank, size, local_rank, std::move(store), transport, options);
}

}  // namespace tessera::comm

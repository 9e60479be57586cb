// SPDX-License-Identifier: Apache-2.0
// memfd, exchanged as "/proc/<pid>/fd/<n>", and process handles for noticing that a peer has ended.
#include "comm/shm_region.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

// The staging slots of all ranks together stay in the second-level cache; larger chunks were up to three times slower.
constexpr std::size_t kChunkBytes = 64 * 1024;
// Lists of one piece per rank need room for each.
constexpr std::size_t kLeastPartBytes = 1024;
constexpr std::size_t kRingBytes = 256 * 1024;

RegionShape choose_shape(int size) {
  return {.size = size,
          .chunk_bytes = std::max(kChunkBytes, kLeastPartBytes * static_cast<std::size_t>(size)),
          .ring_bytes = kRingBytes};
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int value) : value_(value) {}
  ~FileDescriptor() {
    if (value_ >= 0) close(value_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  [[nodiscard]] int get() const { return value_; }

 private:
  int value_;
};

// Two processes with the same value see the same /proc: one boot of one machine, one process namespace.
std::string machine_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 128> space{};
  const ssize_t length = readlink("/proc/self/ns/pid", space.data(), space.size());
  return boot + "/" + std::string(space.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
}

// What each rank tells the others.
struct Address {
  std::string machine;
  pid_t pid = 0;
  int descriptor = -1;
};

std::string format_address(const Address& address) {
  return fmt::format("{} {} {}", address.machine, address.pid, address.descriptor);
}

Address parse_address(const std::string& text) {
  Address address;
  std::istringstream(text) >> address.machine >> address.pid >> address.descriptor;
  return address;
}

std::string address_key(int rank) { return "address/" + std::to_string(rank); }

Address fetch_address(c10d::Store& store, int rank, const std::string& group, std::chrono::milliseconds timeout) {
  try {
    store.wait({address_key(rank)}, timeout);
    return parse_address(store.get_to_str(address_key(rank)));
  } catch (const std::exception& error) {
    throw CommunicationError(fmt::format("group {} (shm): rank {} did not come within {} ms: {}", group, rank,
                                         timeout.count(), error.what()));
  }
}

Region map_region(int descriptor, const RegionShape& shape, const std::string& group) {
  const std::size_t bytes = Region::total_bytes(shape);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  check<CommunicationError>(memory != MAP_FAILED, "group {} (shm): cannot map {} bytes of shared memory: {}", group,
                            bytes, std::strerror(errno));
  return Region(
      std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), [bytes](std::byte* begin) { munmap(begin, bytes); }),
      shape);
}

FileDescriptor create_memory(const RegionShape& shape, const std::string& group) {
  FileDescriptor descriptor(memfd_create("tessera", MFD_CLOEXEC));
  const auto bytes = static_cast<off_t>(Region::total_bytes(shape));
  check<CommunicationError>(descriptor.get() >= 0 && ftruncate(descriptor.get(), bytes) == 0,
                            "group {} (shm): cannot make {} bytes of shared memory: {}", group, bytes,
                            std::strerror(errno));
  return descriptor;
}

FileDescriptor open_memory(const Address& address, const std::string& group) {
  const std::string path = fmt::format("/proc/{}/fd/{}", address.pid, address.descriptor);
  FileDescriptor descriptor(open(path.c_str(), O_RDWR | O_CLOEXEC));
  check<CommunicationError>(descriptor.get() >= 0,
                            "group {} (shm): cannot open the memory of rank 0 at {}: {}; ranks must run as one user "
                            "with /proc mounted, or use the transport gloo",
                            group, path, std::strerror(errno));
  return descriptor;
}

// A process handle becomes readable when the process ends.
class Processes {
 public:
  void add(pid_t pid) {
    const int handle = pid == getpid() ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    handles_.emplace_back(handle);
  }
  [[nodiscard]] bool is_alive(int rank) const {
    const int handle = handles_[static_cast<std::size_t>(rank)].get();
    if (handle < 0) return true;
    pollfd query{handle, POLLIN, 0};
    return ::poll(&query, 1, 0) == 0;
  }

 private:
  std::vector<FileDescriptor> handles_;
};

void wait_until_all_attached(c10d::Store& store, int rank, int size, const std::string& group,
                             std::chrono::milliseconds timeout) {
  if (store.add("attached", 1) == size) store.set("all_attached", "1");
  try {
    store.wait({"all_attached"}, timeout);
  } catch (const std::exception& error) {
    throw CommunicationError(
        fmt::format("group {} (shm): only {} of {} ranks opened the shared memory within {} ms "
                    "(seen by rank {}): {}",
                    group, store.add("attached", 0), size, timeout.count(), rank, error.what()));
  }
}

}  // namespace

ShmRegion make_shm_region(c10d::Store& store, int rank, int size, const std::string& group,
                          std::chrono::milliseconds timeout) {
  const RegionShape shape = choose_shape(size);
  Address own{machine_identity(), getpid(), -1};
  FileDescriptor descriptor = rank == 0 ? create_memory(shape, group) : FileDescriptor(-1);
  own.descriptor = descriptor.get();
  store.set(address_key(rank), format_address(own));

  auto processes = std::make_shared<Processes>();
  Address first;
  for (int peer = 0; peer < size; ++peer) {
    const Address address = fetch_address(store, peer, group, timeout);
    check<CommunicationError>(address.machine == own.machine,
                              "group {} (shm): ranks {} and {} run on different machines or in different containers; "
                              "use the transport gloo for this job",
                              group, rank, peer);
    processes->add(address.pid);
    if (peer == 0) first = address;
  }
  Region region = rank == 0 ? map_region(descriptor.get(), shape, group)
                            : map_region(open_memory(first, group).get(), shape, group);
  wait_until_all_attached(store, rank, size, group, timeout);
  return {std::move(region), [processes](int peer) { return processes->is_alive(peer); }};
}

}  // namespace tessera::comm::detail

// SPDX-License-Identifier: Apache-2.0
// Damage of any kind is found before a tensor of the program is touched, and a save that stops anywhere leaves a checkpoint.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "checkpoint/files.h"
#include "checkpoint/programs.h"
#include "checkpoint/save.h"
#include "tessera/checkpoint/checkpoint.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using test::contents;
using test::different;
using test::message_of;
using test::Place;
using test::Program;
using test::TemporaryFolder;

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_bytes(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// A checkpoint of two files.
void save_on_two_ranks(const fs::path& path) {
  const Place place{"dp_shard=2", "1"};
  test::on_place(place, [&](const std::optional<Mesh>& mesh) {
    Program program(mesh, place, 1);
    program.update();
    save(path, program.state, {.block_bytes = 64});
  });
}

/// One change, chosen by `random`; returns what it was.
std::string damage(const fs::path& folder, std::mt19937_64& random) {
  const std::vector<fs::path> paths = files_in(folder);
  const fs::path& path = paths[random() % paths.size()];
  std::string bytes = bytes_of(path);
  const std::string name = path.filename().string();
  switch (random() % 8) {
    case 0: {
      const std::size_t length = random() % bytes.size();
      write_bytes(path, bytes.substr(0, length));
      return name + " cut to " + std::to_string(length);
    }
    case 1:
      fs::remove(path);
      return name + " removed";
    case 2: {
      const fs::path& other = paths[random() % paths.size()];
      if (other == path) {
        write_bytes(path, bytes + "x");
        return name + " grown";
      }
      const std::string others = bytes_of(other);
      write_bytes(path, others);
      write_bytes(other, bytes);
      return name + " and " + other.filename().string() + " swapped";
    }
    default: {
      const std::size_t byte = random() % bytes.size();
      bytes[byte] = static_cast<char>(bytes[byte] ^ (1 << (random() % 8)));
      write_bytes(path, bytes);
      return name + ", a bit of byte " + std::to_string(byte);
    }
  }
}

TEST(Damage, IsFoundBeforeATensorIsTouched) {
  const TemporaryFolder folder;
  const fs::path whole = folder.path() / "whole";
  const fs::path damaged = folder.path() / "damaged";
  save_on_two_ranks(whole);
  Program program(std::nullopt, {}, 2);
  program.update();
  const auto before = contents(program);
  std::mt19937_64 random(20261130);  // NOLINT(cert-msc32-c,cert-msc51-cpp): the same damage every time
  constexpr int kTimes = 600;
  for (int i = 0; i < kTimes; ++i) {
    fs::remove_all(damaged);
    fs::copy(whole, damaged);
    const std::string what = damage(damaged, random);
    EXPECT_THROW(load(damaged, program.state), FileError) << what;
    if (i % 20 == 0) {
      EXPECT_EQ(different(before, contents(program)), "") << what;
    }
  }
  EXPECT_EQ(different(before, contents(program)), "");
  load(whole, program.state);
  EXPECT_NE(different(before, contents(program)), "");
}

TEST(Damage, IsFoundByAllRanksWhoeverReadsIt) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  save_on_two_ranks(path);
  const fs::path last = files_in(path).back();
  std::string bytes = bytes_of(last);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_bytes(last, bytes);
  const Place place{"dp_shard=2", "3"};
  test::on_place(place, [&](const std::optional<Mesh>& mesh) {
    Program program(mesh, place, 2);
    const auto before = contents(program);
    const std::string message = message_of<CheckpointCorrupt>([&] { load(path, program.state); });
    EXPECT_NE(message.find("shard-00001-of-00002.safetensors: tensor "), std::string::npos) << message;
    EXPECT_NE(message.find("block"), std::string::npos) << message;
    EXPECT_EQ(different(before, contents(program)), "");
  });
}

/// File operations that stop at the n-th: it is half done, and nothing after it happens. As a kill does.
class Stopping : public checkpoint::Files {
 public:
  explicit Stopping(int operations) : left_(operations) {}
  [[nodiscard]] bool stopped() const { return left_ < 0; }

  checkpoint::Descriptor create(const std::string& path) override {
    next();
    return Files::create(path);
  }
  void write(const checkpoint::Descriptor& file, const void* bytes, std::size_t num_bytes, const std::string& path) override {
    if (left_ == 0) Files::write(file, bytes, num_bytes / 2, path);
    next();
    Files::write(file, bytes, num_bytes, path);
  }
  void flush(const checkpoint::Descriptor& file, const std::string& path) override {
    next();
    Files::flush(file, path);
  }
  std::string create_folder(const std::string& path) override {
    next();
    return Files::create_folder(path);
  }
  void flush_folder(const std::string& path) override {
    next();
    Files::flush_folder(path);
  }
  void rename(const std::string& from, const std::string& to) override {
    next();
    Files::rename(from, to);
  }
  void exchange(const std::string& a, const std::string& b) override {
    next();
    Files::exchange(a, b);
  }
  void remove(const std::string& path) override {
    // Half of a folder.
    if (left_ == 0 && fs::is_directory(path)) fs::remove(*fs::directory_iterator(path));
    next();
    Files::remove(path);
  }

 private:
  void next() {
    if (--left_ < 0) throw FileError("stopped");
  }
  int left_;
};

TEST(InterruptedSave, LeavesTheCheckpointBeforeOrTheNewOneWhereverItStops) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  Program old_program(std::nullopt, {}, 1);
  old_program.update();
  Program new_program(std::nullopt, {}, 1);
  for (int i = 0; i < 2; ++i) new_program.update();
  const auto before = contents(old_program);
  const auto after = contents(new_program);
  Program reader(std::nullopt, {}, 3);
  reader.update();
  int kept = 0;
  int replaced = 0;
  for (int operations = 0;; ++operations) {
    save(path, old_program.state);
    Stopping files(operations);
    try {
      checkpoint::save_through(files, path, new_program.state, {});
    } catch (const FileError&) {
      EXPECT_TRUE(files.stopped());
    }
    load(path, reader.state);
    const bool is_old = different(before, contents(reader)).empty();
    EXPECT_TRUE(is_old || different(after, contents(reader)).empty()) << "stopped after " << operations;
    (is_old ? kept : replaced) += 1;
    if (!files.stopped()) break;
  }
  EXPECT_GT(kept, 20);
  EXPECT_GE(replaced, 3);
  // What was left over is gone with the next save.
  save(path, new_program.state);
  EXPECT_EQ(files_in(folder.path()), std::vector<fs::path>{path});
}

TEST(InterruptedSave, LeavesNothingThatLooksLikeACheckpoint) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  Program program(std::nullopt, {}, 1);
  for (int operations = 0;; ++operations) {
    Stopping files(operations);
    bool failed = false;
    try {
      checkpoint::save_through(files, path, program.state, {});
    } catch (const FileError&) {
      failed = true;
    }
    if (fs::exists(path)) load(path, program.state);
    fs::remove_all(path);
    if (!failed) break;
  }
}

TEST(InterruptedSave, WithoutRoomSaysSoAndLeavesWhatWasThere) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "saved";
  Program program(std::nullopt, {}, 1);
  save(path, program.state);
  const auto before = contents(program);
  program.update();
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit small{1000, limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = message_of<FileError>([&] { save(path, program.state); });
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, previous);
  EXPECT_NE(message.find("cannot write: File too large"), std::string::npos) << message;
  load(path, program.state);
  EXPECT_EQ(different(before, contents(program)), "");
  EXPECT_EQ(files_in(folder.path()), std::vector<fs::path>{path});
}

}  // namespace
}  // namespace tessera

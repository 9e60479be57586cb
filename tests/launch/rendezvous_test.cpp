// SPDX-License-Identifier: Apache-2.0
// The handshake names who is missing and who differs; the store listens on loopback only.
#include "launch/rendezvous.h"

#include <gtest/gtest.h>

#include <fstream>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "launch/sockets.h"
#include "tessera/launch/failure.h"

namespace tessera::launcher::detail {
namespace {

using std::chrono::milliseconds;

/// Shakes hands as each of `ranks` at once; one message per rank, empty for success.
std::vector<std::string> shake_as(const std::vector<Handshake>& ranks) {
  auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::string> messages(ranks.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        shake_hands(*store, ranks[i]);
      } catch (const Error& error) {
        messages[i] = std::string(error.kind()) + ": " + error.what();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  return messages;
}

Handshake rank_of(int rank, int world_size, std::map<std::string, std::string> fields = {{"torch", "2.11"}}) {
  return {.rank = rank, .world_size = world_size, .timeout = milliseconds(30000), .fields = std::move(fields)};
}

TEST(Handshake, ReturnsWhenEveryoneCameOn3Ranks) {
  EXPECT_EQ(shake_as({rank_of(0, 3), rank_of(1, 3), rank_of(2, 3)}), (std::vector<std::string>{"", "", ""}));
}

TEST(Handshake, NamesTheRanksThatDidNotComeOn4Ranks) {
  auto zero = rank_of(0, 4);
  auto two = rank_of(2, 4);
  zero.timeout = two.timeout = milliseconds(300);
  for (const std::string& message : shake_as({zero, two})) {
    EXPECT_NE(message.find("rendezvous: rendezvous: ranks 1, 3 of 4 did not come within 0.3 s"), std::string::npos)
        << message;
    EXPECT_NE(message.find("ranks 0, 2 of 4 waited"), std::string::npos) << message;
  }
}

TEST(Handshake, GivesEveryRankTheSameVerdictOnDifferentFieldsOn3Ranks) {
  const auto messages = shake_as({rank_of(0, 3), rank_of(1, 3), rank_of(2, 3, {{"torch", "2.12"}})});
  EXPECT_EQ(messages[0], messages[1]);
  EXPECT_EQ(messages[0], messages[2]);
  EXPECT_NE(messages[0].find("config_mismatch: rendezvous: rank 0 has torch=2.11 but rank 2 has torch=2.12"),
            std::string::npos)
      << messages[0];
}

TEST(Handshake, AMismatchIsAConfigError) {
  EXPECT_EQ(describe_failure(std::make_exception_ptr(MismatchError("x"))).exit_code, kExitConfig);
}

RankEnvironment tcp_rank(int rank, int world_size, int port) {
  RankEnvironment ranks;
  ranks.source = RankSource::kTorchrun;
  ranks.rank = ranks.local_rank = rank;
  ranks.world_size = ranks.local_world_size = world_size;
  ranks.master_address = "127.0.0.1";
  ranks.master_port = port;
  return ranks;
}

/// Hexadecimal local addresses of the sockets that listen on `port`.
std::vector<std::string> listeners_on(int port) {
  std::vector<std::string> addresses;
  for (const char* file : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream lines(file);
    std::string line;
    while (std::getline(lines, line)) {
      std::istringstream words(line);
      std::string number;
      std::string local;
      std::string remote;
      std::string state;
      words >> number >> local >> remote >> state;
      const auto colon = local.find(':');
      if (state == "0A" && std::stoi(local.substr(colon + 1), nullptr, 16) == port) {
        addresses.push_back(local.substr(0, colon));
      }
    }
  }
  return addresses;
}

TEST(Store, RankZeroHostsItOnLoopbackOnly) {
  const int port = find_free_port();
  const auto store = connect_store(tcp_rank(0, 2, port), milliseconds(5000));
  store->set("key", std::vector<std::uint8_t>{1, 2});
  const auto other = connect_store(tcp_rank(1, 2, port), milliseconds(5000));
  EXPECT_EQ(other->get("key"), (std::vector<std::uint8_t>{1, 2}));
  EXPECT_EQ(listeners_on(port), (std::vector<std::string>{"0100007F"}));
}

TEST(Store, AttemptsOfAnElasticJobDoNotSeeEachOther) {
  const int port = find_free_port();
  const auto store = connect_store(tcp_rank(0, 2, port), milliseconds(5000));
  store->set("key", std::vector<std::uint8_t>{1});
  auto second_attempt = tcp_rank(1, 2, port);
  second_attempt.restart_count = 1;
  EXPECT_FALSE(connect_store(second_attempt, milliseconds(5000))->check({"key"}));
}

TEST(Store, RefusesAPortThatIsTaken) {
  const int port = find_free_port();
  const auto store = connect_store(tcp_rank(0, 2, port), milliseconds(5000));
  EXPECT_THROW((void)connect_store(tcp_rank(0, 2, port), milliseconds(5000)), ConfigError);
}

TEST(Store, SaysThatNobodyAnswers) {
  const int port = find_free_port();
  try {
    (void)connect_store(tcp_rank(1, 2, port), milliseconds(200));
    FAIL() << "connected";
  } catch (const RendezvousError& error) {
    EXPECT_NE(std::string(error.what()).find("nobody answered on 127.0.0.1:" + std::to_string(port)),
              std::string::npos);
  }
}

TEST(Store, RefusesADescriptorThatIsNotTheLaunchersFile) {
  RankEnvironment ranks = tcp_rank(1, 2, 1);
  ranks.source = RankSource::kTessera;
  ranks.store_fd = 0;
  EXPECT_THROW((void)connect_store(ranks, milliseconds(200)), ConfigError);
}

}  // namespace
}  // namespace tessera::launcher::detail

// SPDX-License-Identifier: Apache-2.0
// Weights files: what is written is what is read, and a malformed file is refused with its own message.
#include "tessera/checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <limits>

#include "support/ranks.h"
#include "support/temporary_folder.h"
#include "tessera/base/error.h"
#include "tessera/module/build.h"
#include "tessera/train/models.h"
#include "tessera/train/workload.h"

namespace tessera::checkpoint {
namespace {

using test::message_of;
using test::TemporaryFolder;
using train::make_workload;
using train::ModelConfig;

std::string length_prefix(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xFFU);
  return bytes;
}

std::string file_bytes(const std::string& header, std::size_t data_bytes) {
  return length_prefix(header.size()) + header + std::string(data_bytes, '\1');
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0;
}

TEST(Safetensors, ReadsBackEveryDtypeAndShapeBitForBit) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  std::vector<NamedTensor> tensors;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kFloat16, torch::kBFloat16, torch::kInt64,
                           torch::kInt32, torch::kUInt8, torch::kBool}) {
    tensors.push_back({fmt::format("t{}", static_cast<int>(dtype)), torch::randn({3, 5}).mul(10).abs().to(dtype)});
  }
  tensors.push_back({"rank0", torch::tensor(3.5)});
  tensors.push_back({"empty", torch::empty({0, 7})});
  tensors.push_back({"strided", torch::arange(12.0).view({3, 4}).t()});
  tensors.push_back({"nan \"quoted\" \xC3\xA9", torch::full({2}, std::numeric_limits<double>::quiet_NaN())});
  write_safetensors(tensors, path, {{"note", "x"}});
  const auto read = read_safetensors(path);
  ASSERT_EQ(read.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const auto found = std::find_if(read.begin(), read.end(), [&](const auto& item) { return item.name == name; });
    ASSERT_NE(found, read.end()) << name;
    EXPECT_TRUE(same_bits(found->tensor, tensor)) << name;
  }
}

TEST(Safetensors, LeavesOnlyTheFinishedFileBehind) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  write_safetensors({{"a", torch::ones({2})}}, path);
  write_safetensors({{"a", torch::zeros({3})}}, path);
  EXPECT_EQ(read_safetensors(path).at(0).tensor.size(0), 3);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Safetensors, KeepsTheOldFileWhenTheNewOneCannotBeWritten) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  write_safetensors({{"a", torch::ones({2})}}, path);
  EXPECT_THROW(write_safetensors({{"a", torch::ones({1})}, {"a", torch::ones({1})}}, path), FileError);
  EXPECT_THROW(write_safetensors({{"a", torch::ones({1}, torch::kComplexFloat)}}, path), FileError);
  EXPECT_EQ(read_safetensors(path).at(0).tensor.size(0), 2);
  EXPECT_THROW(write_safetensors({}, folder.path() / "absent" / "w.safetensors"), FileError);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Safetensors, AlignsTheHeaderToEightBytesAndSortsByElementSize) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  write_safetensors({{"small", torch::ones({3}, torch::kUInt8)}, {"large", torch::ones({1}, torch::kFloat64)}}, path);
  EXPECT_EQ(read_safetensors(path).at(0).name, "large");
  EXPECT_EQ(std::filesystem::file_size(path) % 8, 3U);
}

TEST(Safetensors, RefusesMalformedFilesEachWithItsOwnMessage) {
  const std::string deep(50'000, '[');
  const struct {
    std::string bytes;
    const char* says;
  } cases[] = {
      {"", "0 bytes are too few"},
      {"1234567", "7 bytes are too few"},
      {length_prefix(100'000'001), "claims 100000001 bytes; at most 100000000 are read"},
      {length_prefix(~std::uint64_t{0}), "at most 100000000 are read"},
      {length_prefix(50) + "{}", "claims 50 bytes, but only 2 follow"},
      {file_bytes("", 0), "does not start with \"{\""},
      {file_bytes("[]", 0), "does not start with \"{\""},
      {file_bytes(" {}", 0), "does not start with \"{\""},
      {file_bytes("{\"a\":", 0), "not valid JSON"},
      {file_bytes("{}x", 0), "not valid JSON"},
      {file_bytes("{\"\xFF\":{}}", 0), "not valid JSON"},
      {file_bytes("{}", 4), "end at byte 0 of the data, but the file holds 4"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}})", 4),
       "\"a\": the name comes twice"},
      {file_bytes(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4),
       "field dtype comes twice"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "field data_offsets is missing"},
      {file_bytes(R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4), "field dtype is missing"},
      {file_bytes(R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4), "field shape is missing"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4), "field \"x\" is not known"},
      {file_bytes(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4), "dtype \"F33\" is not known"},
      {file_bytes(R"({"a":{"dtype":3,"shape":[1],"data_offsets":[0,4]}})", 4), "a number stands where none belongs"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), "-1 is negative"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4), "1.0 is not an integer"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}})", 4),
       "18446744073709551616 is not an integer below 2^63"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4), "above 2^63 - 1"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}})", 4),
       "needs more than 2^63 bytes"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4), "[4, 0] run backwards"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4), "has 3 numbers, not 2"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8), "4 bytes before it belong to no"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                  R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                  8),
       "\"b\": its data begin at byte 4, inside the tensor before it, which ends at 8"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "takes 12 bytes, data_offsets give"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4), "end at byte 8 of the data, but"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4), "a list stands where none"},
      {file_bytes(R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]}})", 4), "an object stands where"},
      {file_bytes(R"({"a":[1]})", 0), "a list stands where none belongs"},
      {file_bytes(R"({"a":null})", 0), "null stands where"},
      {file_bytes(R"({"a":true})", 0), "true or false stands"},
      {file_bytes(R"({"a":1})", 0), "a number stands where none belongs"},
      {file_bytes(R"({"__metadata__":{"k":1}})", 0), "a number stands where none belongs"},
      {file_bytes(R"({"__metadata__":{"k":"v","k":"w"}})", 0), "key \"k\" comes twice"},
      {file_bytes(R"({"__metadata__":{"k":{}}})", 0), "an object stands where"},
      {file_bytes("{\"a\":" + deep, 0), "a list stands where none belongs"},
  };
  const TemporaryFolder folder;
  for (const auto& row : cases) {
    const auto path = folder.write("bad.safetensors", row.bytes);
    const auto message = message_of<FileError>([&] { (void)read_safetensors(path); });
    EXPECT_NE(message.find(row.says), std::string::npos) << "expected: " << row.says << "\nfound:    " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_THROW((void)read_safetensors(folder.path()), FileError);
  EXPECT_THROW((void)read_safetensors(folder.path() / "absent"), FileError);
  EXPECT_THROW((void)read_safetensors("/dev/zero"), FileError);
}

TEST(Safetensors, RefusesEveryTruncationOfAFile) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  write_safetensors({{"a", torch::ones({2, 3})}, {"b", torch::ones({1})}}, path);
  std::ifstream file(path, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_THROW((void)read_safetensors(folder.write("cut", std::string_view(whole).substr(0, length))), FileError)
        << length;
  }
}

TEST(Safetensors, EscapesControlCharactersOfNamesInMessages) {
  const TemporaryFolder folder;
  const auto path = folder.write("bad", file_bytes(R"({"\u001b[2J":null})", 0));
  const auto message = message_of<FileError>([&] { (void)read_safetensors(path); });
  EXPECT_NE(message.find("\\x1b[2J"), std::string::npos) << message;
}

ModelConfig small_mlp() {
  ModelConfig config;
  config.name = "mlp";
  config.sizes = {3, 4, 2};
  return config;
}

TEST(Weights, MoveFromOneModelToAnother) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  const auto source = make_workload(small_mlp(), 1);
  const auto target = make_workload(small_mlp(), 2);
  save_weights(named_parameters(*source.module), path);
  load_weights(*target.module, path);
  const auto expected = source.module->parameters();
  const auto found = target.module->parameters();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(same_bits(expected[i], found[i]));
  EXPECT_TRUE(found[0].requires_grad());
}

/// Bytes that this process has asked the system to read.
std::int64_t bytes_read() {
  std::ifstream io("/proc/self/io");
  std::string word;
  std::int64_t bytes = 0;
  io >> word >> bytes;
  EXPECT_EQ(word, "rchar:");
  return bytes;
}

TEST(Weights, AreReadShardByShardIntoAModelOnAMesh) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "w.safetensors";
  ModelConfig config = small_mlp();
  config.sizes = {300, 501, 10};
  const auto source = make_workload(config, 1);
  save_weights(named_parameters(*source.module), path);
  const auto whole = static_cast<std::int64_t>(std::filesystem::file_size(path));
  const Plan rows = Plan().add("*", {{"tp", Shard(0)}});
  const Plan columns = Plan().add("*weight", {{"tp", Shard(1)}, {"dp_replicate", Shard(0)}}).add("*", {});
  for (const auto& [axes, plan] : std::vector<std::pair<std::string, Plan>>{{"tp=4", rows}, {"dp=2,tp=2", columns}}) {
    const auto before = bytes_read();
    test::on_mesh(axes, [&, plan = plan](const Mesh& mesh) {
      auto module = build(mesh, plan, [&] { return train::build_mlp({.sizes = config.sizes}); });
      load_weights(*module, path);
      const auto expected = source.module->parameters();
      const auto found = module->parameters();
      for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(full(found[i].detach()), expected[i]));
    });
    // The header and replicated biases come once per rank, everything else once.
    EXPECT_LT(bytes_read() - before, whole * 11 / 10);
  }
}

TEST(Weights, RefusesAnyDifferenceAndChangesNothing) {
  const TemporaryFolder folder;
  const auto workload = make_workload(small_mlp(), 1);
  const auto before = workload.module->parameters()[0].clone();
  const auto refuse = [&](auto&& change) {
    auto tensors = named_parameters(*make_workload(small_mlp(), 2).module);
    change(tensors);
    const auto path = folder.path() / "w.safetensors";
    save_weights(tensors, path);
    const auto message = message_of<FileError>([&] { load_weights(*workload.module, path); });
    EXPECT_TRUE(same_bits(before, workload.module->parameters()[0]));
    return message;
  };
  using Tensors = std::vector<NamedTensor>;
  EXPECT_NE(refuse([](Tensors& t) { t.pop_back(); }).find("layer1.linear.bias: missing in the file"),
            std::string::npos);
  EXPECT_NE(refuse([](Tensors& t) {
              t.push_back({"more", torch::ones({1})});
            }).find("more: not in the model"),
            std::string::npos);
  EXPECT_NE(refuse([](Tensors& t) {
              t[1].tensor = torch::ones({5});
            }).find("layer0.linear.bias: shape [5] in the file, [4] in the model"),
            std::string::npos);
  EXPECT_NE(refuse([](Tensors& t) { t[1].tensor = t[1].tensor.to(torch::kFloat64); }).find("F64 in the file, F32"),
            std::string::npos);
  const auto many = refuse([](Tensors& t) {
    for (int i = 0; i < 20; ++i) t.push_back({fmt::format("x{:02}", i), torch::ones({1})});
  });
  EXPECT_NE(many.find("20 of the weights do not fit"), std::string::npos);
  EXPECT_NE(many.find("x09"), std::string::npos);
  EXPECT_EQ(many.find("x10"), std::string::npos);
}

}  // namespace
}  // namespace tessera::checkpoint

// SPDX-License-Identifier: Apache-2.0
// Bit layout of a fingerprint, low to high: 40 bytes, 11 root, 6 dtype, 3 reduction, 4 kind.
#include "comm/fingerprint.h"

#include <fmt/format.h>

#include <array>
#include <string_view>

namespace tessera::comm::detail {

namespace {

struct KindTraits {
  std::string_view name;
  bool has_op;
  bool has_root;
};

constexpr std::array<KindTraits, 11> kKinds{{
    {"nothing", false, false},
    {"barrier", false, false},
    {"all_reduce", true, false},
    {"all_reduce_coalesced", true, false},
    {"reduce", true, true},
    {"broadcast", false, true},
    {"all_gather", false, false},
    {"gather", false, true},
    {"scatter", false, true},
    {"reduce_scatter", true, false},
    {"all_to_all", false, false},
}};

constexpr std::array<std::string_view, 5> kOps{"sum", "avg", "max", "min", "product"};

}  // namespace

std::uint64_t pack(const Call& call) {
  return (static_cast<std::uint64_t>(call.kind) << 60U) | (static_cast<std::uint64_t>(call.op) << 57U) |
         (static_cast<std::uint64_t>(call.dtype) << 51U) | (static_cast<std::uint64_t>(call.root) << 40U) |
         (static_cast<std::uint64_t>(call.bytes) & kMaxBytes);
}

Call unpack(std::uint64_t fingerprint) {
  Call call;
  call.kind = static_cast<CallKind>(fingerprint >> 60U);
  call.op = static_cast<ReduceOp>((fingerprint >> 57U) & 7U);
  call.dtype = static_cast<c10::ScalarType>((fingerprint >> 51U) & 63U);
  call.root = static_cast<int>((fingerprint >> 40U) & static_cast<std::uint64_t>(kMaxRoot));
  call.bytes = static_cast<std::size_t>(fingerprint & kMaxBytes);
  return call;
}

std::string describe(const Call& call) {
  const KindTraits& kind = kKinds.at(static_cast<std::size_t>(call.kind));
  if (call.kind == CallKind::kBarrier || call.kind == CallKind::kNone) return fmt::format("{}()", kind.name);
  std::string text(kind.name);
  text += '(';
  if (call.kind != CallKind::kAllToAll) text += fmt::format("{} bytes, ", call.bytes);
  text += dtype_name(call.dtype);
  if (kind.has_op) text += fmt::format(", {}", kOps.at(static_cast<std::size_t>(call.op)));
  if (kind.has_root) text += fmt::format(", root {}", call.root);
  return text + ')';
}

std::string dtype_name(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return "float64";
    case c10::ScalarType::Float:
      return "float32";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    case c10::ScalarType::Half:
      return "float16";
    case c10::ScalarType::Long:
      return "int64";
    case c10::ScalarType::Int:
      return "int32";
    case c10::ScalarType::Short:
      return "int16";
    case c10::ScalarType::Char:
      return "int8";
    case c10::ScalarType::Byte:
      return "uint8";
    case c10::ScalarType::Bool:
      return "bool";
    default:
      return c10::toString(dtype);
  }
}

}  // namespace tessera::comm::detail

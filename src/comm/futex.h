// SPDX-License-Identifier: Apache-2.0
// Sleeping on a 32-bit word that threads or processes share, and the pause of a spinning core.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace tessera::comm::detail {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && sizeof(std::atomic<std::uint32_t>) == 4);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && sizeof(std::atomic<std::uint64_t>) == 8);

/// Sleeps while `word` holds `expected`, at most `limit`. May return early for no reason.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::chrono::microseconds limit);

/// Wakes everyone asleep on `word`.
void futex_wake_all(const std::atomic<std::uint32_t>& word);

#if defined(__x86_64__)
inline void cpu_relax() { __builtin_ia32_pause(); }
#elif defined(__aarch64__)
inline void cpu_relax() { asm volatile("yield" ::: "memory"); }
#else
inline void cpu_relax() { std::atomic_signal_fence(std::memory_order_seq_cst); }
#endif

}  // namespace tessera::comm::detail

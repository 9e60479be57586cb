// SPDX-License-Identifier: Apache-2.0
// fork and exec, with nothing but async-signal-safe calls in between.
#include "launch/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string_view>

#include "tessera/base/error.h"

namespace tessera::launcher::detail {
namespace {

std::vector<char*> pointers_to(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& string : strings) {
    pointers.push_back(const_cast<char*>(string.c_str()));  // execve's signature; it does not write
  }
  pointers.push_back(nullptr);
  return pointers;
}

struct ChildPlan {
  const char* program;
  char* const* arguments;
  char* const* environment;
  const int* inherited;
  std::size_t num_inherited;
  pid_t parent;
  int error_fd;
};

/// Runs in the child after fork: the other threads of the parent are gone and may have held any lock.
[[noreturn]] void become_program(const ChildPlan& plan) noexcept {
  ::setsid();
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != plan.parent) {
    ::_exit(127);  // the parent died before the line above
  }
  for (std::size_t i = 0; i < plan.num_inherited; ++i) {
    ::fcntl(plan.inherited[i], F_SETFD, 0);
  }
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(plan.program, plan.arguments, plan.environment);
  const int error = errno;
  [[maybe_unused]] const auto written = ::write(plan.error_fd, &error, sizeof error);
  ::_exit(127);
}

/// Waits until the child has either become the program (0) or failed to (errno).
int read_exec_error(int fd) noexcept {
  int error = 0;
  while (::read(fd, &error, sizeof error) < 0 && errno == EINTR) {
  }
  return error;
}

}  // namespace

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::move(other.pidfd_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  return *this;
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    if (!poll_end()) {
      signal_session(SIGKILL);
    }
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

std::optional<ProcessEnd> ChildProcess::poll_end() {
  siginfo_t info{};
  const int result = ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
  if (result != 0 || info.si_pid == 0) {
    return std::nullopt;
  }
  return info.si_code == CLD_EXITED ? ProcessEnd{.exit_code = info.si_status, .signal = 0}
                                    : ProcessEnd{.exit_code = 0, .signal = info.si_status};
}

void ChildProcess::signal_session(int signal) noexcept {
  // The session's id cannot be reused before the child is reaped, which only the destructor does.
  if (pid_ > 0) {
    ::kill(-pid_, signal);
  }
}

ChildProcess spawn(const SpawnRequest& request) {
  const auto arguments = pointers_to(request.arguments);
  const auto environment = pointers_to(request.environment);
  int ends[2];
  check<Error>(::pipe2(ends, O_CLOEXEC) == 0, "starting {}: pipe failed: {}; raise the limit on open files (ulimit -n)",
               request.program, std::strerror(errno));
  const Descriptor read_end(ends[0]);
  Descriptor write_end(ends[1]);
  const ChildPlan plan{.program = request.program.c_str(),
                       .arguments = arguments.data(),
                       .environment = environment.data(),
                       .inherited = request.inherited.data(),
                       .num_inherited = request.inherited.size(),
                       .parent = ::getpid(),
                       .error_fd = write_end.get()};
  const pid_t pid = ::fork();
  check<Error>(pid >= 0, "starting {}: fork failed: {}; lower --nproc or raise the limit on processes (ulimit -u)",
               request.program, std::strerror(errno));
  if (pid == 0) {
    become_program(plan);
  }
  ChildProcess child;
  child.pid_ = pid;
  write_end.reset();
  const int error = read_exec_error(read_end.get());
  check<ConfigError>(error == 0, "starting {}: {}; name an executable program", request.program, std::strerror(error));
  child.pidfd_ = Descriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  return child;
}

std::string find_program(const std::string& name, const std::string& search_path) {
  const auto is_program = [](const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && ::access(path.c_str(), X_OK) == 0;
  };
  if (name.find('/') != std::string::npos) {
    const int error = ::access(name.c_str(), F_OK) == 0 ? 0 : errno;
    check<ConfigError>(error == 0, "program {}: {}; name an executable file", name, std::strerror(error));
    check<ConfigError>(is_program(name), "program {} is not an executable file; see its permissions (chmod +x)", name);
    return name;
  }
  for (std::string_view rest = search_path; !rest.empty();) {
    const auto colon = rest.find(':');
    const auto folder = rest.substr(0, colon);
    if (const std::string path = fmt::format("{}/{}", folder.empty() ? "." : folder, name);
        !name.empty() && is_program(path)) {
      return path;
    }
    rest = colon == std::string_view::npos ? std::string_view() : rest.substr(colon + 1);
  }
  throw ConfigError(fmt::format("program '{}' was not found in PATH; give its path, for instance ./{}", name, name));
}

std::string signal_name(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name == nullptr ? fmt::format("signal {}", signal) : fmt::format("SIG{}", name);
}

}  // namespace tessera::launcher::detail

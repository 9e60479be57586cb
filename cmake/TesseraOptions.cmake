# SPDX-License-Identifier: Apache-2.0
# Options, language level and the two private interface targets: warnings and sanitizers.
option(TESSERA_DEV "Tests, examples and warnings as errors: for work on Tessera itself" ${PROJECT_IS_TOP_LEVEL})
set(TESSERA_SANITIZE "" CACHE STRING "Sanitizers for our own code, for instance address,undefined")
set(TESSERA_TORCH "" CACHE PATH "LibTorch to build against: a wheel's torch/ folder, the libtorch zip or a conda tree")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(TESSERA_CCACHE ccache)
if(TESSERA_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${TESSERA_CCACHE})
endif()
find_program(TESSERA_MOLD mold)
if(TESSERA_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(tessera_warnings INTERFACE)
target_compile_options(tessera_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wold-style-cast $<$<BOOL:${TESSERA_DEV}>:-Werror>)

add_library(tessera_sanitizers INTERFACE)
if(TESSERA_SANITIZE)
  target_compile_options(tessera_sanitizers INTERFACE -fsanitize=${TESSERA_SANITIZE} -fno-omit-frame-pointer)
  target_link_options(tessera_sanitizers INTERFACE -fsanitize=${TESSERA_SANITIZE})
endif()

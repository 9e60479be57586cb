# SPDX-License-Identifier: Apache-2.0
# Options, language level and the two private interface targets: warnings and sanitizers.
option(TESSERA_DEV "Tests, examples and warnings as errors: for work on Tessera itself" ${PROJECT_IS_TOP_LEVEL})
option(TESSERA_PCH "Precompiled headers of LibTorch: 0.8 GB per build folder, a third of the compile time" ON)
option(TESSERA_UNITY "Compile several sources at once: the headers of LibTorch are most of the work" ON)
set(TESSERA_SANITIZE "" CACHE STRING "Sanitizers for our own code, for instance address,undefined")

# Variables of this directory and those below it: a project that adds Tessera as a subdirectory keeps its own.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
# Installed files find libtessera and its plug-ins wherever the prefix is moved; LibTorch's folder comes with its target.
set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

set(CMAKE_UNITY_BUILD ${TESSERA_UNITY})
set(CMAKE_UNITY_BUILD_BATCH_SIZE 6)

# Time stamps and precompiled headers would otherwise make every compilation a miss.
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
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wold-style-cast $<$<BOOL:${TESSERA_DEV}>:-Werror>
  # GCC 12 takes the first element of an empty c10::SmallVector for an uninitialised read.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)

add_library(tessera_sanitizers INTERFACE)
if(TESSERA_SANITIZE)
  target_compile_options(tessera_sanitizers INTERFACE
    -fsanitize=${TESSERA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(tessera_sanitizers INTERFACE -fsanitize=${TESSERA_SANITIZE})
endif()

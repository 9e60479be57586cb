# SPDX-License-Identifier: Apache-2.0
# Install rules and the package `tessera` for find_package.
include(CMakePackageConfigHelpers)
set(_tessera_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/tessera")

install(TARGETS tessera EXPORT tessera_targets LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET tessera_cli)
  install(TARGETS tessera_cli RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
if(TARGET tessera_cuda)
  install(TARGETS tessera_cuda LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/tessera" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.h")
install(EXPORT tessera_targets NAMESPACE tessera:: DESTINATION "${_tessera_package_dir}")

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/tesseraConfig.cmake.in" "${PROJECT_BINARY_DIR}/tesseraConfig.cmake"
  INSTALL_DESTINATION "${_tessera_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/tesseraConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES
  "${PROJECT_BINARY_DIR}/tesseraConfig.cmake" "${PROJECT_BINARY_DIR}/tesseraConfigVersion.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindTesseraTorch.cmake"
  DESTINATION "${_tessera_package_dir}")

# SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` puts where, and the Debian package made of the same (tools/package). llama.cpp's
# client is not part of it: it is linked to a llama.cpp that lies in a cache.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(from ${CMAKE_CURRENT_LIST_DIR}/install)
set(into ${PROJECT_BINARY_DIR}/install)
set(plugin_dir ${CMAKE_INSTALL_LIBDIR}/skvq)

# --- programs and the plugin ----------------------------------------------------------------------
install(TARGETS skvqd skvqctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(TARGET skvq-exporter)
  install(TARGETS skvq-exporter RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
# Engines load it by its path, which pkg-config and CMake tell; the loader's folders are not its place.
install(TARGETS skvq_plugin LIBRARY DESTINATION ${plugin_dir})

# --- for engines and tools in C: headers, libskvq, where things are -------------------------------
install(DIRECTORY ${PROJECT_SOURCE_DIR}/plugin-abi/include/ ${PROJECT_SOURCE_DIR}/clients/c/include/
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(TARGETS skvq_client skvq_proto ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(name skvq-plugin skvq-client)
  configure_file(${from}/${name}.pc.in ${into}/${name}.pc @ONLY)
  install(FILES ${into}/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
configure_package_config_file(${from}/skvqConfig.cmake.in ${into}/skvqConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/skvq
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR plugin_dir)
write_basic_package_version_file(${into}/skvqConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${into}/skvqConfig.cmake ${into}/skvqConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/skvq)

# --- the service ------------------------------------------------------------------------------------
# The same unit that is tested, with the paths of this prefix.
file(READ ${PROJECT_SOURCE_DIR}/daemon/skvqd.service unit)
string(REPLACE "/usr/bin/" "${CMAKE_INSTALL_FULL_BINDIR}/" unit "${unit}")
string(REPLACE "/etc/skvqd.conf" "${CMAKE_INSTALL_FULL_SYSCONFDIR}/skvqd.conf" unit "${unit}")
file(CONFIGURE OUTPUT ${into}/skvqd.service CONTENT "${unit}" @ONLY)
install(FILES ${into}/skvqd.service ${PROJECT_SOURCE_DIR}/daemon/skvqd.socket DESTINATION lib/systemd/system)
install(FILES ${from}/tmpfiles.conf DESTINATION lib/tmpfiles.d RENAME skvqd.conf)
if(TARGET skvq-exporter)
  file(READ ${PROJECT_SOURCE_DIR}/tools/skvq-exporter/skvq-exporter.service unit)
  string(REPLACE "/usr/bin/" "${CMAKE_INSTALL_FULL_BINDIR}/" unit "${unit}")
  file(CONFIGURE OUTPUT ${into}/skvq-exporter.service CONTENT "${unit}" @ONLY)
  install(FILES ${into}/skvq-exporter.service DESTINATION lib/systemd/system)
endif()
install(FILES ${from}/sysusers.conf DESTINATION lib/sysusers.d RENAME skvqd.conf)
install(FILES ${PROJECT_SOURCE_DIR}/daemon/skvqd.conf DESTINATION ${CMAKE_INSTALL_FULL_SYSCONFDIR})

# --- manual pages and completion ---------------------------------------------------------------------
include(${CMAKE_CURRENT_LIST_DIR}/man.cmake)

# --- to read ----------------------------------------------------------------------------------------
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/LICENSE
  ${PROJECT_SOURCE_DIR}/plugin-abi/examples/engine.c DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${PROJECT_SOURCE_DIR}/plugin-abi/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/plugin-abi)

# --- .deb -------------------------------------------------------------------------------------------
set(CPACK_GENERATOR DEB)
set(CPACK_SET_DESTDIR ON) # /etc is no part of the prefix
set(CPACK_PACKAGE_NAME skvqd)
set(CPACK_PACKAGE_CONTACT "skvqd maintainers <root@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Shared low-bit K/V cache for language model inference on CPUs")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION misc)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${from}/deb/conffiles ${from}/deb/postinst ${from}/deb/prerm
  ${from}/deb/postrm)
include(CPack)

# SPDX-License-Identifier: Apache-2.0
#
# Manual pages and completion, each printed by the program that it is about: skvqctl makes its own of
# its tables, help2man those of the daemon and the exporter of their --help. Without help2man these two
# are left out.
find_program(HELP2MAN help2man)
set(man ${PROJECT_BINARY_DIR}/man)
file(MAKE_DIRECTORY ${man})

# page(FILE COMMAND...): what the command prints.
function(skvq_page file)
  cmake_parse_arguments(arg "" "" "COMMAND;DEPENDS" ${ARGN})
  add_custom_command(OUTPUT ${man}/${file} DEPENDS ${arg_DEPENDS} VERBATIM
    COMMAND ${arg_COMMAND} > ${man}/${file}.new
    COMMAND ${CMAKE_COMMAND} -E rename ${man}/${file}.new ${man}/${file})
  set_property(GLOBAL APPEND PROPERTY SKVQ_PAGES ${man}/${file})
endfunction()

skvq_page(skvqctl.1 DEPENDS skvqctl COMMAND skvqctl help man)
install(FILES ${man}/skvqctl.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
foreach(shell bash zsh fish)
  skvq_page(skvqctl.${shell} DEPENDS skvqctl COMMAND skvqctl help ${shell})
endforeach()
install(FILES ${man}/skvqctl.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME skvqctl)
install(FILES ${man}/skvqctl.zsh DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions RENAME _skvqctl)
install(FILES ${man}/skvqctl.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)

if(HELP2MAN)
  # The example configuration, as a part of skvqd(8): roff takes some characters for itself.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/daemon/skvqd.conf)
  file(READ ${PROJECT_SOURCE_DIR}/daemon/skvqd.conf config)
  string(REPLACE "\\" "\\e" config "${config}")
  string(REPLACE "-" "\\-" config "${config}")
  string(REPLACE "'" "\\(aq" config "${config}")
  string(REPLACE "\n[" "\n\\&[" config "${config}") # a line that begins so is a section for help2man
  file(WRITE ${man}/skvqd.h2m "[configuration file]\nEvery key with its default; docs/operations.md says more of them.\n.PP\n.nf\n${config}.fi\n\n[see also]\n\\fBskvqctl\\fR(1), \\fBskvq\\-exporter\\fR(1)\n")
  file(WRITE ${man}/skvqd.conf.5 ".so man8/skvqd.8\n")
  skvq_page(skvqd.8 DEPENDS skvqd ${man}/skvqd.h2m COMMAND ${HELP2MAN} --no-info --section 8 --include ${man}/skvqd.h2m
    --name "shared K/V cache for language model inference on CPUs" $<TARGET_FILE:skvqd>)
  install(FILES ${man}/skvqd.8 DESTINATION ${CMAKE_INSTALL_MANDIR}/man8)
  install(FILES ${man}/skvqd.conf.5 DESTINATION ${CMAKE_INSTALL_MANDIR}/man5)
  if(TARGET skvq-exporter)
    skvq_page(skvq-exporter.1 DEPENDS skvq-exporter COMMAND ${HELP2MAN} --no-info --section 1
      --version-string ${PROJECT_VERSION} --name "metrics and a dashboard of skvqd" $<TARGET_FILE:skvq-exporter>)
    install(FILES ${man}/skvq-exporter.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
  endif()
endif()

get_property(pages GLOBAL PROPERTY SKVQ_PAGES)
add_custom_target(man ALL DEPENDS ${pages})

# SPDX-License-Identifier: Apache-2.0

# The daemon's modules, each through its public header. Included by CMakeLists.txt here.
set(skvq_tests_dir ${CMAKE_CURRENT_LIST_DIR}/..)
function(skvq_daemon_unit name)
  list(TRANSFORM ARGN PREPEND ${skvq_tests_dir}/)
  skvq_unit(test_daemon_${name} ${skvq_tests_dir}/unit/test_daemon_${name}.c ${ARGN}
    LIBS skvq_faults)
  target_include_directories(test_daemon_${name} PRIVATE ${skvq_tests_dir} ${skvq_tests_dir}/unit)
endfunction()

skvq_daemon_unit(base)
skvq_daemon_unit(arena)
skvq_daemon_unit(page)
skvq_daemon_unit(policy)
skvq_daemon_unit(identity)
skvq_daemon_unit(index)
skvq_daemon_unit(cache support/cache_rig.c support/page_maker.c)
skvq_daemon_unit(tenants support/cache_rig.c support/page_maker.c)
skvq_daemon_unit(publish support/cache_rig.c support/page_maker.c)
skvq_daemon_unit(snapshot support/cache_rig.c support/page_maker.c)
skvq_daemon_unit(tier support/cache_rig.c support/page_maker.c support/spill_rig.c support/spill_disk.c)
skvq_daemon_unit(shed support/cache_rig.c support/page_maker.c support/spill_rig.c support/spill_disk.c)
skvq_daemon_unit(manage support/cache_rig.c support/page_maker.c support/spill_rig.c support/spill_disk.c)
skvq_daemon_unit(disk support/cache_rig.c support/page_maker.c support/spill_rig.c support/spill_disk.c)
skvq_daemon_unit(config)
skvq_daemon_unit(listen)
skvq_daemon_unit(conn support/raw_client.c support/page_maker.c)
skvq_daemon_unit(live support/raw_client.c support/page_maker.c support/daemon.c)
target_compile_definitions(test_daemon_live PRIVATE SKVQD_PATH="$<TARGET_FILE:skvqd>")
add_dependencies(test_daemon_live skvqd)
skvq_daemon_unit(crosstalk support/raw_client.c support/page_maker.c support/daemon.c)
target_compile_definitions(test_daemon_crosstalk PRIVATE SKVQD_PATH="$<TARGET_FILE:skvqd>")
add_dependencies(test_daemon_crosstalk skvqd)

# The store below memory, on a disk in memory.
set(skvq_spill_support ${skvq_tests_dir}/support/spill_rig.c ${skvq_tests_dir}/support/spill_disk.c)
foreach(name format store press)
  skvq_unit(test_spill_${name} ${skvq_tests_dir}/unit/test_spill_${name}.c ${skvq_spill_support}
    LIBS skvq_faults)
  target_include_directories(test_spill_${name} PRIVATE ${skvq_tests_dir} ${skvq_tests_dir}/unit)
endforeach()

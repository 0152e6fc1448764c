// SPDX-License-Identifier: Apache-2.0
// cmocka for C++ sources: what it wants before it, and C linkage. Include it last: it defines
// macros with names such as fail.
#ifndef SKVQ_TESTS_CMOCKA_CPP_H
#define SKVQ_TESTS_CMOCKA_CPP_H

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>

extern "C" {
#include <cmocka.h>
}

#endif

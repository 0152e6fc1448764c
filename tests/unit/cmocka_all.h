/* SPDX-License-Identifier: Apache-2.0 */
/* cmocka.h wants these before it, in this order; sources that include headers alone get them here.
 */
#ifndef SKVQ_TESTS_CMOCKA_ALL_H
#define SKVQ_TESTS_CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif /* SKVQ_TESTS_CMOCKA_ALL_H */

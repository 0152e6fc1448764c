/* SPDX-License-Identifier: Apache-2.0 */
/* dashboard.h - dashboard.html as bytes, made by CMake. */
#ifndef SKVQ_EXPORTER_DASHBOARD_H
#define SKVQ_EXPORTER_DASHBOARD_H

#include <stddef.h>

extern const unsigned char dashboard_html[];
extern const size_t dashboard_html_bytes;

#endif /* SKVQ_EXPORTER_DASHBOARD_H */

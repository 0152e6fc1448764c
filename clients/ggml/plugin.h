/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is settled once for the process, when ggml loads the backend: libskvq_plugin.so, the
 * environment's settings, the log.
 */
#ifndef SKVQ_GGML_PLUGIN_H
#define SKVQ_GGML_PLUGIN_H

#include <stdbool.h>
#include <stdint.h>

#include <ggml.h>

#include <skvq/plugin.h>

/* Read-only after plugin_load(). */
struct settings {
	const char *profile; /* NULL: the plugin's default           */
	bool prefill;        /* several rows at once are ours, too   */
	void *calibration;   /* file bytes; NULL: data-free          */
	uint64_t calibration_bytes;
	uint8_t weights[32]; /* digest the calibration is made for   */
};

extern const skvq_api *plugin; /* NULL until plugin_load() has succeeded */
extern struct settings settings;

/* A line to ggml's log, which the program may have redirected. */
void say(enum ggml_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* skvq_engine.log */
void plugin_log(void *user, int32_t level, const char *utf8);
/* False after a line in the log: without the plugin, or with settings that make no sense, the backend
 * is not there at all. */
bool plugin_load(void);

#endif

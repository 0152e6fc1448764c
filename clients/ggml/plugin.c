/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* docs/calibration-format.md */
enum { CALIBRATION_WEIGHTS_AT = 40, CALIBRATION_HEADER_BYTES = 256 };
#define CALIBRATION_BYTES_MAX (INT64_C(512) << 20)

const skvq_api *plugin;
struct settings settings;

void say(enum ggml_log_level level, const char *format, ...)
{
	ggml_log_callback log;
	void *user;
	char line[768];
	va_list args;
	int n = snprintf(line, sizeof line, "skvq: ");

	va_start(args, format);
	vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
	va_end(args);
	strcat(line, "\n");
	ggml_log_get(&log, &user);
	if (log)
		log(level, line, user);
}

void plugin_log(void *user, int32_t level, const char *utf8)
{
	(void)user;
	say(level == SKVQ_LOG_DEBUG     ? GGML_LOG_LEVEL_DEBUG
	    : level == SKVQ_LOG_INFO    ? GGML_LOG_LEVEL_INFO
	    : level == SKVQ_LOG_WARNING ? GGML_LOG_LEVEL_WARN
					: GGML_LOG_LEVEL_ERROR,
	    "%s", utf8);
}

/* The last call used here: the table only grows at its end. */
static bool complete(const skvq_api *api)
{
	return api->struct_size >= offsetof(skvq_api, last_error) + sizeof api->last_error &&
	       api->open && api->close && api->model_register && api->seq_open && api->seq_commit &&
	       api->seq_truncate && api->append && api->attend && api->err_name && api->last_error;
}

/* $SKVQ_PLUGIN, or libskvq_plugin.so beside this library. */
static const skvq_api *load_api(void)
{
	const char *path = getenv("SKVQ_PLUGIN");
	char beside[PATH_MAX];

	if (!path || !*path) {
		Dl_info self;
		const char *slash = NULL;
		if (dladdr((void *)&settings, &self) && self.dli_fname)
			slash = strrchr(self.dli_fname, '/');
		int n = slash ? (int)(slash + 1 - self.dli_fname) : 0;
		snprintf(beside, sizeof beside, "%.*slibskvq_plugin.so", n, slash ? self.dli_fname : "");
		path = beside;
	}
	void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!so) {
		say(GGML_LOG_LEVEL_ERROR, "cannot load the plugin: %s", dlerror());
		return NULL;
	}
	skvq_plugin_api_fn entry;
	*(void **)&entry = dlsym(so, "skvq_plugin_api");
	const skvq_api *api = entry ? entry(SKVQ_ABI_MAJOR) : NULL;
	if (!api || !complete(api)) {
		say(GGML_LOG_LEVEL_ERROR, "'%s' is not an skvq plugin of ABI version %u", path,
		    SKVQ_ABI_MAJOR);
		dlclose(so);
		return NULL;
	}
	return api;
}

/* The plugin checks the file; here it is only asked which weights it belongs to, since no graph says
 * which model it computes. Of another model of the same shape it costs accuracy, nothing else. */
static bool load_calibration(const char *path)
{
	FILE *f = fopen(path, "rb");
	struct stat st;
	bool ok = f && fstat(fileno(f), &st) == 0 && S_ISREG(st.st_mode) &&
		  st.st_size >= CALIBRATION_HEADER_BYTES && st.st_size <= CALIBRATION_BYTES_MAX;

	if (ok) {
		settings.calibration_bytes = (uint64_t)st.st_size;
		settings.calibration = malloc(settings.calibration_bytes);
		ok = settings.calibration &&
		     fread(settings.calibration, 1, settings.calibration_bytes, f) ==
			 settings.calibration_bytes;
	}
	if (f)
		fclose(f);
	if (!ok) {
		say(GGML_LOG_LEVEL_ERROR, "cannot read the calibration '%s'", path);
		return false;
	}
	memcpy(settings.weights, (const char *)settings.calibration + CALIBRATION_WEIGHTS_AT,
	       sizeof settings.weights);
	return true;
}

bool plugin_load(void)
{
	const char *profile = getenv("SKVQ_GGML_PROFILE"), *prefill = getenv("SKVQ_GGML_PREFILL"),
		   *calibration = getenv("SKVQ_GGML_CALIBRATION");

	if (plugin)
		return true;
	if (prefill && *prefill && strcmp(prefill, "ggml") != 0 && strcmp(prefill, "skvq") != 0) {
		say(GGML_LOG_LEVEL_ERROR, "SKVQ_GGML_PREFILL is 'ggml' or 'skvq', not '%s'", prefill);
		return false;
	}
	settings.prefill = prefill && strcmp(prefill, "skvq") == 0;
	settings.profile = profile && *profile ? strdup(profile) : NULL; /* for good, as all of this */
	if (calibration && *calibration && !load_calibration(calibration))
		return false;
	plugin = load_api();
	return plugin;
}

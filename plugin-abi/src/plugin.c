/* SPDX-License-Identifier: Apache-2.0 */
/* The table behind the one exported symbol. */
#include "threads.h"

#include <string.h>

static const char *api_err_name(int32_t err)
{
	return skvq_err_name(err);
}

static const void *api_get_extension(skvq_session *session, const char *id)
{
	(void)session;
	if (id && strcmp(id, SKVQ_EXT_CALIBRATION) == 0)
		return &checked_calibration;
	if (id && strcmp(id, SKVQ_EXT_PREFETCH) == 0)
		return &checked_prefetch;
	return 0;
}

static const skvq_api api = {
    .struct_size = sizeof(skvq_api),
    .abi_minor = SKVQ_ABI_MINOR,
    .open = api_open,
    .close = CHECKED(close),
    .model_register = CHECKED(model_register),
    .model_unregister = CHECKED(model_unregister),
    .seq_open = CHECKED(seq_open),
    .seq_poll = CHECKED(seq_poll),
    .session_fd = CHECKED(session_fd),
    .seq_commit = CHECKED(seq_commit),
    .seq_fork = CHECKED(seq_fork),
    .seq_truncate = CHECKED(seq_truncate),
    .seq_close = CHECKED(seq_close),
    .seq_snapshot = CHECKED(seq_snapshot),
    .seq_resume = CHECKED(seq_resume),
    .seq_info = CHECKED(seq_info),
    .stats = CHECKED(stats),
    .append = CHECKED(append),
    .attend = CHECKED(attend),
    .export_kv = CHECKED(export),
    .err_name = api_err_name,
    .last_error = CHECKED(last_error),
    .get_extension = api_get_extension,
};

const skvq_api *skvq_plugin_api(uint32_t major)
{
	return major == SKVQ_ABI_MAJOR ? &api : 0;
}

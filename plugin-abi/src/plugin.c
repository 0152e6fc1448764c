/* SPDX-License-Identifier: Apache-2.0 */
/* The table behind the one exported symbol. */
#include "internal.h"

#include <string.h>

static const char *api_err_name(int32_t err)
{
	return skvq_err_name(err);
}

static const void *api_get_extension(skvq_session *session, const char *id)
{
	(void)session;
	if (id && strcmp(id, SKVQ_EXT_CALIBRATION) == 0)
		return &ext_calibration;
	if (id && strcmp(id, SKVQ_EXT_PREFETCH) == 0)
		return &ext_prefetch;
	return 0;
}

static const skvq_api api = {
    .struct_size = sizeof(skvq_api),
    .abi_minor = SKVQ_ABI_MINOR,
    .open = api_open,
    .close = api_close,
    .model_register = api_model_register,
    .model_unregister = api_model_unregister,
    .seq_open = api_seq_open,
    .seq_poll = api_seq_poll,
    .session_fd = api_session_fd,
    .seq_commit = api_seq_commit,
    .seq_fork = api_seq_fork,
    .seq_truncate = api_seq_truncate,
    .seq_close = api_seq_close,
    .seq_snapshot = api_seq_snapshot,
    .seq_resume = api_seq_resume,
    .seq_info = api_seq_info,
    .stats = api_stats,
    .append = api_append,
    .attend = api_attend,
    .export_kv = api_export,
    .err_name = api_err_name,
    .last_error = api_last_error,
    .get_extension = api_get_extension,
};

const skvq_api *skvq_plugin_api(uint32_t major)
{
	return major == SKVQ_ABI_MAJOR ? &api : 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* A plugin of the frozen version that can do nothing, and says so: what matters is that an engine
 * built today reads its table and its codes as they were released. */
#include <skvq/plugin.h>

static int32_t stub_open(const skvq_engine *engine, const char *socket, skvq_session **ret)
{
	(void)engine;
	(void)socket;
	(void)ret;
	return -SKVQ_ENOTSUP;
}

static const char *stub_err_name(int32_t err)
{
	return err == -SKVQ_ENOTSUP ? "stub" : "unknown";
}

static const skvq_api api = {
    .struct_size = sizeof(skvq_api),
    .open = stub_open,
    .err_name = stub_err_name,
};

const skvq_api *skvq_plugin_api(uint32_t major)
{
	return major == 1 ? &api : 0;
}

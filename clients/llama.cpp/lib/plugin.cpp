// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <cstddef>
#include <cstdlib>

#include <dlfcn.h>
#include <limits.h>
#include <unistd.h>

#include "error.h"

namespace skvq
{

namespace
{

std::string default_path()
{
	const char *env = std::getenv("SKVQ_PLUGIN");
	if (env && *env)
		return env;
	char exe[PATH_MAX];
	const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
	std::string dir = n > 0 ? std::string(exe, static_cast<size_t>(n)) : "./x";
	dir.resize(dir.rfind('/'));
	return dir + "/../lib/libskvq_plugin.so";
}

// The last call this client uses: a table that reaches it has all the others, since the table only
// ever grows at its end.
constexpr size_t table_bytes_needed = offsetof(skvq_api, last_error) + sizeof(void *);

bool complete(const skvq_api &api)
{
	return api.struct_size >= table_bytes_needed && api.open && api.close &&
	       api.model_register && api.model_unregister && api.seq_open && api.seq_poll &&
	       api.seq_commit && api.seq_truncate && api.seq_close && api.seq_info && api.append &&
	       api.attend && api.err_name && api.last_error;
}

} // namespace

Plugin::Plugin(const char *path)
{
	const std::string file = path && *path ? path : default_path();
	handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
	if (!handle_) {
		const char *why = dlerror();
		throw Error(SKVQ_ESYS,
			    "cannot load the skvq plugin: " + std::string(why ? why : file));
	}
	const auto entry = reinterpret_cast<skvq_plugin_api_fn>(dlsym(handle_, "skvq_plugin_api"));
	api_ = entry ? entry(SKVQ_ABI_MAJOR) : nullptr;
	if (!api_ || !complete(*api_)) {
		dlclose(handle_);
		throw Error(SKVQ_EVERSION, "'" + file + "' is not an skvq plugin of ABI version " +
					       std::to_string(SKVQ_ABI_MAJOR));
	}
}

Plugin::~Plugin()
{
	dlclose(handle_);
}

} // namespace skvq

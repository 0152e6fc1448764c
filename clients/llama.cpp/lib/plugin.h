// SPDX-License-Identifier: Apache-2.0
//
// Finds and loads libskvq_plugin.so. The table of calls is valid as long as the Plugin lives.
#ifndef SKVQ_LLAMA_PLUGIN_H
#define SKVQ_LLAMA_PLUGIN_H

#include <string>

#include <skvq/plugin.h>

namespace skvq
{

class Plugin
{
      public:
	// path, or $SKVQ_PLUGIN, or ../lib/libskvq_plugin.so beside the executable. Throws Error
	// naming the file that could not be used.
	explicit Plugin(const char *path);
	~Plugin();
	Plugin(const Plugin &) = delete;
	Plugin &operator=(const Plugin &) = delete;

	const skvq_api *operator->() const
	{
		return api_;
	}
	const skvq_api *get() const
	{
		return api_;
	}

      private:
	void *handle_ = nullptr;
	const skvq_api *api_ = nullptr;
};

} // namespace skvq

#endif

// SPDX-License-Identifier: Apache-2.0
//
// A copy in memory of a GGUF model that says it was trained for more tokens. Nothing else in it
// changes, and nothing that is computed: it lets a context be longer than the weights are good for.
#ifndef BENCH_DECODE_MODEL_COPY_H
#define BENCH_DECODE_MODEL_COPY_H

#include <cstdint>
#include <string>

class ModelCopy
{
      public:
	ModelCopy(const std::string &path, uint32_t context_length);
	~ModelCopy();
	ModelCopy(const ModelCopy &) = delete;
	ModelCopy &operator=(const ModelCopy &) = delete;
	const std::string &path() const
	{
		return path_;
	}

      private:
	int fd_;
	std::string path_;
};

#endif

// SPDX-License-Identifier: Apache-2.0
//
// Runs a function on ggml's own team of threads.
//
// A second set of threads would fight with ggml's, which spin between graph nodes. So the function
// is wrapped in a graph of one custom node that ggml computes like any other, with the thread pool
// that the llama_context uses too. It works the same in ggml's OpenMP builds (its team is
// libgomp's, the pool is then only a description) and in the others.
#ifndef SKVQ_LLAMA_TEAM_H
#define SKVQ_LLAMA_TEAM_H

#include <cstdint>
#include <memory>
#include <vector>

#include <ggml-cpu.h>

namespace skvq
{

class Team
{
      public:
	using Work = void (*)(void *user, uint32_t ith, uint32_t nth);

	// Throws Error.
	explicit Team(uint32_t n_threads);
	~Team();
	Team(const Team &) = delete;
	Team &operator=(const Team &) = delete;

	// To be attached to the llama_context; freed with the team.
	ggml_threadpool *pool() const
	{
		return pool_;
	}

	// Calls work once per thread and returns when all are done. False if ggml refused.
	bool run(Work work, void *user);

      private:
	static void node(ggml_tensor *dst, int ith, int nth, void *user);

	struct ContextDeleter {
		void operator()(ggml_context *ctx) const
		{
			ggml_free(ctx);
		}
	};

	Work work_ = nullptr;
	void *user_ = nullptr;
	ggml_threadpool *pool_ = nullptr;
	std::unique_ptr<ggml_context, ContextDeleter> ctx_;
	ggml_cgraph *graph_ = nullptr; // in ctx_
	ggml_cplan plan_{};
	std::vector<uint8_t> scratch_;
};

} // namespace skvq

#endif

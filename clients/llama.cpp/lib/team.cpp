// SPDX-License-Identifier: Apache-2.0
#include "team.h"

#include "error.h"

namespace skvq
{

Team::Team(uint32_t n_threads)
{
	constexpr size_t n_nodes = 4;
	const ggml_init_params memory = {
	    2 * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false) + 1024,
	    nullptr,
	    false,
	};
	ctx_.reset(ggml_init(memory));
	if (!ctx_)
		throw Error(SKVQ_ENOMEM, "ggml cannot take memory for a graph of one node");
	ggml_tensor *tensor = ggml_custom_4d(ctx_.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0,
					     node, GGML_N_TASKS_MAX, this);
	graph_ = ggml_new_graph_custom(ctx_.get(), n_nodes, false);
	ggml_build_forward_expand(graph_, tensor);

	ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(n_threads));
	pool_ = ggml_threadpool_new(&params);
	if (!pool_)
		throw Error(SKVQ_ENOMEM, "ggml cannot start a pool of " +
					     std::to_string(n_threads) + " threads");
	plan_ = ggml_graph_plan(graph_, static_cast<int>(n_threads), pool_);
	scratch_.resize(plan_.work_size);
	plan_.work_data = scratch_.data();
}

Team::~Team()
{
	ggml_threadpool_free(pool_);
}

void Team::node(ggml_tensor *, int ith, int nth, void *user)
{
	const Team *team = static_cast<const Team *>(user);
	team->work_(team->user_, static_cast<uint32_t>(ith), static_cast<uint32_t>(nth));
}

bool Team::run(Work work, void *user)
{
	work_ = work;
	user_ = user;
	return ggml_graph_compute(graph_, &plan_) == GGML_STATUS_SUCCESS;
}

} // namespace skvq

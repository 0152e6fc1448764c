/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

enum { NODES_MAX = 64 }; /* a layer has three for us, and views */

typedef struct ggml_threadpool *(*pool_new_fn)(struct ggml_threadpool_params *params);
typedef void (*pool_free_fn)(struct ggml_threadpool *pool);
typedef void (*set_pool_fn)(ggml_backend_t backend, struct ggml_threadpool *pool);

struct cpu {
	ggml_backend_t backend;
	ggml_backend_set_n_threads_t set_n_threads;
	pool_new_fn pool_new;
	pool_free_fn pool_free;
	set_pool_fn set_pool;
	struct ggml_threadpool *pool;
	int n_threads;
	int pool_threads;
	struct ggml_context *ctx;   /* holds the graphs            */
	struct ggml_cgraph *nodes;  /* what is to be computed next */
	struct ggml_cgraph *shared; /* one node that calls work    */
	cpu_work work;
	void *user;
};

static void run_share(struct ggml_tensor *dst, int ith, int nth, void *user)
{
	struct cpu *cpu = user;

	(void)dst;
	cpu->work(cpu->user, (uint32_t)ith, (uint32_t)nth);
}

/* ggml-cpu may be a library that is loaded at run time: what is not ggml-base's is asked for. */
static void *cpu_function(ggml_backend_dev_t dev, const char *name)
{
	return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name);
}

struct cpu *cpu_new(void)
{
	ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
	struct cpu *cpu = dev ? calloc(1, sizeof *cpu) : NULL;
	if (!cpu)
		return NULL;
	*(void **)&cpu->set_n_threads = cpu_function(dev, "ggml_backend_set_n_threads");
	*(void **)&cpu->pool_new = cpu_function(dev, "ggml_threadpool_new");
	*(void **)&cpu->pool_free = cpu_function(dev, "ggml_threadpool_free");
	*(void **)&cpu->set_pool = cpu_function(dev, "ggml_backend_cpu_set_threadpool");
	cpu->backend = ggml_backend_dev_init(dev, NULL);
	cpu->ctx = ggml_init((struct ggml_init_params){
	    .mem_size = ggml_graph_overhead_custom(NODES_MAX, false) +
			ggml_graph_overhead_custom(1, false) + 4 * ggml_tensor_overhead() + 1024,
	});
	if (!cpu->backend || !cpu->ctx) {
		cpu_free(cpu);
		return NULL;
	}
	cpu->nodes = ggml_new_graph_custom(cpu->ctx, NODES_MAX, false);
	cpu->shared = ggml_new_graph_custom(cpu->ctx, 1, false);
	ggml_build_forward_expand(cpu->shared,
				  ggml_custom_4d(cpu->ctx, GGML_TYPE_F32, 1, 1, 1, 1, NULL, 0,
						 run_share, GGML_N_TASKS_MAX, cpu));
	cpu_set_threads(cpu, 1);
	return cpu;
}

void cpu_free(struct cpu *cpu)
{
	if (!cpu)
		return;
	if (cpu->backend)
		ggml_backend_free(cpu->backend);
	if (cpu->pool)
		cpu->pool_free(cpu->pool);
	ggml_free(cpu->ctx);
	free(cpu);
}

/* Without OpenMP, ggml would start threads for each of our small graphs; a pool keeps them. They must
 * not spin while llama.cpp's own work. With OpenMP the team is libgomp's and the pool a description. */
static void grow_pool(struct cpu *cpu, int n_threads)
{
	if (!cpu->pool_new || !cpu->pool_free || !cpu->set_pool || n_threads <= cpu->pool_threads)
		return;
	struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
	params.poll = 0;
	struct ggml_threadpool *pool = cpu->pool_new(&params);
	if (!pool)
		return;
	cpu->set_pool(cpu->backend, pool);
	if (cpu->pool)
		cpu->pool_free(cpu->pool);
	cpu->pool = pool;
	cpu->pool_threads = n_threads;
}

void cpu_set_threads(struct cpu *cpu, int n_threads)
{
	if (n_threads < 1 || n_threads == cpu->n_threads)
		return;
	if (n_threads > 1)
		grow_pool(cpu, n_threads);
	if (cpu->set_n_threads)
		cpu->set_n_threads(cpu->backend, n_threads);
	cpu->n_threads = n_threads;
}

enum ggml_status cpu_add(struct cpu *cpu, struct ggml_tensor *node)
{
	enum ggml_status status = GGML_STATUS_SUCCESS;

	if (ggml_graph_n_nodes(cpu->nodes) == NODES_MAX)
		status = cpu_compute(cpu);
	ggml_graph_add_node(cpu->nodes, node);
	return status;
}

enum ggml_status cpu_compute(struct cpu *cpu)
{
	enum ggml_status status = GGML_STATUS_SUCCESS;

	if (ggml_graph_n_nodes(cpu->nodes))
		status = ggml_backend_graph_compute(cpu->backend, cpu->nodes);
	ggml_graph_clear(cpu->nodes);
	return status;
}

enum ggml_status cpu_run(struct cpu *cpu, cpu_work work, void *user)
{
	if (cpu->n_threads == 1) {
		work(user, 0, 1);
		return GGML_STATUS_SUCCESS;
	}
	cpu->work = work;
	cpu->user = user;
	return ggml_backend_graph_compute(cpu->backend, cpu->shared);
}

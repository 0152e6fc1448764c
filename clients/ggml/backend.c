/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libggml-skvq.so: a ggml backend for programs that know nothing of skvqd. ggml gives it the nodes that
 * write llama.cpp's cache and those that attend to it; the rest is not its business. It computes in
 * main memory, like ggml-blas, which it follows.
 */
#include <stdlib.h>
#include <string.h>

#include <ggml.h>
#include <ggml-backend.h>
#include <ggml-backend-impl.h>

#include "attention.h"
#include "counters.h"
#include "cpu.h"
#include "plugin.h"

/* One for each llama_context. */
struct skvq_backend {
	struct ggml_backend base;
	struct cpu *cpu;
	struct attention *attention;
};

static struct skvq_backend *from_base(ggml_backend_t backend)
{
	return backend->context;
}

/* ---- backend ---- */

static const char *get_name(ggml_backend_t backend)
{
	(void)backend;
	return "SKVQ";
}

static void backend_free(ggml_backend_t base)
{
	struct skvq_backend *b = from_base(base);

	attention_free(b->attention);
	cpu_free(b->cpu);
	free(b);
}

static enum ggml_status graph_compute(ggml_backend_t base, struct ggml_cgraph *graph)
{
	struct skvq_backend *b = from_base(base);
	enum ggml_status status = GGML_STATUS_SUCCESS;
	int n = ggml_graph_n_nodes(graph);

	for (int i = 0; i < n && status == GGML_STATUS_SUCCESS; i++) {
		struct ggml_tensor *node = ggml_graph_node(graph, i);

		if (!(node->flags & GGML_TENSOR_FLAG_COMPUTE))
			continue;
		if (node->op == GGML_OP_SET_ROWS)
			attention_see_write(b->attention, node);
		if (node->op == GGML_OP_FLASH_ATTN_EXT) {
			status = cpu_compute(b->cpu); /* what it reads */
			if (status != GGML_STATUS_SUCCESS || attention_compute(b->attention, node))
				continue;
		}
		status = cpu_add(b->cpu, node);
	}
	enum ggml_status rest = cpu_compute(b->cpu);
	return status == GGML_STATUS_SUCCESS ? rest : status;
}

static void set_n_threads(ggml_backend_t base, int n_threads)
{
	cpu_set_threads(from_base(base)->cpu, n_threads);
}

static ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *params)
{
	static ggml_guid guid = {0x73, 0x6b, 0x76, 0x71, 0x64, 0x2d, 0x67, 0x67,
				 0x6d, 0x6c, 0x2d, 0x72, 0x6f, 0x75, 0x74, 0x65};
	struct skvq_backend *b = calloc(1, sizeof *b);

	(void)params;
	if (!b)
		return NULL;
	b->base = (struct ggml_backend){
	    .guid = &guid,
	    .iface = {.get_name = get_name, .free = backend_free, .graph_compute = graph_compute},
	    .device = dev,
	    .context = b,
	};
	b->cpu = cpu_new();
	b->attention = b->cpu ? attention_new(b->cpu) : NULL;
	if (!b->attention) {
		say(GGML_LOG_LEVEL_ERROR, "no memory, or no CPU backend beside this one");
		backend_free(&b->base);
		return NULL;
	}
	return &b->base;
}

/* ---- device ---- */

static const char *device_name(ggml_backend_dev_t dev)
{
	(void)dev;
	return "SKVQ";
}

static const char *device_description(ggml_backend_dev_t dev)
{
	(void)dev;
	return "attention over skvq pages";
}

static void device_memory(ggml_backend_dev_t dev, size_t *free, size_t *total)
{
	(void)dev;
	*free = *total = 0; /* none of its own to place tensors in */
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t dev)
{
	(void)dev;
	return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void device_props(ggml_backend_dev_t dev, struct ggml_backend_dev_props *props)
{
	*props = (struct ggml_backend_dev_props){
	    .name = device_name(dev),
	    .description = device_description(dev),
	    .type = device_type(dev),
	    .caps = {.buffer_from_host_ptr = true, .mmap_support = true},
	};
}

static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t dev)
{
	(void)dev;
	return ggml_backend_cpu_buffer_type();
}

static ggml_backend_buffer_t buffer_from_ptr(ggml_backend_dev_t dev, void *ptr, size_t size,
					     size_t max_tensor_size)
{
	(void)dev;
	(void)max_tensor_size;
	return ggml_backend_cpu_buffer_from_ptr(ptr, size);
}

static bool supports_op(ggml_backend_dev_t dev, const struct ggml_tensor *op)
{
	(void)dev;
	switch (op->op) {
	case GGML_OP_NONE:
	case GGML_OP_RESHAPE:
	case GGML_OP_VIEW:
	case GGML_OP_PERMUTE:
	case GGML_OP_TRANSPOSE:
		return true;
	case GGML_OP_SET_ROWS:
		return attention_takes_write(op);
	case GGML_OP_FLASH_ATTN_EXT:
		return attention_takes(op);
	default:
		return false;
	}
}

static bool supports_buffer(ggml_backend_dev_t dev, ggml_backend_buffer_type_t type)
{
	(void)dev;
	return ggml_backend_buft_is_host(type);
}

/* ---- registration ---- */

static const char *reg_name(ggml_backend_reg_t reg)
{
	(void)reg;
	return "SKVQ";
}

static size_t device_count(ggml_backend_reg_t reg)
{
	(void)reg;
	return 1;
}

static ggml_backend_dev_t get_device(ggml_backend_reg_t reg, size_t index)
{
	static struct ggml_backend_device device = {
	    .iface =
		{
		    .get_name = device_name,
		    .get_description = device_description,
		    .get_memory = device_memory,
		    .get_type = device_type,
		    .get_props = device_props,
		    .init_backend = init_backend,
		    .get_buffer_type = buffer_type,
		    .buffer_from_host_ptr = buffer_from_ptr,
		    .supports_op = supports_op,
		    .supports_buft = supports_buffer,
		},
	};

	(void)index;
	device.reg = reg;
	return &device;
}

static void *get_proc_address(ggml_backend_reg_t reg, const char *name)
{
	(void)reg;
	if (strcmp(name, "ggml_backend_set_n_threads") == 0)
		return (void *)set_n_threads;
	if (strcmp(name, SKVQ_GGML_COUNTERS) == 0)
		return (void *)counters_get;
	return NULL;
}

/* What ggml looks for. Tensors, graphs and the tables above are laid out as in the ggml this was
 * compiled with; api_version says so of the tables alone, so any other build is refused. */
SKVQ_EXPORT ggml_backend_reg_t ggml_backend_init(void);

ggml_backend_reg_t ggml_backend_init(void)
{
	static struct ggml_backend_reg reg = {
	    .api_version = GGML_BACKEND_API_VERSION,
	    .iface =
		{
		    .get_name = reg_name,
		    .get_device_count = device_count,
		    .get_device = get_device,
		    .get_proc_address = get_proc_address,
		},
	};

	if (strcmp(ggml_version(), SKVQ_GGML_VERSION) != 0 ||
	    strcmp(ggml_commit(), SKVQ_GGML_COMMIT) != 0) {
		say(GGML_LOG_LEVEL_ERROR,
		    "built for ggml %s (%s) and loaded into ggml %s (%s): not used",
		    SKVQ_GGML_VERSION, SKVQ_GGML_COMMIT, ggml_version(), ggml_commit());
		return NULL;
	}
	return plugin_load() ? &reg : NULL;
}

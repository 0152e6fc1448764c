/* SPDX-License-Identifier: Apache-2.0 */
#include "spill/io.h"

#include <stdlib.h>
#include <string.h>

#include <skvq/error.h>

#include "spill/io_thread.h"

int spill_io_new(const struct spill_io_config *config, struct spill_io **ret_io, struct why *why)
{
	struct folder *folder = calloc(1, sizeof(*folder));
	struct why warning = {""}, no_ring = {""};
	struct spill_io *io = NULL;
	int r;

	if (!folder)
		return why_fail(why, SKVQ_ENOMEM, "no memory");
	r = folder_init(folder, config, &warning, why);
	if (r < 0)
		goto fail;
	r = config->no_uring ? -SKVQ_ENOTSUP
			     : spill_io_uring_new(folder, config->depth,
						  config->work_threads ? config->work_threads : 1,
						  &io, &no_ring);
	if (r < 0) {
		r = spill_io_threads_new(folder, config->threads, &io);
		if (r < 0) {
			(void)why_fail(why, SKVQ_ENOMEM,
				       "no memory, or no thread (TasksMax, RLIMIT_NPROC), for the "
				       "store in '%s'",
				       config->folder);
			goto fail;
		}
	}
	/* One sentence is enough to look into it; the ring matters more. */
	io->warning = no_ring.text[0] ? no_ring : warning;
	*ret_io = io;
	return 0;
fail:
	folder_fini(folder);
	free(folder);
	return r;
}

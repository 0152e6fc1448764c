/* SPDX-License-Identifier: Apache-2.0 */
/* staging_add and staging_drop: is this descriptor safe to read a page from, now and later? */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <skvq/error.h>

#include "control/dispatch.h"

int check_memfd(int fd, struct why *why)
{
	int seals = fcntl(fd, F_GET_SEALS);
	int mode = fcntl(fd, F_GETFL);
	struct stat st;

	if (seals < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return why_fail(why, SKVQ_EFD, "the descriptor is not a memfd");
	if (mode < 0 || (mode & O_ACCMODE) == O_WRONLY)
		return why_fail(why, SKVQ_EFD,
				"the memfd cannot be read: it is open for writing only");
	if ((seals & F_SEAL_GROW) && (seals & F_SEAL_SHRINK))
		return 0;
	return why_fail(why, SKVQ_ESEALS, "the memfd lacks the seals%s%s",
			seals & F_SEAL_GROW ? "" : " GROW", seals & F_SEAL_SHRINK ? "" : " SHRINK");
}

int op_staging_add(const struct request *rq, struct why *why)
{
	Skvq__Wire__StagingReply body = SKVQ__WIRE__STAGING_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	int *fd = &rq->frame->fds[0];
	int err = check_memfd(*fd, why);

	if (!err)
		err = session_add_staging(rq->session, *fd, &body.staging, why);
	if (err < 0)
		return err;
	*fd = -1; /* the session's now */
	reply.body_case = SKVQ__WIRE__REPLY__BODY_STAGING_ADD;
	reply.staging_add = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_staging_drop(const struct request *rq, struct why *why)
{
	Skvq__Wire__Empty body = SKVQ__WIRE__EMPTY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	uint32_t id = rq->msg->staging_drop->staging;
	struct staging *staging = session_staging(rq->session, id, why);

	if (!staging)
		return -SKVQ_EINVAL;
	session_drop_staging(rq->session, staging);
	reply.body_case = SKVQ__WIRE__REPLY__BODY_STAGING_DROP;
	reply.staging_drop = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* The extension skvq.calibration/1: what the daemon keeps for engines that want to agree. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

static int attached(struct skvq_session *s)
{
	if (check_fork(s) < 0)
		return -SKVQ_EFORKED;
	session_pump(s, 0);
	return s->daemon == DAEMON_ATTACHED
	           ? 0
	           : set_error(s, SKVQ_ENODAEMON, "there is no daemon to keep calibrations");
}

/* After a call on the client failed. */
static int failed(struct skvq_session *s, int r)
{
	set_error(s, -r, "%s", skvq_client_why(s->client));
	if (skvq_client_broken(s->client))
		session_lost(s);
	return r;
}

/* Reads, rather than maps: nothing the other side does can be a SIGBUS here. */
static int read_all(struct skvq_session *s, int fd, uint8_t *buf, uint64_t n)
{
	for (uint64_t at = 0; at < n;) {
		ssize_t got = pread(fd, buf + at, n - at, (off_t)at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return set_error(s, SKVQ_ESHORT, "the daemon's calibration ends at byte %llu",
			                 (unsigned long long)at);
		at += (uint64_t)got;
	}
	return 0;
}

static int32_t calibration_get(skvq_session *s, const skvq_calibration_of *model, void *buf,
                               uint64_t buf_bytes, uint64_t *ret_bytes)
{
	skvq_calibration_of m;
	uint64_t n = 0;
	int fd = -1;

	if (!s || !ret_bytes || (!buf && buf_bytes))
		return -SKVQ_EINVAL;
	int r = attached(s);
	if (r < 0)
		return r;
	if (copy_in(&m, sizeof m, model) < 0 || !m.weights_digest)
		return set_error(s, SKVQ_EINVAL, "calibration_of: struct_size or weights_digest");
	r = skvq_client_calibration_get(s->client, m.weights_digest, m.n_layer, m.n_q_heads,
	                                m.n_kv_heads, m.head_dim_k, m.head_dim_v, &n, &fd);
	if (r < 0)
		return failed(s, r);
	struct stat st;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		r = set_error(s, SKVQ_EFD, "the daemon's calibration is not a memfd");
	else if (n > SKVQ_CALIBRATION_BYTES_MAX)
		r = set_error(s, SKVQ_EPROTO, "the daemon's calibration has %llu bytes",
		              (unsigned long long)n);
	else if (buf_bytes >= n)
		r = read_all(s, fd, buf, n);
	close(fd);
	if (r == 0)
		*ret_bytes = n;
	return r;
}

static int32_t calibration_put(skvq_session *s, const void *bytes, uint64_t n_bytes)
{
	if (!s || !bytes || !n_bytes)
		return -SKVQ_EINVAL;
	int r = attached(s);
	if (r < 0)
		return r;
	int fd = memfd_create("skvq-calibration",
	                      MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* Linux before 6.3 */
		fd = memfd_create("skvq-calibration", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return set_error(s, SKVQ_ESYS, "memfd_create: %s", strerror(errno));
	for (uint64_t at = 0; at < n_bytes;) {
		ssize_t put = write(fd, (const uint8_t *)bytes + at, n_bytes - at);

		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0) {
			r = set_error(s, SKVQ_ENOMEM, "writing a calibration of %llu bytes: %s",
			              (unsigned long long)n_bytes, strerror(errno));
			goto out;
		}
		at += (uint64_t)put;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0) {
		r = set_error(s, SKVQ_ESYS, "sealing a calibration: %s", strerror(errno));
		goto out;
	}
	r = skvq_client_calibration_put(s->client, fd, n_bytes, false);
	if (r < 0)
		r = failed(s, r);
out:
	close(fd);
	return r;
}

const skvq_ext_calibration ext_calibration = {
    .struct_size = sizeof(skvq_ext_calibration),
    .get = calibration_get,
    .put = calibration_put,
};

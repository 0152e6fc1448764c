/* SPDX-License-Identifier: Apache-2.0 */
#include "control/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"

#define BACKLOG       128
#define LOCK_TRIES    50
#define LOCK_RETRY_NS (20 * 1000 * 1000)

/* Two daemons that start at once on one stale path would each remove the other's new socket. A lock
 * on the folder lets them go one by one and leaves no file behind. */
static int lock_folder(const char *path, struct why *why)
{
	char folder[LISTEN_PATH_MAX + 2];
	const char *slash = strrchr(path, '/');
	size_t len = slash ? (size_t)(slash - path) : 0;
	CLEANUP_FD int fd = -1;

	if (slash)
		(void)snprintf(folder, sizeof(folder), "%.*s/", (int)len, path);
	else
		(void)snprintf(folder, sizeof(folder), ".");
	fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return why_fail_errno(why, errno == EACCES ? SKVQ_EPERM : SKVQ_ESYS,
				      "folder \"%s\" of the socket", folder);
	for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
		struct timespec pause = {.tv_nsec = LOCK_RETRY_NS};

		if (errno != EWOULDBLOCK && errno != EINTR)
			return why_fail_errno(why, SKVQ_ESYS, "locking folder \"%s\"", folder);
		if (i == LOCK_TRIES)
			return why_fail(why, SKVQ_EINUSE,
					"folder \"%s\" is locked: is another daemon just starting?",
					folder);
		(void)nanosleep(&pause, NULL);
	}
	return steal_fd(&fd);
}

/* Whether the path is free for bind, after removing a socket that nobody serves. */
static int clear_path(const struct sockaddr_un *addr, struct why *why)
{
	const char *path = addr->sun_path;
	CLEANUP_FD int fd = -1;
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT
			   ? 0
			   : why_fail_errno(why, SKVQ_ESYS, "looking at socket path \"%s\"", path);
	if (!S_ISSOCK(st.st_mode))
		return why_fail(why, SKVQ_EPATH, "\"%s\" exists and is not a socket", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return why_fail_errno(why, SKVQ_ESYS, "socket");
	/* EAGAIN: somebody listens and is merely busy. */
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN)
		return why_fail(why, SKVQ_EINUSE, "a running daemon serves \"%s\"", path);
	if (errno != ECONNREFUSED)
		return why_fail_errno(why, errno == EACCES ? SKVQ_EPERM : SKVQ_ESYS,
				      "asking who serves \"%s\"", path);
	if (unlink(path) < 0 && errno != ENOENT)
		return why_fail_errno(why, SKVQ_ESYS, "removing the stale socket \"%s\"", path);
	return 0;
}

static int bind_with_mode(int fd, const struct sockaddr_un *addr, mode_t mode)
{
	mode_t old = umask(0777 & ~mode);
	int r = bind(fd, (const struct sockaddr *)addr, sizeof(*addr));
	int saved = errno;

	(void)umask(old);
	errno = saved;
	return r;
}

int listener_init(struct listener *listener, const char *path, mode_t mode, struct why *why)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	CLEANUP_FD int lock = -1;
	CLEANUP_FD int fd = -1;
	size_t len = strlen(path);
	struct stat st;
	int err;

	*listener = (struct listener){.fd = -1};
	if (len == 0 || len > LISTEN_PATH_MAX)
		return why_fail(why, SKVQ_EPATH,
				"socket path \"%.40s%s\" has %zu bytes; it may have 1 to %zu "
				"(sun_path is %zu with its zero)",
				path, len > 40 ? "..." : "", len, LISTEN_PATH_MAX,
				sizeof(addr.sun_path));
	memcpy(addr.sun_path, path, len + 1);
	lock = lock_folder(path, why);
	if (lock < 0)
		return lock;
	err = clear_path(&addr, why);
	if (err < 0)
		return err;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return why_fail_errno(why, SKVQ_ESYS, "socket");
	if (bind_with_mode(fd, &addr, mode) < 0)
		return why_fail_errno(why, errno == EACCES ? SKVQ_EPERM : SKVQ_ESYS,
				      "binding \"%s\"", path);
	if (listen(fd, BACKLOG) < 0 || lstat(path, &st) < 0) {
		(void)why_fail_errno(why, SKVQ_ESYS, "listening on \"%s\"", path);
		(void)unlink(path);
		return -SKVQ_ESYS;
	}
	memcpy(listener->path, path, len + 1);
	listener->dev = st.st_dev;
	listener->ino = st.st_ino;
	listener->fd = steal_fd(&fd);
	return 0;
}

static int option_of(int fd, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, option, &value, &len) < 0 ? -1 : value;
}

bool listener_is_socket(int fd)
{
	return option_of(fd, SO_ACCEPTCONN) == 1;
}

void listener_where(int fd, char path[LISTEN_PATH_MAX + 1])
{
	struct sockaddr_un addr = {0};
	socklen_t len = sizeof(addr);

	path[0] = '\0';
	if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0 || addr.sun_family != AF_UNIX)
		return;
	memcpy(path, addr.sun_path, LISTEN_PATH_MAX);
	path[LISTEN_PATH_MAX] = '\0';
}

int listener_adopt(struct listener *listener, const char *path, int fd, struct why *why)
{
	CLEANUP_FD int own = fd;
	char where[LISTEN_PATH_MAX + 1];
	int flags = fcntl(fd, F_GETFL);

	*listener = (struct listener){.fd = -1};
	listener_where(fd, where);
	if (option_of(fd, SO_DOMAIN) != AF_UNIX || option_of(fd, SO_TYPE) != SOCK_STREAM ||
	    !listener_is_socket(fd))
		return why_fail(why, SKVQ_EPATH,
				"what was passed for \"%s\" is no Unix stream socket that listens", path);
	if (strcmp(where, path) != 0)
		return why_fail(why, SKVQ_EPATH, "the socket passed for \"%s\" is bound to \"%s\"", path,
				where);
	/* To listen again changes who SO_PEERCRED says we are. */
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || listen(fd, BACKLOG) < 0)
		return why_fail_errno(why, SKVQ_ESYS, "the socket passed for \"%s\"", path);
	memcpy(listener->path, where, sizeof(where));
	listener->kept = true;
	listener->fd = steal_fd(&own);
	return 0;
}

void listener_fini(struct listener *listener)
{
	struct stat st;

	if (listener->fd < 0)
		return;
	if (!listener->kept && lstat(listener->path, &st) == 0 && st.st_dev == listener->dev &&
	    st.st_ino == listener->ino)
		(void)unlink(listener->path);
	(void)close(listener->fd);
	listener->fd = -1;
}

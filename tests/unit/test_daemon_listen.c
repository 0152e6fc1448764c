/* SPDX-License-Identifier: Apache-2.0 */
/* control/listen: whose socket file it is. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmocka_all.h"

#include <skvq/error.h>

#include "control/listen.h"

static char dir[] = "/tmp/skvqd-listen-XXXXXX";
static char path[64];
static struct why why;

static int group_setup(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/s", dir);
	return 0;
}

static int group_teardown(void **state)
{
	(void)state;
	return rmdir(dir); /* fails if anything was left behind */
}

static void makes_and_removes(void **state)
{
	struct listener l;
	struct stat st;

	(void)state;
	assert_int_equal(listener_init(&l, path, 0640, &why), 0);
	assert_int_equal(lstat(path, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(st.st_mode & 0777, 0640);
	assert_true(fcntl(l.fd, F_GETFD) & FD_CLOEXEC);
	listener_fini(&l);
	assert_int_equal(lstat(path, &st), -1);
	listener_fini(&l);
}

static void in_use_is_refused(void **state)
{
	struct listener a, b;

	(void)state;
	assert_int_equal(listener_init(&a, path, 0600, &why), 0);
	assert_int_equal(listener_init(&b, path, 0600, &why), -SKVQ_EINUSE);
	assert_non_null(strstr(why.text, path));
	listener_fini(&b); /* must not remove a's */
	assert_int_equal(access(path, F_OK), 0);
	listener_fini(&a);
}

static void stale_is_replaced(void **state)
{
	struct listener a, b;

	(void)state;
	assert_int_equal(listener_init(&a, path, 0600, &why), 0);
	close(a.fd); /* died without unlinking */
	a.fd = -1;
	assert_int_equal(listener_init(&b, path, 0600, &why), 0);
	/* The dead one's clean-up comes late: the file is another's by now. */
	a.fd = dup(b.fd);
	a.ino++;
	listener_fini(&a);
	assert_int_equal(access(path, F_OK), 0);
	listener_fini(&b);
}

static void other_files_are_left_alone(void **state)
{
	struct listener l;
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	(void)state;
	close(fd);
	assert_int_equal(listener_init(&l, path, 0600, &why), -SKVQ_EPATH);
	assert_int_equal(access(path, F_OK), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	assert_int_equal(listener_init(&l, path, 0600, &why), -SKVQ_EPATH);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(listener_init(&l, dir, 0600, &why), -SKVQ_EPATH);
}

static void bad_paths(void **state)
{
	struct listener l;
	char longest[LISTEN_PATH_MAX + 2], nowhere[80];

	(void)state;
	memset(longest, 'x', sizeof(longest));
	longest[LISTEN_PATH_MAX + 1] = '\0';
	assert_int_equal(listener_init(&l, longest, 0600, &why), -SKVQ_EPATH);
	assert_non_null(strstr(why.text, "108"));
	assert_int_equal(listener_init(&l, "", 0600, &why), -SKVQ_EPATH);
	snprintf(nowhere, sizeof(nowhere), "%s/none/s", dir);
	assert_int_equal(listener_init(&l, nowhere, 0600, &why), -SKVQ_ESYS);
	assert_non_null(strstr(why.text, "none"));
}

/* A socket as a service manager would pass it. */
static int given(int domain, int type, bool listens)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(domain, type, 0);

	assert_true(fd >= 0);
	if (domain == AF_UNIX) {
		memcpy(addr.sun_path, path, strlen(path) + 1);
		assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	}
	if (listens)
		assert_int_equal(listen(fd, 1), 0);
	return fd;
}

static void given_is_used_and_left(void **state)
{
	char where[LISTEN_PATH_MAX + 1];
	struct listener l;
	int fd = given(AF_UNIX, SOCK_STREAM, true);

	(void)state;
	assert_true(listener_is_socket(fd));
	listener_where(fd, where);
	assert_string_equal(where, path);
	assert_int_equal(listener_adopt(&l, path, fd, &why), 0);
	assert_int_equal(l.fd, fd);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
	listener_fini(&l);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(unlink(path), 0); /* it is the manager's to remove */
}

static void wrong_ones_are_refused(void **state)
{
	char other[80];
	struct listener l;
	int fd;

	(void)state;
	snprintf(other, sizeof(other), "%s/other", dir);
	fd = given(AF_UNIX, SOCK_STREAM, true);
	assert_int_equal(listener_adopt(&l, other, fd, &why), -SKVQ_EPATH);
	assert_non_null(strstr(why.text, path));
	assert_int_equal(l.fd, -1);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* closed */
	assert_int_equal(unlink(path), 0);
	fd = given(AF_UNIX, SOCK_STREAM, false);
	assert_false(listener_is_socket(fd));
	assert_int_equal(listener_adopt(&l, path, fd, &why), -SKVQ_EPATH);
	assert_int_equal(unlink(path), 0);
	fd = given(AF_UNIX, SOCK_SEQPACKET, true);
	assert_int_equal(listener_adopt(&l, path, fd, &why), -SKVQ_EPATH);
	assert_int_equal(unlink(path), 0);
	fd = given(AF_INET, SOCK_STREAM, true);
	assert_true(listener_is_socket(fd));
	assert_int_equal(listener_adopt(&l, path, fd, &why), -SKVQ_EPATH);
	assert_non_null(strstr(why.text, "no Unix stream socket"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(makes_and_removes), cmocka_unit_test(in_use_is_refused),
	    cmocka_unit_test(stale_is_replaced), cmocka_unit_test(other_files_are_left_alone),
	    cmocka_unit_test(bad_paths),         cmocka_unit_test(given_is_used_and_left),
	    cmocka_unit_test(wrong_ones_are_refused),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}

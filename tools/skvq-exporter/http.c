/* SPDX-License-Identifier: Apache-2.0 */
#include "http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <microhttpd.h>

#include "dashboard.h"
#include "gather.h"
#include "metrics.h"

struct http {
	struct MHD_Daemon *server;
	struct http_options options;
	struct gatherer gatherer; /* of the server's thread */
	char *text;               /* the last one, and when it was made */
	size_t text_bytes;
	uint64_t text_ms;
	char where[160];
};

static uint64_t clock_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/* --- answers ---------------------------------------------------------------------------------- */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
			      const char *text, size_t bytes)
{
	struct MHD_Response *r =
	    MHD_create_response_from_buffer(bytes, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
	enum MHD_Result done;

	if (!r)
		return MHD_NO;
	MHD_add_response_header(r, "Content-Type", type);
	MHD_add_response_header(r, "Cache-Control", "no-store");
	/* The page has its script inside and asks nobody but this server. */
	MHD_add_response_header(r, "Content-Security-Policy",
				"default-src 'none'; style-src 'unsafe-inline'; "
				"script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'");
	MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(r, "Allow", "GET, HEAD");
	done = MHD_queue_response(c, status, r);
	MHD_destroy_response(r);
	return done;
}

static enum MHD_Result say(struct MHD_Connection *c, unsigned status, const char *text)
{
	return answer(c, status, "text/plain; charset=utf-8", text, strlen(text));
}

static bool refresh(struct http *h)
{
	struct gathered g;

	if (h->text && clock_ms() - h->text_ms < HTTP_FRESH_MS)
		return true;
	free(h->text);
	gather(&h->gatherer, &g);
	h->text = metrics_text(&g, &h->text_bytes);
	h->text_ms = clock_ms();
	gathered_fini(&g);
	return h->text != NULL;
}

/* A page of another origin whose name was made to point here would have another Host. */
static bool host_is_ours(const struct http *h, const char *host)
{
	static const char *const names[] = {"localhost", "127.0.0.1", "[::1]"};

	if (strchr(h->options.address, '/') || !host)
		return true;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		size_t n = strlen(names[i]);
		if (!strncasecmp(host, names[i], n) && (host[n] == ':' || !host[n]))
			return true;
	}
	return false;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
				  const char *method, const char *version, const char *data,
				  size_t *data_bytes, void **state)
{
	static int seen;
	struct http *h = cls;

	(void)version;
	(void)data;
	/* The first call has the headers alone; bodies are read and thrown away. */
	if (!*state) {
		*state = &seen;
		return MHD_YES;
	}
	if (*data_bytes) {
		*data_bytes = 0;
		return MHD_YES;
	}
	if (strcmp(method, "GET") && strcmp(method, "HEAD"))
		return say(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
	if (!host_is_ours(h, MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host")))
		return say(c, MHD_HTTP_FORBIDDEN, "ask for localhost, 127.0.0.1 or [::1]\n");
	if (!strcmp(url, "/metrics")) {
		if (!refresh(h))
			return say(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory\n");
		return answer(c, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", h->text,
			      h->text_bytes);
	}
	if (!strcmp(url, "/") && h->options.dashboard)
		return answer(c, MHD_HTTP_OK, "text/html; charset=utf-8",
			      (const char *)dashboard_html, dashboard_html_bytes);
	if (!strcmp(url, "/"))
		return say(c, MHD_HTTP_OK, "skvq-exporter: see /metrics; --dashboard shows a page here\n");
	return say(c, MHD_HTTP_NOT_FOUND, "there is /metrics, and nothing else\n");
}

/* --- listening -------------------------------------------------------------------------------- */

/* A socket that nobody listens on any more goes; whatever else is there stays. */
static int clear_path(const struct sockaddr_un *at)
{
	struct stat st;
	int fd, err;

	if (lstat(at->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -1;
	if (!S_ISSOCK(st.st_mode)) {
		errno = EEXIST;
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	err = connect(fd, (const struct sockaddr *)at, sizeof(*at)) == 0 ? EADDRINUSE : errno;
	close(fd);
	if (err != ECONNREFUSED) {
		errno = err;
		return -1;
	}
	return unlink(at->sun_path);
}

static int listen_at(int fd, const struct sockaddr *at, socklen_t bytes)
{
	int yes = 1;

	if (fd < 0)
		return -1;
	if (at->sa_family != AF_UNIX)
		(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	if (bind(fd, at, bytes) == 0 && listen(fd, HTTP_CONNECTIONS) == 0)
		return fd;
	yes = errno;
	close(fd);
	errno = yes;
	return -1;
}

static int open_unix(struct http *h)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	mode_t old;
	int fd, err;

	if (strlen(h->options.address) >= sizeof(at.sun_path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(at.sun_path, h->options.address);
	if (clear_path(&at) < 0)
		return -1;
	snprintf(h->where, sizeof(h->where), "unix:%s", at.sun_path);
	/* From its first moment on. No thread has been started yet. */
	old = umask(0777 & ~(mode_t)h->options.mode);
	fd = listen_at(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0),
		       (const struct sockaddr *)&at, sizeof(at));
	err = errno;
	(void)umask(old);
	errno = err;
	return fd;
}

static int open_loopback(struct http *h)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(h->options.port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(h->options.port)};
	bool is6 = strchr(h->options.address, ':') != NULL;
	struct sockaddr *at = is6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
	socklen_t bytes = is6 ? sizeof(v6) : sizeof(v4);
	int fd;

	if (inet_pton(is6 ? AF_INET6 : AF_INET, h->options.address,
		      is6 ? (void *)&v6.sin6_addr : (void *)&v4.sin_addr) != 1) {
		errno = EINVAL;
		return -1;
	}
	fd = listen_at(socket(at->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), at, bytes);
	if (fd < 0 || getsockname(fd, at, &bytes) < 0)
		return fd;
	snprintf(h->where, sizeof(h->where), is6 ? "http://[%s]:%u" : "http://%s:%u",
		 h->options.address, ntohs(is6 ? v6.sin6_port : v4.sin_port));
	return fd;
}

struct http *http_start(const struct http_options *options)
{
	struct http *h = calloc(1, sizeof(*h));
	int fd;

	if (!h) {
		fputs("skvq-exporter: no memory\n", stderr);
		return NULL;
	}
	h->options = *options;
	h->gatherer.socket = options->daemon_socket;
	fd = strchr(options->address, '/') ? open_unix(h) : open_loopback(h);
	if (fd < 0) {
		fprintf(stderr, "skvq-exporter: cannot listen on '%s', port %u: %s\n",
			options->address, options->port, strerror(errno));
		free(h);
		return NULL;
	}
	h->server = MHD_start_daemon(
	    MHD_USE_INTERNAL_POLLING_THREAD, 0, NULL, NULL, on_request, h,
	    MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, HTTP_CONNECTIONS,
	    MHD_OPTION_CONNECTION_TIMEOUT, HTTP_IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
	    (size_t)16384, MHD_OPTION_END);
	if (!h->server) {
		fputs("skvq-exporter: the HTTP server does not start\n", stderr);
		close(fd);
		if (strchr(options->address, '/'))
			(void)unlink(options->address);
		free(h);
		return NULL;
	}
	return h;
}

const char *http_where(const struct http *h)
{
	return h->where;
}

void http_stop(struct http *h)
{
	if (!h)
		return;
	MHD_stop_daemon(h->server); /* closes the socket too */
	if (strchr(h->options.address, '/'))
		(void)unlink(h->options.address);
	gatherer_fini(&h->gatherer);
	free(h->text);
	free(h);
}

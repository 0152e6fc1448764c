/* SPDX-License-Identifier: Apache-2.0 */
/*
 * http.h - serves the metrics, and the dashboard if wanted, by libmicrohttpd.
 *
 * One thread of the library's answers one request after the other. It asks the daemon at most every
 * HTTP_FRESH_MS, so that a page reloaded without end costs the daemon little. At most
 * HTTP_CONNECTIONS at a time, each for HTTP_IDLE_S at most without a byte moving.
 */
#ifndef SKVQ_EXPORTER_HTTP_H
#define SKVQ_EXPORTER_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#define HTTP_FRESH_MS    250u
#define HTTP_CONNECTIONS 32u
#define HTTP_IDLE_S      10u

struct http;

struct http_options {
	const char *daemon_socket;
	const char *address; /* "127.0.0.1", "::1", or the path of a socket with a '/' in it */
	uint16_t port;       /* 0: any that is free; not used with a path */
	uint32_t mode;       /* of that path: who may connect */
	bool dashboard;
};

/* NULL after a line on stderr that names what failed. */
struct http *http_start(const struct http_options *options);
/* Where it is: "http://127.0.0.1:9469" or "unix:/path". Valid until http_stop. */
const char *http_where(const struct http *http);
/* Waits for the request that is being answered. NULL is fine. */
void http_stop(struct http *http);

#endif /* SKVQ_EXPORTER_HTTP_H */

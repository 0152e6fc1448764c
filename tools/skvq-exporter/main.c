/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq-exporter: what skvqd says of itself, over HTTP: metrics for Prometheus, and a page for people.
 *
 * A process of its own, because the daemon has no network (skvqd.service): what parses HTTP can do no
 * more than any client that only looks.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http.h"

#define DEFAULT_SOCKET "/run/skvqd/skvqd.sock"
#define DEFAULT_LISTEN "127.0.0.1:9469"

static const char help[] =
    "usage: skvq-exporter [--socket PATH] [--listen WHERE] [--dashboard]\n\n"
    "Serves what skvqd says of itself: /metrics for Prometheus, and with --dashboard a page for\n"
    "people at /. It sees its own tenant, or all if it runs as root, as the daemon's user or as an\n"
    "admin (skvqd.conf).\n\n"
    "  -s, --socket PATH   the daemon's socket; default $SKVQD_SOCKET, else\n"
    "                      " DEFAULT_SOCKET "\n"
    "  -l, --listen WHERE  127.0.0.1:PORT, [::1]:PORT (0: any free port) or the path of a socket;\n"
    "                      default " DEFAULT_LISTEN "\n"
    "  -m, --socket-mode MODE\n"
    "                      who may connect to that path, octal; default 0600\n"
    "  -d, --dashboard     a page at /\n"
    "  -h, --help          this text\n\n"
    "Prints where it listens. Ends at SIGTERM or SIGINT. Exit status: 0 ended by a signal, 1 could\n"
    "not listen, 2 wrong usage. A daemon that does not answer is skvqd_up 0, not an error.\n";

static int wrong(const char *what, const char *text)
{
	fprintf(stderr, "skvq-exporter: %s '%s'; see skvq-exporter --help\n", what, text);
	return 2;
}

/* Splits "address:port" in place. Nothing but this machine itself is listened on: there is no
 * password. */
static bool parse_listen(char *text, struct http_options *o)
{
	char *colon = strrchr(text, ':'), *end;
	unsigned long port;

	o->address = text;
	if (strchr(text, '/'))
		return true;
	if (!colon || colon[1] < '0' || colon[1] > '9')
		return false;
	errno = 0;
	port = strtoul(colon + 1, &end, 10);
	if (errno || *end || port > 65535)
		return false;
	*colon = 0;
	o->port = (uint16_t)port;
	if (!strcmp(text, "localhost"))
		o->address = "127.0.0.1";
	else if (!strcmp(text, "[::1]"))
		o->address = "::1";
	else
		return !strcmp(text, "127.0.0.1");
	return true;
}

static bool parse_mode(const char *text, struct http_options *o)
{
	char *end;
	unsigned long mode;

	errno = 0;
	mode = strtoul(text, &end, 8);
	o->mode = (uint32_t)mode;
	return *text >= '0' && *text <= '7' && !errno && !*end && mode <= 0777;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"socket", required_argument, NULL, 's'},
						{"listen", required_argument, NULL, 'l'},
						{"socket-mode", required_argument, NULL, 'm'},
						{"dashboard", no_argument, NULL, 'd'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	const char *env = getenv("SKVQD_SOCKET");
	struct http_options o = {.daemon_socket = env && *env ? env : DEFAULT_SOCKET,
				 .mode = 0600};
	const char *listen = DEFAULT_LISTEN;
	char where[160];
	sigset_t ends;
	struct http *http;
	int opt, sig;

	while ((opt = getopt_long(argc, argv, "s:l:m:dh", options, NULL)) != -1) {
		switch (opt) {
		case 's': o.daemon_socket = optarg; break;
		case 'l': listen = optarg; break;
		case 'm':
			if (!parse_mode(optarg, &o))
				return wrong("--socket-mode takes 0 to 0777, octal, not", optarg);
			break;
		case 'd': o.dashboard = true; break;
		default:
			fputs(help, opt == 'h' ? stdout : stderr);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (optind < argc)
		return wrong("what is", argv[optind]);
	if (snprintf(where, sizeof(where), "%s", listen) >= (int)sizeof(where) ||
	    !parse_listen(where, &o))
		return wrong("--listen takes 127.0.0.1:PORT, [::1]:PORT or the path of a socket, not",
			     listen);
	/* Before the server's thread, which inherits the mask. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	signal(SIGPIPE, SIG_IGN);
	http = http_start(&o);
	if (!http)
		return 1;
	printf("skvq-exporter: %s\n", http_where(http));
	fflush(stdout);
	sigwait(&ends, &sig);
	http_stop(http);
	return 0;
}

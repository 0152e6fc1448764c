/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_MS 5000u

bool ctl_number(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	char *end;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	if (errno || end == text || *end || text[0] < '0' || text[0] > '9' || v < min || v > max) {
		fprintf(stderr,
			"skvqctl: %s takes a number from %" PRIu64 " to %" PRIu64 ", not '%s'\n",
			what, min, max, text);
		return false;
	}
	*ret = v;
	return true;
}

/* Of the client library's errors. */
static int exit_of(int err)
{
	switch (-err) {
	case SKVQ_ENODAEMON:
	case SKVQ_ETIMEOUT:
		return CTL_NO_DAEMON;
	case SKVQ_EPERM:
		return CTL_DENIED;
	case SKVQ_EVERSION:
	case SKVQ_ENOTSUP:
		return CTL_VERSION;
	default:
		return CTL_FAILED;
	}
}

struct skvq_client *ctl_connect(struct ctl *ctl)
{
	struct skvq_client *c = NULL;
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	int err = skvq_client_connect(ctl->socket, "skvqctl", TIMEOUT_MS, &c, why);

	if (err >= 0)
		return c;
	ctl->result = exit_of(err);
	ctl_clean(why);
	if (ctl->result == CTL_NO_DAEMON && access(ctl->socket, R_OK | W_OK) < 0 && errno == EACCES) {
		ctl->result = CTL_DENIED;
		fprintf(stderr,
			"skvqctl: %s; user %u may not use this socket: run it as the daemon's user or "
			"root, or join the group that socket_mode lets in\n",
			why, (unsigned)geteuid());
	} else if (ctl->result == CTL_NO_DAEMON) {
		fprintf(stderr,
			"skvqctl: no daemon answers: %s; start one with 'skvqd --socket PATH', or name "
			"the socket of one that runs with --socket or in SKVQD_SOCKET\n",
			why);
	} else {
		fprintf(stderr, "skvqctl: %s (%s)\n", why, skvq_err_name(err));
	}
	return NULL;
}

int ctl_failed(const struct ctl *ctl, const struct skvq_client *c, const char *what, int err)
{
	char why[SKVQ_CLIENT_WHY_BYTES];

	snprintf(why, sizeof(why), "%s", skvq_client_why(c));
	fprintf(stderr, "skvqctl: the daemon on '%s' did not %s: %s (%s)%s\n", ctl->socket, what,
		ctl_clean(why), skvq_err_name(err),
		exit_of(err) == CTL_VERSION ? "; skvqctl and skvqd should be of one version" : "");
	return exit_of(err);
}

int ctl_status(struct skvq_client *c, struct skvq_client_status **ret)
{
	struct skvq_client_status *s = calloc(1, sizeof(*s));
	int err = s ? skvq_client_status(c, s) : -SKVQ_ENOMEM;

	if (err < 0) {
		free(s);
		s = NULL;
	}
	*ret = s;
	return err;
}

uint64_t ctl_counter(const struct skvq_client_status *s, const char *name)
{
	for (size_t i = 0; i < s->n_counters; i++)
		if (!strcmp(s->counters[i].name, name))
			return s->counters[i].value;
	return 0;
}

int ctl_confirm(const char *verb, bool yes, const char *format, ...)
{
	char answer[16] = "", text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (yes)
		return CTL_OK;
	if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO)) {
		fprintf(stderr, "skvqctl %s: this %s; say --yes if it is to\n", verb, text);
		return CTL_USAGE;
	}
	fprintf(stderr, "This %s. Do it? [y/N] ", text);
	if (fgets(answer, sizeof(answer), stdin) && (answer[0] == 'y' || answer[0] == 'Y'))
		return CTL_OK;
	fputs("nothing was done\n", stderr);
	return CTL_FAILED;
}

int ctl_flush(void)
{
	if (!fflush(stdout) && !ferror(stdout))
		return CTL_OK;
	fprintf(stderr, "skvqctl: cannot write to stdout: %s\n", strerror(errno));
	return CTL_FAILED;
}

int ctl_print_json(json_t *object)
{
	int bad = !object || json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
	json_decref(object);
	putchar('\n');
	if (bad || fflush(stdout)) {
		fputs("skvqctl: the JSON object could not be printed\n", stderr);
		return CTL_FAILED;
	}
	return CTL_OK;
}

json_t *ctl_json_text(const char *text)
{
	json_t *s = json_string(text);
	if (s)
		return s;
	char *copy = strdup(text);
	if (!copy)
		return NULL;
	for (char *p = copy; *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	s = json_string(copy);
	free(copy);
	return s;
}

/* Of the character at s, 1 to 4; 0: it is no UTF-8. */
static int utf8_bytes(const unsigned char *s)
{
	int n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;

	for (int i = 1; i < n; i++)
		if ((s[i] & 0xc0) != 0x80) /* the end of the string too */
			return 0;
	return n;
}

char *ctl_clean(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p;) {
		int n = utf8_bytes(p);
		bool plain = n == 1 ? *p >= 0x20 && *p != 0x7f
			     : n == 2 ? *p != 0xc2 || p[1] >= 0xa0 /* C1, which moves cursors too */
				      : n > 2;

		for (n = n ? n : 1; n--; p++)
			*p = plain ? *p : '?';
	}
	return text;
}

const char *ctl_human_bytes(uint64_t bytes, char buf[CTL_HUMAN_BYTES])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double v = (double)bytes;
	size_t u = 0;
	while (v >= 1024 && u + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024;
		u++;
	}
	snprintf(buf, CTL_HUMAN_BYTES, u ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

const char *ctl_human_ms(uint64_t ms, char buf[CTL_HUMAN_BYTES])
{
	uint64_t s = ms / 1000;
	if (s < 60)
		snprintf(buf, CTL_HUMAN_BYTES, "%" PRIu64 ".%" PRIu64 " s", s, ms / 100 % 10);
	else if (s < 3600)
		snprintf(buf, CTL_HUMAN_BYTES, "%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(buf, CTL_HUMAN_BYTES, "%" PRIu64 " h %" PRIu64 " min", s / 3600,
			 s / 60 % 60);
	else
		snprintf(buf, CTL_HUMAN_BYTES, "%" PRIu64 " d %" PRIu64 " h", s / 86400,
			 s / 3600 % 24);
	return buf;
}

uint64_t ctl_recorded(const struct skvq_client_histogram *h)
{
	uint64_t n = 0;

	for (size_t i = 0; i < SKVQ_CLIENT_BUCKETS; i++)
		n += h->buckets[i];
	return n;
}

uint64_t ctl_quantile(const struct skvq_client_histogram *h, double share)
{
	double want = share * (double)ctl_recorded(h), n = 0;

	if (want <= 0)
		return 0;
	for (size_t i = 0; i < SKVQ_CLIENT_BUCKETS; i++) {
		n += (double)h->buckets[i];
		if (n >= want)
			return UINT64_C(1) << i;
	}
	return UINT64_C(1) << (SKVQ_CLIENT_BUCKETS - 1);
}

const char *ctl_hex(const uint8_t *digest, size_t n_bytes, char *buf)
{
	for (size_t i = 0; i < n_bytes; i++)
		sprintf(buf + 2 * i, "%02x", digest[i]);
	buf[2 * n_bytes] = 0;
	return buf;
}

/* --- table ---------------------------------------------------------------------------------- */

struct ctl_table {
	size_t n_columns, n_cells, cells_max; /* the headings are the first row */
	char **cells;
};

static void table_add(struct ctl_table *t, const char *text)
{
	if (t->n_cells == t->cells_max) {
		t->cells_max = t->cells_max ? 2 * t->cells_max : 64;
		t->cells = realloc(t->cells, t->cells_max * sizeof(*t->cells));
		if (!t->cells)
			abort();
	}
	t->cells[t->n_cells] = strdup(text);
	if (!t->cells[t->n_cells])
		abort();
	ctl_clean(t->cells[t->n_cells++]);
}

struct ctl_table *ctl_table_new(size_t n_columns, const char *const *headings)
{
	struct ctl_table *t = calloc(1, sizeof(*t));
	if (!t)
		abort();
	t->n_columns = n_columns;
	ctl_table_row(t, headings);
	return t;
}

void ctl_table_row(struct ctl_table *t, const char *const *cells)
{
	for (size_t i = 0; i < t->n_columns; i++)
		table_add(t, cells[i]);
}

void ctl_table_free(struct ctl_table *t)
{
	for (size_t i = 0; i < t->n_cells; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t);
}

void ctl_table_print_free(struct ctl_table *t)
{
	for (size_t i = 0; i < t->n_cells; i++) {
		size_t column = i % t->n_columns;
		bool left = t->cells[column][0] == '<';
		size_t width = 0;
		for (size_t j = column; j < t->n_cells; j += t->n_columns) {
			size_t n = strlen(t->cells[j]) - (j == column && left);
			if (n > width)
				width = n;
		}
		bool last = column + 1 == t->n_columns;
		const char *text = t->cells[i] + (i < t->n_columns && left);
		if (left)
			printf("%-*s%s", last ? 0 : (int)width, text, last ? "\n" : "  ");
		else
			printf("%*s%s", (int)width, text, last ? "\n" : "  ");
	}
	ctl_table_free(t);
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "rounds.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ASK_MS   1000u
#define STILL_MS 60000u

bool ctl_page_ref(const char *text, uint32_t *ns, struct skvq_page_ref *ret)
{
	uint64_t part[3] = {0};
	unsigned n = 0;
	const char *at = text;

	for (;;) {
		char *end;

		if (*at < '0' || *at > '9' || n == 3)
			return false;
		part[n] = strtoull(at, &end, 10);
		if (part[n++] > UINT32_MAX || end - at > 10)
			return false;
		if (!*end)
			break;
		if (*end != '.' && !(*end == ':' && n == 1))
			return false;
		if (*end == '.' && strchr(end + 1, '.'))
			return false;
		at = end + 1;
	}
	if (n < 2 || !part[n - 1] || (n == 3) != (strchr(text, ':') != NULL))
		return false;
	if (n == 3)
		*ns = (uint32_t)part[0];
	*ret = (struct skvq_page_ref){(uint32_t)part[n - 2], (uint32_t)part[n - 1]};
	return true;
}

int ctl_tenants(const struct ctl *ctl, struct skvq_client *c, const char *name,
		struct ctl_tenants *ret)
{
	struct skvq_client_status *status;
	int err;

	memset(ret, 0, sizeof(*ret));
	ret->n = 1;
	if (name) {
		if (strlen(name) >= sizeof(ret->name[0]) || !*name) {
			fputs("skvqctl: a tenant's name has 1 to 63 characters\n", stderr);
			return CTL_USAGE;
		}
		strcpy(ret->name[0], name);
		return CTL_OK;
	}
	status = malloc(sizeof(*status));
	if (!status)
		abort();
	err = skvq_client_status(c, status);
	if (err < 0) {
		free(status);
		return ctl_failed(ctl, c, "tell its tenants", err);
	}
	if (status->n_tenants)
		ret->n = status->n_tenants;
	for (size_t i = 0; i < status->n_tenants; i++)
		memcpy(ret->name[i], status->tenants[i].name, sizeof(ret->name[i]));
	free(status);
	return CTL_OK;
}

uint64_t ctl_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Something that differs whenever something was done. */
static uint64_t mark_of(const struct skvq_client_sweep *s)
{
	return s->pages + s->written + s->unread + s->at_record * 31 + s->at_slot * 7 +
	       ((uint64_t)s->at_ns << 32);
}

static void show(const struct skvq_client_sweep *s, const char *what)
{
	char buf[CTL_HUMAN_BYTES];

	fprintf(stderr, "\r%s: %" PRIu64 " %s, %s\033[K", what, s->pages,
		s->disk ? "records" : "pages", ctl_human_bytes(s->bytes, buf));
}

int ctl_round(const struct ctl *ctl, struct skvq_client *c, struct skvq_client_sweep *s,
	      ctl_round_fn fn, const char *what, uint64_t until_ms)
{
	bool tell = !ctl->json && isatty(STDERR_FILENO), told = false;
	uint64_t moved_ms = ctl_now_ms(), mark = mark_of(s);
	int err = 0;

	s->done = false;
	while (!err && !s->done) {
		uint64_t now = ctl_now_ms();

		if ((until_ms && now >= until_ms) || now - moved_ms > STILL_MS)
			break;
		s->wait_ms = until_ms && until_ms - now < ASK_MS ? (uint32_t)(until_ms - now) : ASK_MS;
		err = fn(c, s);
		if (mark_of(s) != mark) {
			mark = mark_of(s);
			moved_ms = ctl_now_ms();
		}
		if (tell && !err && !s->done) {
			show(s, what);
			told = true;
		}
	}
	if (told)
		fputs("\r\033[K", stderr);
	return err < 0 ? ctl_failed(ctl, c, what, err) : CTL_OK;
}

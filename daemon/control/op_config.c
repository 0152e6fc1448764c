/* SPDX-License-Identifier: Apache-2.0 */
/* config_get, config_set: what the daemon runs with, for those who may start it. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <skvq/error.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "control/dispatch.h"

/* Keys there may be, and settings of one request. */
#define KEYS_MAX     128u
#define SETTINGS_MAX 64u
#define NAME_BYTES   64u

/* An admin may look; to see paths and move bounds is for root and the daemon's own user. */
static int check_who(const struct session *s, const char *what, struct why *why)
{
	if (!s->control->config.steer)
		return why_fail(why, SKVQ_ENOTSUP, "this daemon cannot be steered");
	if (s->peer.uid == 0 || s->peer.uid == geteuid())
		return 0;
	return why_fail(why, SKVQ_EPERM,
			"%s is for root and user %u, whom the daemon runs as; this is user %u", what,
			(unsigned)geteuid(), s->peer.uid);
}

struct key_list {
	Skvq__Wire__ConfigKey all[KEYS_MAX], *at[KEYS_MAX];
	char names[KEYS_MAX][NAME_BYTES];
	size_t n;
};

static void list_keys(const struct control_steer *steer, struct key_list *list)
{
	const char *name, *live;

	while (list->n < KEYS_MAX && (name = steer->key_at(steer->ctx, (uint32_t)list->n, &live))) {
		Skvq__Wire__ConfigKey *key = &list->all[list->n];
		size_t bytes = strnlen(name, NAME_BYTES - 1);

		skvq__wire__config_key__init(key);
		memcpy(list->names[list->n], name, bytes);
		key->name = list->names[list->n];
		if (live)
			key->live = (char *)(uintptr_t)live;
		list->at[list->n++] = key;
	}
}

int op_config_get(const struct request *rq, struct why *why)
{
	const struct control_steer *steer = rq->session->control->config.steer;
	Skvq__Wire__ConfigReply body = SKVQ__WIRE__CONFIG_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	CLEANUP_FREE struct key_list *keys = NULL;
	char *text;
	size_t bytes;
	int err = check_who(rq->session, "the configuration", why);

	if (err < 0)
		return err;
	keys = calloc(1, sizeof(*keys));
	if (!keys)
		return why_fail(why, SKVQ_ENOMEM, "no memory for the list of keys");
	err = steer->show(steer->ctx, &text, &bytes, why);
	if (err < 0)
		return err;
	list_keys(steer, keys);
	body.text.data = (uint8_t *)text;
	body.text.len = bytes;
	body.n_keys = keys->n;
	body.keys = keys->at;
	reply.body_case = SKVQ__WIRE__REPLY__BODY_CONFIG_GET;
	reply.config_get = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	free(text);
	return 0;
}

static void log_changes(const struct session *s, const struct control_plan *plan)
{
	for (uint32_t i = 0; i < plan->n; i++) {
		const struct control_change *c = &plan->changes[i];

		log_event(LOG_INFO, c->restart ? "config_needs_start" : "config_changed",
			  LOG_STR("key", c->name), LOG_STR("from", c->from), LOG_STR("to", c->to),
			  LOG_U64("uid", s->peer.uid), LOG_U64("pid", s->peer.pid));
	}
}

/* Answers, and before that does it: the answer must fit, or nothing is done. */
static int answer(const struct request *rq, struct control_plan *plan, struct why *why)
{
	const struct control_steer *steer = rq->session->control->config.steer;
	CLEANUP_FREE Skvq__Wire__ConfigChange *all = calloc(plan->n + 1u, sizeof(*all));
	CLEANUP_FREE Skvq__Wire__ConfigChange **at = calloc(plan->n + 1u, sizeof(*at));
	Skvq__Wire__ConfigSetReply body = SKVQ__WIRE__CONFIG_SET_REPLY__INIT;
	Skvq__Wire__Reply reply = SKVQ__WIRE__REPLY__INIT;
	size_t bytes;

	if (!all || !at)
		return why_fail(why, SKVQ_ENOMEM, "no memory for the list of changes");
	for (uint32_t i = 0; i < plan->n; i++) {
		skvq__wire__config_change__init(&all[i]);
		all[i].name = plan->changes[i].name;
		all[i].from = plan->changes[i].from;
		all[i].to = plan->changes[i].to;
		all[i].restart = plan->changes[i].restart;
		at[i] = &all[i];
	}
	body.n_changes = plan->n;
	body.changes = at;
	bytes = skvq__wire__config_set_reply__get_packed_size(&body) + 64; /* and what is around it */
	if (bytes > rq->session->conn.limits.frame_max)
		return why_fail(why, SKVQ_ELIMIT,
				"the list of changes would take %zu bytes, frame_max is %u", bytes,
				rq->session->conn.limits.frame_max);
	if (!rq->msg->config_set->check) {
		log_changes(rq->session, plan);
		steer->apply(steer->ctx, plan);
	}
	reply.body_case = SKVQ__WIRE__REPLY__BODY_CONFIG_SET;
	reply.config_set = &body;
	reply_send(rq->session, rq->id, &reply, -1);
	return 0;
}

int op_config_set(const struct request *rq, struct why *why)
{
	const struct control_steer *steer = rq->session->control->config.steer;
	const Skvq__Wire__ConfigSet *m = rq->msg->config_set;
	struct control_setting settings[SETTINGS_MAX];
	struct control_plan *plan;
	int err = check_who(rq->session, "steering", why);

	if (err < 0)
		return err;
	if (m->n_settings > SETTINGS_MAX)
		return why_fail(why, SKVQ_ELIMIT, "%zu settings, at most %u", m->n_settings,
				SETTINGS_MAX);
	if (m->n_settings && m->text.len)
		return why_fail(why, SKVQ_EINVAL, "a text and settings");
	for (size_t i = 0; i < m->n_settings; i++)
		settings[i] = (struct control_setting){m->settings[i]->section, m->settings[i]->key,
						       m->settings[i]->value};
	err = steer->plan(steer->ctx, *m->name ? m->name : "line", m->text.data, m->text.len,
			  settings, m->n_settings, &plan, why);
	if (err < 0)
		return err;
	err = answer(rq, plan, why);
	steer->forget(steer->ctx, plan);
	return err;
}

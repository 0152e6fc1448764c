/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's configuration: what it is, and changing it. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SETTINGS_MAX 64u /* the daemon's bound */

static int check_feature(struct skvq_client *c)
{
	if (c->broken || (c->hello.features & FEATURE_CONFIG))
		return 0;
	return client_fail(c, SKVQ_ENOTSUP, "skvqd %s cannot be asked for its configuration",
	                   c->hello.version);
}

int skvq_client_config_get(struct skvq_client *c, struct skvq_client_config *ret)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__ConfigGet get = SKVQ__WIRE__CONFIG_GET__INIT;
	Skvq__Wire__Reply *reply = NULL;

	memset(ret, 0, sizeof *ret);
	req.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_GET;
	req.config_get = &get;
	int r = check_feature(c);
	if (r >= 0)
		r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_CONFIG_GET, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__ConfigReply *b = reply->config_get;
	ret->text = malloc(b->text.len + 1);
	ret->keys = calloc(b->n_keys + 1, sizeof *ret->keys);
	if (ret->text && ret->keys) {
		if (b->text.len)
			memcpy(ret->text, b->text.data, b->text.len);
		ret->text[b->text.len] = '\0';
		ret->n_keys = b->n_keys;
		for (size_t i = 0; i < b->n_keys; i++) {
			COPY_TEXT(ret->keys[i].name, b->keys[i]->name);
			COPY_TEXT(ret->keys[i].live, b->keys[i]->live);
		}
	} else {
		skvq_client_config_free(ret);
		r = client_fail(c, SKVQ_ENOMEM, "no memory for the configuration");
	}
	skvq__wire__reply__free_unpacked(reply, NULL);
	return r < 0 ? r : 0;
}

void skvq_client_config_free(struct skvq_client_config *config)
{
	free(config->text);
	free(config->keys);
	memset(config, 0, sizeof *config);
}

static int set(struct skvq_client *c, Skvq__Wire__ConfigSet *m,
               struct skvq_client_config_change **ret, size_t *ret_n)
{
	Skvq__Wire__Request req = SKVQ__WIRE__REQUEST__INIT;
	Skvq__Wire__Reply *reply = NULL;
	int r = check_feature(c);

	req.body_case = SKVQ__WIRE__REQUEST__BODY_CONFIG_SET;
	req.config_set = m;
	/* A daemon would take a longer frame for a broken one. */
	if (r >= 0 && !c->broken &&
	    skvq__wire__request__get_packed_size(&req) + 16 > c->hello.frame_bytes_max)
		r = client_fail(c, SKVQ_ERANGE,
		                "this is more than a request to the daemon holds (frame_max is %u)",
		                c->hello.frame_bytes_max);
	if (r >= 0)
		r = client_call(c, &req, -1, SKVQ__WIRE__REPLY__BODY_CONFIG_SET, &reply, NULL);
	if (r < 0)
		return r;
	const Skvq__Wire__ConfigSetReply *b = reply->config_set;
	struct skvq_client_config_change *out = calloc(b->n_changes + 1, sizeof *out);
	for (size_t i = 0; out && i < b->n_changes; i++) {
		COPY_TEXT(out[i].name, b->changes[i]->name);
		COPY_TEXT(out[i].from, b->changes[i]->from);
		COPY_TEXT(out[i].to, b->changes[i]->to);
		out[i].restart = b->changes[i]->restart;
	}
	*ret = out;
	*ret_n = b->n_changes;
	skvq__wire__reply__free_unpacked(reply, NULL);
	return out ? 0 : client_fail(c, SKVQ_ENOMEM, "no memory for the list of changes");
}

int skvq_client_config_set(struct skvq_client *c, const char *name, const char *text, size_t bytes,
                           bool check, struct skvq_client_config_change **ret, size_t *ret_n)
{
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;

	m.name = (char *)(uintptr_t)name;
	m.text.data = (uint8_t *)(uintptr_t)text;
	m.text.len = bytes;
	m.check = check;
	return set(c, &m, ret, ret_n);
}

int skvq_client_config_change(struct skvq_client *c,
                              const struct skvq_client_config_setting *settings, size_t n,
                              bool check, struct skvq_client_config_change **ret, size_t *ret_n)
{
	Skvq__Wire__ConfigSet m = SKVQ__WIRE__CONFIG_SET__INIT;
	Skvq__Wire__ConfigSetting all[SETTINGS_MAX], *at[SETTINGS_MAX];

	if (n < 1 || n > SETTINGS_MAX)
		return client_fail(c, SKVQ_ERANGE, "%zu settings, expected 1 to %u", n,
		                   SETTINGS_MAX);
	for (size_t i = 0; i < n; i++) {
		skvq__wire__config_setting__init(&all[i]);
		all[i].section = (char *)(uintptr_t)settings[i].section;
		all[i].key = (char *)(uintptr_t)settings[i].key;
		all[i].value = (char *)(uintptr_t)settings[i].value;
		at[i] = &all[i];
	}
	m.n_settings = n;
	m.settings = at;
	m.check = check;
	return set(c, &m, ret, ret_n);
}

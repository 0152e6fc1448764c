/* SPDX-License-Identifier: Apache-2.0 */
#include "skvqctl.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS SKVQ_CLIENT_ERROR_BUCKETS


struct layer {
	struct skvq_client_error_info k, v;
};

struct listing {
	struct layer *layers;
	size_t n;
	bool known; /* some page said something */
};

static double mean_of(const struct skvq_client_error_info *e)
{
	return e->pages ? e->sum / (double)e->pages : 0;
}

static double worst_of(const struct layer *l)
{
	return fmax(mean_of(&l->k), mean_of(&l->v));
}

static int by_worst(const void *a, const void *b)
{
	const struct layer *x = a, *y = b;
	double dx = worst_of(x), dy = worst_of(y);

	if (dx > dy || dx < dy)
		return dx > dy ? -1 : 1;
	return x->k.layer < y->k.layer ? -1 : x->k.layer > y->k.layer;
}

/* K and V of a layer come one after the other; what is not so is not shown. */
static struct listing listing_of(const struct skvq_client_error_info *list, size_t n, bool worst)
{
	struct listing ret = {.layers = calloc(n / 2 + 1, sizeof(*ret.layers))};

	if (!ret.layers)
		abort();
	for (size_t i = 0; i + 1 < n; i += 2) {
		if (list[i].is_v || !list[i + 1].is_v || list[i].layer != list[i + 1].layer)
			continue;
		ret.layers[ret.n++] = (struct layer){list[i], list[i + 1]};
		ret.known |= list[i].pages || list[i + 1].pages;
	}
	if (worst)
		qsort(ret.layers, ret.n, sizeof(*ret.layers), by_worst);
	return ret;
}

static json_t *side_json(const struct skvq_client_error_info *e)
{
	json_t *histogram = json_array();

	for (size_t i = 0; i < BUCKETS; i++)
		json_array_append_new(histogram, json_integer((json_int_t)e->histogram[i]));
	return json_pack("{s:f, s:I, s:o, s:o, s:o}", "bits", e->bits / 10.0, "pages",
			 (json_int_t)e->pages, "mean",
			 e->pages ? json_real(mean_of(e)) : json_null(), "max",
			 e->pages ? json_real(e->max) : json_null(), "histogram", histogram);
}

static json_t *namespace_json(const struct skvq_client_ns_info *ns, const struct listing *l)
{
	json_t *layers = json_array();

	for (size_t i = 0; i < l->n; i++)
		json_array_append_new(layers, json_pack("{s:I, s:o, s:o}", "layer",
							(json_int_t)l->layers[i].k.layer, "k",
							side_json(&l->layers[i].k), "v",
							side_json(&l->layers[i].v)));
	return json_pack("{s:I, s:o, s:o, s:I, s:o}", "ns", (json_int_t)ns->ns, "model_name",
			 ctl_json_text(ns->model_name), "profile", ctl_json_text(ns->profile),
			 "pages_safe", (json_int_t)ns->pages_safe, "layers", layers);
}

/* Cells of one side: bits, mean, max, histogram. */
static void side_text(const struct skvq_client_error_info *e, char cells[4][CTL_HUMAN_BYTES])
{
	snprintf(cells[0], CTL_HUMAN_BYTES, "%g", e->bits / 10.0);
	snprintf(cells[1], CTL_HUMAN_BYTES, e->pages ? "%.3g" : "-", mean_of(e));
	snprintf(cells[2], CTL_HUMAN_BYTES, e->pages ? "%.3g" : "-", e->max);
	for (size_t i = 0; i < BUCKETS; i++) {
		double tenths = e->pages ? 10.0 * (double)e->histogram[i] / (double)e->pages : 0;

		cells[3][i] = tenths > 0 ? (char)('0' + (int)fmin(9, ceil(tenths))) : '.';
	}
	cells[3][BUCKETS] = '\0';
}

static void namespace_text(const struct skvq_client_ns_info *ns, const struct listing *l)
{
	static const char *const headings[] = {"LAYER", "K BITS",      "MEAN",
					       "MAX",   "<2^-12 .. 1", "V BITS",
					       "MEAN",  "MAX",         "<2^-12 .. 1"};
	char model[sizeof(ns->model_name)], profile[sizeof(ns->profile)];

	memcpy(model, ns->model_name, sizeof(model));
	memcpy(profile, ns->profile, sizeof(profile));
	printf("namespace %" PRIu32 ": %s, %s\n", ns->ns, ctl_clean(model), ctl_clean(profile));
	if (ns->pages_safe)
		printf("  %" PRIu64
		       " pages came with keys of 8 bits: a few channels of some layer would "
		       "drown the rest; calibrate\n",
		       ns->pages_safe);
	if (!l->known) {
		puts("  nothing is known: no page has come in that says what it lost; FP16 loses "
		     "nothing");
		return;
	}
	struct ctl_table *t = ctl_table_new(sizeof(headings) / sizeof(headings[0]), headings);
	for (size_t i = 0; i < l->n; i++) {
		char number[CTL_HUMAN_BYTES], k[4][CTL_HUMAN_BYTES], v[4][CTL_HUMAN_BYTES];

		snprintf(number, sizeof(number), "%" PRIu32, l->layers[i].k.layer);
		side_text(&l->layers[i].k, k);
		side_text(&l->layers[i].v, v);
		const char *row[] = {number, k[0], k[1], k[2], k[3], v[0], v[1], v[2], v[3]};
		ctl_table_row(t, row);
	}
	ctl_table_print_free(t);
}

/* One namespace, to the array or to stdout. */
static int show(const struct ctl *ctl, struct skvq_client *c, const struct skvq_client_ns_info *ns,
		bool worst, json_t *array)
{
	struct skvq_client_error_info *list = NULL;
	size_t n = 0;
	int err = skvq_client_errors(c, ns->ns, &list, &n);

	if (err < 0)
		return ctl_failed(ctl, c, "list errors", err);
	struct listing l = listing_of(list, n, worst);
	if (array)
		json_array_append_new(array, namespace_json(ns, &l));
	else
		namespace_text(ns, &l);
	free(l.layers);
	free(list);
	return CTL_OK;
}

static int show_all(const struct ctl *ctl, struct skvq_client *c, const uint32_t *only, bool worst)
{
	struct skvq_client_ns_info *list = NULL;
	size_t n = 0, shown = 0;
	int err = skvq_client_namespaces(c, &list, &n);

	if (err < 0)
		return ctl_failed(ctl, c, "list namespaces", err);
	json_t *array = ctl->json ? json_array() : NULL;
	int result = CTL_OK;
	for (size_t i = 0; i < n && result == CTL_OK; i++) {
		if (only && list[i].ns != *only)
			continue;
		if (!ctl->json && shown)
			putchar('\n');
		result = show(ctl, c, &list[i], worst, array);
		shown++;
	}
	if (only && !shown && result == CTL_OK) {
		fprintf(stderr,
			"skvqctl: there is no namespace %" PRIu32 "; 'skvqctl ls' lists them\n",
			*only);
		result = CTL_FAILED;
	}
	free(list);
	if (result != CTL_OK) {
		json_decref(array);
		return result;
	}
	if (!ctl->json) {
		if (!shown)
			puts("no namespaces yet: no engine has registered a model");
		return CTL_OK;
	}
	json_t *from = json_array();
	for (int i = 0; i < BUCKETS; i++)
		json_array_append_new(from, json_real(i ? exp2(0.75 * i - 12) : 0));
	return ctl_print_json(json_pack("{s:o, s:o}", "bucket_from", from, "namespaces", array));
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	bool one = false, worst = false;
	struct skvq_client *c;
	uint64_t number = 0;
	int opt;

	while ((opt = ctl_getopt(ctl, &verb_errors, argc, argv)) > 0) {
		if (opt == 'w') {
			worst = true;
			continue;
		}
		if (!ctl_number("--namespace", optarg, 0, UINT32_MAX, &number))
			return CTL_USAGE;
		one = true;
	}
	if (opt < 0)
		return ctl->result;
	c = ctl_connect(ctl);
	if (!c)
		return ctl->result;
	uint32_t ns = (uint32_t)number;
	int result = show_all(ctl, c, one ? &ns : NULL, worst);
	skvq_client_free(c);
	return result;
}

static const struct ctl_opt opts[] = {
    {'n', "namespace", "NS", "of namespace number NS alone"},
    {'w', "worst", NULL, "layers with the largest mean first"},
};

const struct ctl_verb verb_errors = {
    .name = "errors",
    .summary = "what the codes of pages lose, layer by layer",
    .about = "What the codes of pages lose: for K and V of each layer the relative squared error sum "
	     "|x - x'|^2 / sum |x|^2, over all pages that came in since the daemon started. Gaussian "
	     "data has .19 at 1.5 bits, .12 at 2, .037 at 3, .011 at 4; much more than that means that "
	     "the profile does not fit the layer.\n\n"
	     "The histogram has 16 columns from 2^-12 to 1, each 0.75 octaves wide (1.7 times), the "
	     "outer ones open: '.' for no page, 1 to 9 for up to so many tenths of the pages (9: all as "
	     "well).\n\n"
	     "Pages whose keys keep 8 bits, because without a calibration the profile would lose them, "
	     "are said beside; their K does not count in the table.",
    CTL_OPTS(opts),
    .json = "bucket_from, the lower edges of the histogram's columns; namespaces, an array of ns, "
	    "model_name, profile, pages_safe (with keys of 8 bits) and layers, an array of layer, k and "
	    "v, each of bits, pages (measured), mean, max (null if pages is 0), histogram.",
    .run = run,
};

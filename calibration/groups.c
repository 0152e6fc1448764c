/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which channels share a scale: k-means over the points (minimum, maximum) that channels showed, as
 * SKVQ does it (arXiv 2405.06219), with starts of its own so that the same points give the same
 * groups everywhere.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <skvq/calibrate.h>
#include <skvq/error.h>

#define STARTS     10u
#define ROUNDS_MAX 300u
#define GROUPS_MAX (SKVQ_KV_HEADS_MAX * SKVQ_HEAD_DIM_MAX / SKVQ_CALIBRATION_GROUP_SIZE(0))

struct point {
	double x, y;
};

/* A centre, the number of its points, and the first of them. */
struct centre {
	struct point at;
	uint32_t n, first;
};

struct clusters {
	const struct point *points;
	uint32_t n, k;
	struct centre *centres; /* [k], by x, then y, then first: canonical */
	uint32_t *of;           /* [n] */
	double *distance;       /* [n], squared, to the own centre */
};

/* SplitMix64 (Steele, Lea, Flood 2014), to [0, 1). */
static double random_unit(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static double squared(struct point a, struct point b)
{
	return (a.x - b.x) * (a.x - b.x) + (a.y - b.y) * (a.y - b.y);
}

static int by_place(const void *a, const void *b)
{
	const struct centre *l = a, *r = b;

	if (l->at.x != r->at.x)
		return l->at.x < r->at.x ? -1 : 1;
	if (l->at.y != r->at.y)
		return l->at.y < r->at.y ? -1 : 1;
	return (l->first > r->first) - (l->first < r->first);
}

/* k-means++ (Arthur, Vassilvitskii 2007): each next centre is a point, the likelier the farther it
 * is from those there are. */
static void seed(struct clusters *c, uint64_t random)
{
	uint32_t chosen = (uint32_t)(random_unit(&random) * c->n);

	for (uint32_t i = 0; i < c->n; i++)
		c->distance[i] = INFINITY;
	for (uint32_t k = 0;; k++) {
		double sum = 0;

		c->centres[k] = (struct centre){c->points[chosen], 0, chosen};
		if (k + 1 == c->k)
			break;
		for (uint32_t i = 0; i < c->n; i++) {
			c->distance[i] =
			    fmin(c->distance[i], squared(c->points[i], c->points[chosen]));
			sum += c->distance[i];
		}
		double left = random_unit(&random) * sum;
		chosen = 0;
		while (chosen + 1 < c->n && left >= c->distance[chosen])
			left -= c->distance[chosen++];
	}
	qsort(c->centres, c->k, sizeof(*c->centres), by_place);
}

/* The nearest centre, the first of equals, looking both ways from where the point was: centres are
 * sorted by x, so the search ends where x alone is too far. */
static uint32_t nearest(const struct clusters *c, struct point p, uint32_t from, double *ret)
{
	uint32_t best = from;
	double least = squared(p, c->centres[from].at);

	for (uint32_t k = from; k-- > 0;) {
		double dx = p.x - c->centres[k].at.x, d;

		if (dx > 0 && dx * dx > least)
			break;
		d = squared(p, c->centres[k].at);
		if (d <= least) {
			least = d;
			best = k;
		}
	}
	for (uint32_t k = from + 1; k < c->k; k++) {
		double dx = c->centres[k].at.x - p.x, d;

		if (dx > 0 && dx * dx > least)
			break;
		d = squared(p, c->centres[k].at);
		if (d < least) {
			least = d;
			best = k;
		}
	}
	*ret = least;
	return best;
}

/* Every point to its nearest centre; a centre without any takes the point that is farthest from its
 * own, of those that are not alone. Returns the sum of squared distances. */
static double assign(struct clusters *c)
{
	double sum = 0;

	for (uint32_t k = 0; k < c->k; k++)
		c->centres[k].n = 0;
	for (uint32_t i = 0; i < c->n; i++) {
		c->of[i] = nearest(c, c->points[i], c->of[i], &c->distance[i]);
		c->centres[c->of[i]].n++;
	}
	for (uint32_t k = 0; k < c->k; k++) {
		uint32_t far = c->n;

		if (c->centres[k].n)
			continue;
		for (uint32_t i = 0; i < c->n; i++)
			if (c->centres[c->of[i]].n > 1 &&
			    (far == c->n || c->distance[i] > c->distance[far]))
				far = i;
		assert(far < c->n); /* n >= k */
		c->centres[c->of[far]].n--;
		c->centres[k].n = 1;
		c->of[far] = k;
		c->distance[far] = 0;
	}
	for (uint32_t i = 0; i < c->n; i++)
		sum += c->distance[i];
	return sum;
}

/* Centres to the means of their points, in their order again; points follow them. */
static void move(struct clusters *c)
{
	for (uint32_t k = 0; k < c->k; k++)
		c->centres[k] = (struct centre){{0, 0}, 0, c->n};
	for (uint32_t i = 0; i < c->n; i++) {
		struct centre *to = &c->centres[c->of[i]];

		to->at.x += c->points[i].x;
		to->at.y += c->points[i].y;
		if (!to->n++)
			to->first = i;
	}
	for (uint32_t k = 0; k < c->k; k++) {
		c->centres[k].at.x /= c->centres[k].n;
		c->centres[k].at.y /= c->centres[k].n;
	}
	qsort(c->centres, c->k, sizeof(*c->centres), by_place);
	/* A point of each centre tells what the centre's number was. */
	uint32_t new_of[GROUPS_MAX];
	for (uint32_t k = 0; k < c->k; k++)
		new_of[c->of[c->centres[k].first]] = k;
	for (uint32_t i = 0; i < c->n; i++)
		c->of[i] = new_of[c->of[i]];
}

/* Lloyd's rounds until nothing gets better. */
static double settle(struct clusters *c)
{
	double sum = assign(c), last = INFINITY;

	for (uint32_t round = 0; sum < last && round < ROUNDS_MAX; round++) {
		last = sum;
		move(c);
		sum = assign(c);
	}
	return sum;
}

int skvq_calibrate_groups(const float *low, const float *high, uint32_t n, uint32_t size,
			  uint16_t *of)
{
	uint32_t k = (n + size - 1) / size;

	assert(n > 0 && k <= GROUPS_MAX);
	struct point *points = malloc(n * sizeof(*points));
	struct clusters c = {.points = points,
			     .n = n,
			     .k = k,
			     .centres = calloc(k, sizeof(*c.centres)),
			     .of = calloc(n, sizeof(*c.of)),
			     .distance = calloc(n, sizeof(*c.distance))};
	uint32_t *best = calloc(n, sizeof(*best));
	double least = INFINITY;
	int r = points && c.centres && c.of && c.distance && best ? 0 : -SKVQ_ENOMEM;

	for (uint32_t i = 0; !r && i < n; i++)
		points[i] = (struct point){(double)low[i], (double)high[i]};
	for (uint64_t start = 1; !r && start <= STARTS; start++) {
		memset(c.of, 0, n * sizeof(*c.of));
		seed(&c, start);
		double sum = settle(&c);
		if (!(sum < least))
			continue;
		least = sum;
		memcpy(best, c.of, n * sizeof(*best));
	}
	if (!r) {
		memcpy(c.of, best, n * sizeof(*best));
		move(&c); /* groups by their centres: equal groups, equal numbers */
		for (uint32_t i = 0; i < n; i++)
			of[i] = (uint16_t)c.of[i];
	}
	free(points);
	free(c.centres);
	free(c.of);
	free(c.distance);
	free(best);
	return r;
}

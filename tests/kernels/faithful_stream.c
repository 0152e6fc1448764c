/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/faithful.h on numbers from standard input, for test_faithful.py: little-endian, a header of
 * uint32 tokens, channels, groups, M and a float clip, then uint16 groups[channels] and binary16
 * x[tokens][channels]; back come, token by token, codes, scales, zeros and binary16 decoded.
 */
#include <stdio.h>
#include <stdlib.h>

#include <skvq/faithful.h>

#define CHANNELS_MAX 65536u

struct header {
	uint32_t tokens, channels, groups, m;
	float clip;
};

static void get(void *to, size_t size, size_t n)
{
	if (fread(to, size, n, stdin) != n) {
		(void)fprintf(stderr, "faithful_stream: the input ends early\n");
		exit(1);
	}
}

static void put(const void *from, size_t size, size_t n)
{
	if (fwrite(from, size, n, stdout) != n)
		exit(1);
}

int main(void)
{
	static uint16_t of[CHANNELS_MAX], x[CHANNELS_MAX], back[CHANNELS_MAX];
	static uint8_t codes[CHANNELS_MAX], scale[SKVQ_FAITHFUL_GROUPS_MAX];
	static uint8_t zero[SKVQ_FAITHFUL_GROUPS_MAX];
	struct header h;

	get(&h, sizeof(h), 1);
	if (!h.channels || h.channels > CHANNELS_MAX || h.groups > SKVQ_FAITHFUL_GROUPS_MAX)
		return 1;
	get(of, sizeof(of[0]), h.channels);
	for (uint32_t t = 0; t < h.tokens; t++) {
		struct skvq_channel_groups g = {h.channels, h.groups, of};
		uint32_t half = h.channels / 2;

		get(x, sizeof(x[0]), h.channels);
		skvq_faithful_encode(&g, h.m, h.clip, x, codes, scale, zero, 1);
		skvq_faithful_decode(&g, codes, scale, zero, 1, 0, half, back);
		skvq_faithful_decode(&g, codes + half, scale, zero, 1, half, h.channels - half,
				     back + half);
		put(codes, 1, h.channels);
		put(scale, 1, h.groups);
		put(zero, 1, h.groups);
		put(back, sizeof(back[0]), h.channels);
	}
	return fflush(stdout) == 0 ? 0 : 1;
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/sha256.h - SHA-256 (FIPS 180-4), because libcrypto must not come into an engine's process
 * with the plugin.
 */
#ifndef SKVQ_SHA256_H
#define SKVQ_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
	uint32_t state[8];
	uint64_t n_bytes;
	uint8_t block[64];
};

void skvq_sha256_init(struct sha256 *s);
void skvq_sha256_add(struct sha256 *s, const void *data, size_t n);
void skvq_sha256_end(struct sha256 *s, uint8_t ret[32]);

#endif /* SKVQ_SHA256_H */

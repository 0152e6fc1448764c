/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tokens.h - token ids for the verbs that take some: from a file, stdin, or a tokenizer that is run on a
 * prompt. Bounded, and what is no token id is named with its line.
 */
#ifndef SKVQCTL_TOKENS_H
#define SKVQCTL_TOKENS_H

#include <stdbool.h>
#include <stdint.h>

#include "args.h"

struct ctl_tokens {
	int32_t *at; /* the caller frees, also after a failure */
	uint32_t n;
};

struct ctl_tokens_from {
	const char *path; /* NULL: stdin, unless there is a prompt */
	const char *prompt, *tokenizer;
};

#define CTL_TOKENS_PROMPT    (CTL_LONG_ONLY + 100)
#define CTL_TOKENS_TOKENIZER (CTL_LONG_ONLY + 101)
#define CTL_TOKENS_OPTS                                                                            \
	{CTL_TOKENS_PROMPT, "prompt", "FILE", "a text instead of token ids; with --tokenizer"},    \
	{                                                                                          \
		CTL_TOKENS_TOKENIZER, "tokenizer", "COMMAND",                                      \
		    "prints the token ids of the file that is put behind it"                       \
	}
#define CTL_TOKENS_ABOUT                                                                           \
	"Or a text is given with --prompt, and --tokenizer is a command of the shell that prints the ids " \
	"of a file, as 'skvq-llama --model M --ids --prompt-file' does; they must be those that the "      \
	"engine makes of it."

/* Whether the option is one of CTL_TOKENS_OPTS; takes optarg then. */
bool ctl_tokens_opt(struct ctl_tokens_from *from, int opt);
/* CTL_OK, or it was told why not and is what to exit with. */
int ctl_tokens_load(const char *verb, const struct ctl_tokens_from *from, struct ctl_tokens *ret);

#endif /* SKVQCTL_TOKENS_H */

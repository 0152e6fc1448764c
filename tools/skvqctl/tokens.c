/* SPDX-License-Identifier: Apache-2.0 */
#include "tokens.h"

#include "skvqctl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TOKENS_MAX (1u << 20)

static int wrong_token(const char *verb, const char *from, uint32_t line, const char *what)
{
	fprintf(stderr, "skvqctl %s: %s, line %" PRIu32 ": %s\n", verb, from, line, what);
	return CTL_USAGE;
}

/* Numbers and what may stand between them. */
static int read_tokens(const char *verb, FILE *f, const char *from, struct ctl_tokens *t,
		       uint32_t *ret_line)
{
	uint32_t line = 1;
	int64_t value = -1;
	int c;

	t->at = malloc(TOKENS_MAX * sizeof(*t->at));
	if (!t->at)
		abort();
	do {
		c = fgetc(f);
		if (c != EOF && isdigit(c)) {
			value = (value < 0 ? 0 : value) * 10 + (c - '0');
			if (value > INT32_MAX)
				return wrong_token(verb, from, line, "a token id is less than 2^31");
			continue;
		}
		if (value >= 0 && t->n == TOKENS_MAX)
			return wrong_token(verb, from, line, "more than 1048576 tokens");
		if (value >= 0)
			t->at[t->n++] = (int32_t)value;
		value = -1;
		line += c == '\n';
		if (c != EOF && !isspace(c) && !strchr(",[]", c))
			return wrong_token(verb, from, line,
					   "token ids in decimal, blanks, commas and brackets only");
	} while (c != EOF);
	if (ferror(f)) {
		fprintf(stderr, "skvqctl %s: cannot read '%s': %s\n", verb, from, strerror(errno));
		return CTL_FAILED;
	}
	*ret_line = line;
	return CTL_OK;
}

static int cannot(const char *verb, const char *what, const char *name)
{
	fprintf(stderr, "skvqctl %s: cannot %s '%s': %s\n", verb, what, name, strerror(errno));
	return CTL_FAILED;
}

static int load_file(const char *verb, const char *path, struct ctl_tokens *t)
{
	FILE *f = path ? fopen(path, "r") : stdin;
	uint32_t line = 1;
	int result;

	if (!f)
		return cannot(verb, "open", path);
	result = read_tokens(verb, f, path ? path : "stdin", t, &line);
	if (path)
		fclose(f);
	if (result == CTL_OK && !t->n)
		return wrong_token(verb, path ? path : "stdin", line, "no tokens");
	return result;
}

/* ---- a tokenizer ---- */

/* The shell splits the command; the file is one word, whatever is in its name. */
static pid_t start(const char *command, const char *prompt, int to)
{
	size_t bytes = strlen(command) + sizeof(" \"$1\"");
	char *script = malloc(bytes);
	pid_t pid;

	if (!script)
		abort();
	snprintf(script, bytes, "%s \"$1\"", command);
	pid = fork();
	if (pid == 0) {
		if (dup2(to, STDOUT_FILENO) >= 0)
			execl("/bin/sh", "sh", "-c", script, "sh", prompt, (char *)NULL);
		_exit(127);
	}
	free(script);
	return pid;
}

static int tell_end(const char *verb, const char *command, int status)
{
	if (WIFSIGNALED(status))
		fprintf(stderr, "skvqctl %s: the tokenizer '%s' ended by signal %d\n", verb, command,
			WTERMSIG(status));
	else
		fprintf(stderr, "skvqctl %s: the tokenizer '%s' ended with status %d\n", verb, command,
			WEXITSTATUS(status));
	return CTL_FAILED;
}

static int load_prompt(const char *verb, const struct ctl_tokens_from *from, struct ctl_tokens *t)
{
	static const char what[] = "the tokenizer's output";
	int fds[2], status = 0, result;
	uint32_t line = 1;
	pid_t pid;
	FILE *f;

	if (access(from->prompt, R_OK) < 0)
		return cannot(verb, "read", from->prompt);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return cannot(verb, "make a pipe for", from->tokenizer);
	pid = start(from->tokenizer, from->prompt, fds[1]);
	close(fds[1]);
	f = pid < 0 ? NULL : fdopen(fds[0], "r");
	if (!f) {
		result = cannot(verb, "run", from->tokenizer);
		close(fds[0]);
	} else {
		result = read_tokens(verb, f, what, t, &line);
		fclose(f); /* one that goes on printing ends by it */
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (result != CTL_OK)
		return result; /* told; that it ends badly now is no surprise */
	if (status)
		return tell_end(verb, from->tokenizer, status);
	return t->n ? CTL_OK : wrong_token(verb, what, line, "no tokens");
}

bool ctl_tokens_opt(struct ctl_tokens_from *from, int opt)
{
	if (opt == CTL_TOKENS_PROMPT)
		from->prompt = optarg;
	else if (opt == CTL_TOKENS_TOKENIZER)
		from->tokenizer = optarg;
	return opt == CTL_TOKENS_PROMPT || opt == CTL_TOKENS_TOKENIZER;
}

int ctl_tokens_load(const char *verb, const struct ctl_tokens_from *from, struct ctl_tokens *ret)
{
	if (!from->prompt != !from->tokenizer) {
		fprintf(stderr, "skvqctl %s: --prompt and --tokenizer go together\n", verb);
		return CTL_USAGE;
	}
	if (from->prompt && from->path) {
		fprintf(stderr, "skvqctl %s: token ids from '%s', or of --prompt?\n", verb, from->path);
		return CTL_USAGE;
	}
	return from->prompt ? load_prompt(verb, from, ret) : load_file(verb, from->path, ret);
}

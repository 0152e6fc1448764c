/* SPDX-License-Identifier: Apache-2.0 */
/* 'skvqctl top' on a terminal, by ncurses. */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <curses.h>

#include "top.h"

struct screen {
	struct ctl *ctl;
	uint64_t interval_ms;
	enum top_view view;
	size_t sort[TOP_VIEWS];
	bool reverse, paused, help;
	size_t first; /* row at the top */
	struct skvq_client *client;
	struct top_sample *was, *is; /* NULL: not yet */
	char trouble[SKVQ_CLIENT_WHY_BYTES + 64];
};

static volatile sig_atomic_t ended;

static void on_signal(int signal)
{
	(void)signal;
	ended = 1;
}

static void forget(struct top_sample **s)
{
	if (*s)
		top_sample_clear(*s);
	free(*s);
	*s = NULL;
}

/* A daemon that is away is looked for again at the next turn; what it said last stays to be seen. */
static void ask(struct screen *s)
{
	char why[SKVQ_CLIENT_WHY_BYTES] = "";
	struct top_sample *next;
	int err = 0;

	if (!s->client)
		err = skvq_client_connect(s->ctl->socket, "skvqctl top", 1000, &s->client, why);
	if (err < 0) {
		s->client = NULL;
		snprintf(s->trouble, sizeof(s->trouble), "no daemon: %s", ctl_clean(why));
		return;
	}
	next = calloc(1, sizeof(*next));
	if (!next)
		abort();
	err = top_ask(s->client, next);
	if (err < 0) {
		snprintf(why, sizeof(why), "%s", skvq_client_why(s->client));
		snprintf(s->trouble, sizeof(s->trouble), "the daemon did not answer: %s",
			 ctl_clean(why));
		forget(&next);
		skvq_client_free(s->client);
		s->client = NULL;
		return;
	}
	s->trouble[0] = '\0';
	forget(&s->was);
	s->was = s->is;
	s->is = next;
	if (s->was && s->was->boot_id != s->is->boot_id)
		forget(&s->was); /* another daemon counts from 0 */
}

static size_t width_of(const struct top_table *t, size_t column)
{
	const char *heading = t->headings[column];
	size_t width = strlen(heading) - (heading[0] == '<') + 1; /* one for the arrow */

	for (size_t i = 0; i < t->n_rows; i++)
		if (strlen(t->rows[i].text[column]) > width)
			width = strlen(t->rows[i].text[column]);
	return width;
}

static void draw_table(struct screen *s, int y)
{
	size_t sort = s->sort[s->view];
	struct top_table t = top_table(s->view, s->was, s->is, sort, s->reverse);
	size_t room = LINES - y - 1 > 0 ? (size_t)(LINES - y - 1) : 0;
	int x = 0;

	if (s->first + room > t.n_rows)
		s->first = t.n_rows > room ? t.n_rows - room : 0;
	for (size_t column = 0; column < t.n_columns && x < COLS; column++) {
		bool left = t.headings[column][0] == '<';
		int width = (int)width_of(&t, column);
		char heading[TOP_CELL];

		snprintf(heading, sizeof(heading), "%s%s", t.headings[column] + left,
			 column == sort ? (s->reverse ? "^" : "v") : "");
		attron(A_REVERSE | (column == sort ? A_BOLD : 0));
		mvprintw(y, x, left ? "%-*s " : "%*s ", width, heading);
		attroff(A_REVERSE | A_BOLD);
		for (size_t i = 0; i < room && s->first + i < t.n_rows; i++)
			mvprintw(y + 1 + (int)i, x, left ? "%-*s " : "%*s ", width,
				 t.rows[s->first + i].text[column]);
		x += width + 1;
	}
	free(t.rows);
}

static void draw_help(int y)
{
	static const char *const lines[] = {
	    "1 2 3, Tab   namespaces, clients, tenants",
	    "< >, s       sort by the column before, the one behind",
	    "r            the other way round",
	    "+ -          look more often, less often",
	    "up, down     other rows",
	    "space        stop, and go on",
	    "h            this text",
	    "q            end",
	};

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
		mvaddstr(y + (int)i, 2, lines[i]);
}

static void draw(struct screen *s)
{
	char lines[TOP_LINES][TOP_LINE_BYTES] = {{0}};
	time_t now = time(NULL);
	struct tm tm;
	char clock[16];
	int y = 0;

	erase();
	if (s->is)
		top_head(s->was, s->is, lines);
	for (int i = 0; s->is && i < TOP_LINES && y < LINES; i++)
		mvaddnstr(y++, 0, lines[i], COLS);
	localtime_r(&now, &tm);
	strftime(clock, sizeof(clock), "%H:%M:%S", &tm);
	attron(A_DIM);
	if (s->trouble[0])
		mvaddnstr(y, 0, s->trouble, COLS);
	else
		mvprintw(y, 0, "%s, each %.1f s%s; %s; h: help, q: end", clock,
			 (double)s->interval_ms / 1e3, s->paused ? " (stopped)" : "",
			 top_view_names[s->view]);
	attroff(A_DIM);
	y += 2;
	if (s->help)
		draw_help(y);
	else if (s->is)
		draw_table(s, y);
	refresh();
}

static void sort_by(struct screen *s, int step)
{
	struct top_table t = {0};

	if (!s->is)
		return;
	t = top_table(s->view, s->was, s->is, s->sort[s->view], s->reverse);
	free(t.rows);
	s->sort[s->view] = (s->sort[s->view] + t.n_columns + (size_t)step) % t.n_columns;
}

static void show(struct screen *s, enum top_view view)
{
	s->view = view;
	s->first = 0;
	s->help = false;
}

/* False: end. */
static bool key(struct screen *s, int key)
{
	switch (key) {
	case 'q':
		return false;
	case '1':
	case '2':
	case '3':
		show(s, (enum top_view)(key - '1'));
		break;
	case '\t':
		show(s, (enum top_view)((s->view + 1) % TOP_VIEWS));
		break;
	case 's':
	case '>':
	case KEY_RIGHT:
		sort_by(s, 1);
		break;
	case '<':
	case KEY_LEFT:
		sort_by(s, -1);
		break;
	case 'r':
		s->reverse = !s->reverse;
		break;
	case '+':
		s->interval_ms = s->interval_ms > 400 ? s->interval_ms / 2 : 200;
		break;
	case '-':
		s->interval_ms = s->interval_ms < 30000 ? s->interval_ms * 2 : 60000;
		break;
	case KEY_DOWN:
		s->first++;
		break;
	case KEY_UP:
		s->first -= s->first > 0;
		break;
	case ' ':
		s->paused = !s->paused;
		break;
	case 'h':
	case '?':
		s->help = !s->help;
		break;
	default:
		break;
	}
	return true;
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void turn(struct screen *s)
{
	uint64_t next = 0;
	bool go_on = true;

	while (go_on && !ended) {
		if (!s->paused && now_ms() >= next) {
			ask(s);
			next = now_ms() + s->interval_ms;
		}
		draw(s);
		uint64_t now = now_ms();
		timeout(s->paused ? 1000 : next > now ? (int)(next - now) : 0);
		int k = getch();
		if (k != ERR)
			go_on = key(s, k);
	}
}

int top_screen(struct ctl *ctl, uint64_t interval_ms, enum top_view view, size_t sort)
{
	struct screen s = {.ctl = ctl, .interval_ms = interval_ms, .view = view};
	struct sigaction end = {.sa_handler = on_signal};

	for (int i = 0; i < TOP_VIEWS; i++)
		s.sort[i] = top_default_sort((enum top_view)i);
	s.sort[view] = sort;
	s.client = ctl_connect(ctl); /* at first it must be there */
	if (!s.client)
		return ctl->result;
	setlocale(LC_CTYPE, "");
	sigaction(SIGTERM, &end, NULL);
	sigaction(SIGINT, &end, NULL);
	SCREEN *term = newterm(NULL, stdout, stdin);
	if (!term) {
		skvq_client_free(s.client);
		fputs("skvqctl top: this terminal is not known to ncurses (TERM); --batch works anywhere\n",
		      stderr);
		return CTL_FAILED;
	}
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	curs_set(0);
	turn(&s);
	endwin();
	delscreen(term);
	forget(&s.was);
	forget(&s.is);
	skvq_client_free(s.client);
	return CTL_OK;
}

# SPDX-License-Identifier: Apache-2.0
"""What the scheduler's side decides: which tokens are loaded and saved in which step.

Saving codes a prompt, which takes time, so it is spread: one request at a time, at most so many
tokens a step, in order of arrival. Blocks of a request that has finished meanwhile are held until
its turn is over; of those there is a bound, beyond which requests end unsaved. Knows nothing of
vLLM or of the plugin.

    wanted -> ready (whole prompt computed) -> open in the worker -> done
                 preempted, failed, aborted: abandoned;  finished: held until done
"""
from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from typing import AbstractSet, Any, Callable, Mapping, Sequence

PAGE = 80  # tokens of a page: only whole ones are shared


@dataclasses.dataclass(frozen=True)
class Load:
    """Tokens [first, last) into blocks; block_ids[0] holds token 0."""

    req_id: str
    tokens: Sequence[int]
    block_ids: Sequence[int]
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Save:
    """Code tokens up to ``last``. The first of a request carries everything from token 0 on."""

    req_id: str
    opens: bool                # begin a sequence; else go on with the one that is open
    closes: bool               # publish and end it
    release: bool              # the request has finished: tell vLLM that its blocks are free
    first: int                 # position of tokens[0]
    last: int
    tokens: Sequence[int]      # ids of [first, last); if it opens, all that will be saved
    block_ids: Sequence[int]   # block_ids[0] holds token 0


@dataclasses.dataclass
class Step:
    loads: list[Load] = dataclasses.field(default_factory=list)
    saves: list[Save] = dataclasses.field(default_factory=list)
    abandon: str = ""          # the open sequence of this request has ended
    release: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.loads or self.saves or self.abandon or self.release)


@dataclasses.dataclass
class _Job:
    req_id: str
    target: int                # tokens
    done: int                  # what the daemon had, or has been coded
    tokens: Callable[[int, int], Sequence[int]]
    held: bool = False


def full_pages(n_tokens: int, window: int) -> int:
    """Pages that a sequence of n tokens has given to the daemon."""
    return max(0, n_tokens - window) // PAGE


def spoilt(invalid: AbstractSet[int], tables: Mapping[str, Sequence[int]]
           ) -> tuple[dict[str, int], set[int]]:
    """What is not to be trusted after blocks were reported invalid.

    tables: the blocks of each running request. Returns the first invalid one of each request that has
    any, as an index, and all blocks that hold anything: what comes after was computed on them.
    """
    first, blocks = {}, set(invalid)
    for req_id, ids in tables.items():
        at = next((i for i, block in enumerate(ids) if block in invalid), None)
        if at is not None:
            first[req_id] = at
            blocks.update(ids[at:])
    return first, blocks


@dataclasses.dataclass(frozen=True)
class Row:
    """Mode attend: what one request computes in a step."""

    req_id: str
    block: int                 # the one that vLLM gave it: names its row in the batch
    begins: bool               # from here on it is another sequence than before, if there was one
    shared: bool               # its pages are looked up and published
    position: int              # of the first token
    tokens: Sequence[int]      # ids of what is computed, drafts too
    prefix: Sequence[int]      # if it begins behind 0: ids that match up to there and not further


def prefix_of(tokens: Sequence[int], position: int, window: int) -> Sequence[int]:
    """What to open a sequence with so that it matches ``position`` tokens, a multiple of PAGE, and no more."""
    return tokens[:position + max(window, 1)]  # a match always leaves one token to compute


class Admission:
    """How many tokens all running requests may come to. One is always let in."""

    def __init__(self, tokens_max: int) -> None:
        self.tokens_max = tokens_max  # 0: no bound
        self._needs: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        return sum(self._needs.values())

    def fits(self, req_id: str, need: int) -> bool:
        others = self.tokens - self._needs.get(req_id, 0)
        return not self.tokens_max or not others or others + need <= self.tokens_max

    def enter(self, req_id: str, need: int) -> None:
        self._needs[req_id] = need

    def leave(self, req_id: str) -> None:
        self._needs.pop(req_id, None)


class Patience:
    """How long one step may wait for the daemon, whatever it asks for: ``with patience:`` counts.

    What is asked when ``over`` is to fail at once. A single wait has a bound of its own, so a step
    waits for at most both."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self.left, self._start = seconds, 0.0

    def renew(self) -> None:
        self.left = self.seconds

    @property
    def over(self) -> bool:
        return self.left <= 0

    def __enter__(self) -> None:
        self._start = self._clock()

    def __exit__(self, *_: Any) -> None:
        self.left -= self._clock() - self._start


class Cost:
    """What a prompt token costs to compute, in microseconds, of steps that did nothing else."""

    TOKENS_MIN = 64   # a step of fewer tokens says more of its own overhead
    US_MAX = 10_000_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._n, self._us = clock, 0.0, 0, 0.0

    def begins(self, n_tokens: int, idle: bool) -> None:
        """idle: the step neither loads nor saves."""
        self._start, self._n = self._clock(), n_tokens if idle and n_tokens >= self.TOKENS_MIN else 0

    def ends(self) -> None:
        if self._n:
            us = (self._clock() - self._start) * 1e6 / self._n
            self._us = us if not self._us else 0.75 * self._us + 0.25 * us
        self._n = 0

    def us(self) -> int:
        """0: not known."""
        return min(math.ceil(self._us), self.US_MAX)


class Saver:
    """The queue of saves. Not thread-safe: the scheduler's thread alone."""

    def __init__(self, tokens_per_step: int, held_max: int, window: int) -> None:
        self.tokens_per_step, self.held_max, self.window = tokens_per_step, held_max, window
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._open = ""
        self._abandon = ""
        self._release: list[str] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def held(self) -> int:
        return sum(j.held for j in self._jobs.values())

    def want(self, req_id: str, target: int, matched: int,
             tokens: Callable[[int, int], Sequence[int]]) -> bool:
        """Asks for tokens [0, target) of a running request, of which the daemon has ``matched``.

        tokens(a, b): the ids; called until the job is done. False if there is nothing to gain.
        """
        self.drop(req_id)
        if full_pages(target, self.window) <= matched // PAGE:
            return False
        self._jobs[req_id] = _Job(req_id, target, matched, tokens)
        return True

    def drop(self, req_id: str) -> None:
        """Forgets a request that was preempted or aborted."""
        if self._jobs.pop(req_id, None) and self._open == req_id:
            self._open, self._abandon = "", req_id

    def fail(self) -> None:
        """A load failed: what blocks hold is not to be trusted. Everything is dropped."""
        self._release += [j.req_id for j in self._jobs.values() if j.held]
        if self._open:
            self._open, self._abandon = "", self._open
        self._jobs.clear()

    def finished(self, req_id: str, target: int, saved: int,
                 tokens: Callable[[int, int], Sequence[int]]) -> bool:
        """A request has finished with [0, target) computed; of its tokens, [0, saved) were asked for.

        Returns whether its blocks are to be held; a later Step releases them.
        """
        job = self._jobs.get(req_id)
        if job is None and full_pages(target, self.window) <= full_pages(saved, self.window):
            return False
        if self.held() >= self.held_max:
            self.drop(req_id)
            return False
        if job is None:
            job = self._jobs[req_id] = _Job(req_id, target, 0, tokens)
            job.done = min(full_pages(saved, self.window) * PAGE, target)
        job.target = target
        job.held = True
        return True

    def step(self, computed: Callable[[str], tuple[int, Sequence[int]] | None]) -> Step:
        """The next step's part.

        computed(req_id): (tokens that are computed and lie in its blocks before this step, block
        ids), or None if the request runs no more.
        """
        step = Step(abandon=self._abandon, release=self._release)
        self._abandon, self._release = "", []
        budget = self.tokens_per_step
        for req_id in list(self._jobs):
            if budget <= 0:
                break
            job = self._jobs[req_id]
            state = computed(req_id)
            if state is None:
                self.drop(req_id)
                if job.held:
                    step.release.append(req_id)
                step.abandon, self._abandon = step.abandon or self._abandon, ""
                continue
            n_computed, block_ids = state
            if n_computed < job.target:
                if self._open == req_id:
                    break           # it cannot be: nothing is opened before all is computed
                continue            # still being read; those behind it need not wait
            if self._open and self._open != req_id:
                continue
            last = min(job.target, job.done + budget)
            opens = self._open != req_id
            first = 0 if opens else job.done
            closes = last == job.target
            # All of them at first: another server may have saved more meanwhile.
            tokens = job.tokens(first, job.target if opens else last)
            step.saves.append(Save(req_id, opens, closes, closes and job.held, first, last, tokens,
                                   block_ids))
            budget -= last - job.done
            job.done = last
            self._open = "" if closes else req_id
            if closes:
                del self._jobs[req_id]
        return step

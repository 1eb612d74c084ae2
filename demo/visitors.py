"""Visitors, known by their address, which no new session changes: their guesses of the password, their requests."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from starlette.types import Scope

FREE_GUESSES = 5
"""Wrong passwords in a row before the next one has to wait; the wait doubles with each."""
LONGEST_WAIT = 300.0
"""Seconds."""
MAX_REMEMBERED = 10_000
"""Visitors whose guesses are remembered."""
UNHEARD = 5.0
"""Seconds after which a request ends whose visitor does not listen to its answer."""


def visitor(scope: Scope) -> str:
    """The address that a request comes from; of IPv6 the /64, which is what one visitor has."""
    host = (scope.get("client") or ("nowhere", 0))[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return str(host)
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((address, 64), strict=False))


class Guesses:
    """Attempts to log in. Each visitor has a count of their own, so that nobody locks out another."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait(self, who: str) -> float:
        """Seconds until a visitor may try again; 0 lets this guess through, which counts as wrong until `right`."""
        wrong, until = self._of.pop(who, (0, 0.0))
        now = time.monotonic()
        left = until - now
        if left <= 0:
            wrong += 1
            until = now + (min(2.0 ** (wrong - FREE_GUESSES), LONGEST_WAIT) if wrong >= FREE_GUESSES else 0.0)
        self._of[who] = wrong, until
        while len(self._of) > MAX_REMEMBERED:
            self._of.popitem(last=False)
        return max(left, 0.0)

    def right(self, who: str) -> None:
        """Forget the wrong ones before a right one."""
        self._of.pop(who, None)


class Places:
    """The requests in Gradio's queue, waiting and running, counted by visitor.

    Args:
        queue: Of the page.
        max_places: Requests that one visitor may have at a time.
    """

    def __init__(self, queue: Any, max_places: int) -> None:
        self._queue, self.max_places = queue, max_places
        self._listening: Counter[str] = Counter()
        self._watches: set[asyncio.Task[None]] = set()

    def _events(self) -> list[Any]:
        waiting = [event for line in self._queue.event_queue_per_concurrency_id.values() for event in line.queue]
        return waiting + [event for events in self._queue.active_jobs for event in events or ()]

    def taken(self, who: str) -> int:
        """How many requests a visitor has."""
        return sum(visitor(event.request.scope) == who for event in self._events())

    @contextmanager
    def listening(self, name: str) -> Iterator[None]:
        """While a stream of answers is open, to a session or an event."""
        self._listening[name] += 1
        try:
            yield
        finally:
            self._listening[name] -= 1
            self._listening += Counter()  # Without those at zero.

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Around a request that joins the queue: it is taken out again if nobody listens soon."""
        before = set(map(id, self._events()))
        yield
        for event in self._events():
            if id(event) not in before:
                watch = asyncio.create_task(self._end_unheard(event))
                self._watches.add(watch)
                watch.add_done_callback(self._watches.discard)

    async def _end_unheard(self, event: Any) -> None:
        await asyncio.sleep(UNHEARD)
        # One that has ended leaves the session's newer ones alone: they may be about to be listened to.
        heard = self._listening[event.session_hash] or self._listening[event._id]
        if not heard and any(event is other for other in self._events()):
            await self._queue.clean_events(session_hash=event.session_hash)

"""How much a client may ask for, and how slowly wrong keys are answered: token buckets.

`RateLimiter` and `GuessWatch` do arithmetic with the clock they are given and wait for nothing.
`Gate` is what a request passes: it finds who asks, counts, and tells the client by headers. What a
request costs in tokens is known when it has been answered: it is charged then, and a client in debt
waits until the next minute's tokens have paid for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Callable, Dict, Generic, List, NamedTuple, Optional, Tuple, TypeVar

from claude_proxy.auth import (
    Client,
    HeaderPairs,
    WrongKey,
    find_client,
    is_preflight,
    is_probe,
    shown_keys,
)
from claude_proxy.errors import ProxyError
from claude_proxy.exchange import Exchange
from claude_proxy.http1 import HttpRequest
from claude_proxy.settings import Config

MOST_CLIENTS = 10_000
# Clients that repeat requests by themselves do not heed a longer one.
LONGEST_RETRY_AFTER = 60
ALMOST = 1e-9  # what floats lose on the way to a whole request

# Wrong keys from one address in a minute that are answered at once; then each doubles the wait,
# and after so many more there is no other answer than 429.
FREE_GUESSES, SLOW_GUESSES = 10, 10
FIRST_DELAY, LONGEST_DELAY = 0.25, 2.0
MOST_SLEEPERS = 16

Clock = Callable[[], float]
FAMILY = "anthropic-ratelimit-"


class Bucket:
    """Holds up to `capacity`, fills up by `rate` a second; may be charged below nothing."""

    __slots__ = ("at", "capacity", "level", "rate")

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self.capacity, self.rate = capacity, rate
        self.level, self.at = capacity, now

    def fill(self, now: float) -> None:
        # Two threads may read the clock in one order and come here in the other.
        if now > self.at:
            self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
            self.at = now

    def wait(self) -> float:
        """Seconds until there is one to take, 0 if there is."""
        lacking = 1.0 - self.level
        return lacking / self.rate if lacking > ALMOST else 0.0

    def full_in(self) -> float:
        return max(0.0, (self.capacity - self.level) / self.rate)


class Counts:
    """What is counted of one client; a bucket is None where there is no such limit."""

    __slots__ = ("requests", "running", "tokens")

    def __init__(self, requests: Optional[Bucket], tokens: Optional[Bucket]) -> None:
        self.requests, self.tokens, self.running = requests, tokens, 0

    def fill(self, now: float) -> None:
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(now)

    def is_idle(self) -> bool:
        """Whether it says no more than new ones would."""
        buckets = (self.requests, self.tokens)
        return not self.running and all(b is None or b.level >= b.capacity for b in buckets)


Entry = TypeVar("Entry", Bucket, Counts)


class BoundedTable(Generic[Entry]):
    """The entries used last, so many at most. Those that say nothing are dropped on the way."""

    def __init__(
        self, make: Callable[[float], Entry], idle: Callable[[Entry], bool], most: int
    ) -> None:
        self._make, self._idle, self._most = make, idle, most
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, now: float) -> Entry:
        """The entry of a name, filled up to now; a new one where there is none."""
        self._shed(now)
        entry = self._entries.get(name)
        if entry is None:
            while len(self._entries) >= self._most:
                self._entries.popitem(last=False)
            entry = self._entries[name] = self._make(now)
        else:
            self._entries.move_to_end(name)
        entry.fill(now)
        return entry

    def _shed(self, now: float) -> None:
        """Two a call at most: more leave than come, and no call pays for all of them."""
        for _ in range(2):
            oldest = next(iter(self._entries), None)
            if oldest is None:
                return
            entry = self._entries[oldest]
            entry.fill(now)
            if not self._idle(entry):
                return
            del self._entries[oldest]


# --- limits of a client --------------------------------------------------------------------------


class Limits(NamedTuple):
    """0 sets no limit; no burst: as many as in a minute."""

    rpm: int = 0
    burst: int = 0
    tpm: int = 0
    concurrent: int = 0


class Admission(NamedTuple):
    """Whether a request may go on. `held` is to be given back; `refused` says what is used up."""

    held: Tuple[Counts, ...]
    headers: HeaderPairs
    refused: str = ""
    seconds: float = 0.0


class RateLimiter:
    """Counts requests, tokens and requests at a time of each client. Safe to call from any thread.

    A request may count for several names (a key and an address): all have room for it, or none is
    charged.
    """

    def __init__(
        self, limits: Limits, clock: Clock, wall: Clock = time.time, most: int = MOST_CLIENTS
    ) -> None:
        self._limits = limits
        self._clock, self._wall = clock, wall
        self._clients = BoundedTable(self._new_counts, Counts.is_idle, most)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._clients)

    def _new_counts(self, now: float) -> Counts:
        rpm, burst, tpm, _ = self._limits
        return Counts(
            Bucket(burst or rpm, rpm / 60, now) if rpm else None,
            Bucket(tpm, tpm / 60, now) if tpm else None,
        )

    def enter(self, names: Sequence[str]) -> Admission:
        with self._lock:
            now = self._clock()
            counts = tuple(self._clients.get(name, now) for name in names)
            waits = [wait for each in counts for wait in self._waits(each)]
            seconds, refused = max(waits, default=(0.0, ""))
            if not seconds:
                for each in counts:
                    each.running += 1
                    if each.requests is not None:
                        each.requests.level -= 1
            headers = self._headers(counts)
        return Admission(() if seconds else counts, headers, refused, seconds)

    def leave(self, held: Sequence[Counts], tokens: int) -> None:
        """A request is over; the counts may have left the table meanwhile."""
        with self._lock:
            now = self._clock()
            for each in held:
                each.running -= 1
                each.fill(now)
                if each.tokens is not None:
                    each.tokens.level -= tokens

    def _waits(self, counts: Counts) -> List[Tuple[float, str]]:
        """(seconds, what is used up) for every limit that has been reached."""
        rpm, _, tpm, concurrent = self._limits
        found = []
        if counts.requests is not None and counts.requests.wait():
            found.append((counts.requests.wait(), f"{rpm} requests a minute (RATE_LIMIT_RPM)"))
        if counts.tokens is not None and counts.tokens.wait():
            found.append((counts.tokens.wait(), f"{tpm} tokens a minute (RATE_LIMIT_TPM)"))
        if concurrent and counts.running >= concurrent:
            found.append((1.0, f"{concurrent} requests at a time (RATE_LIMIT_CONCURRENT)"))
        return found

    def _headers(self, counts: Sequence[Counts]) -> HeaderPairs:
        """The figures of whichever name has less left."""
        requests = [each.requests for each in counts if each.requests is not None]
        tokens = [each.tokens for each in counts if each.tokens is not None]
        wall = self._wall()
        return (
            *bucket_headers("requests", self._limits.rpm, requests, wall),
            *bucket_headers("tokens", self._limits.tpm, tokens, wall),
        )


def bucket_headers(what: str, limit: int, buckets: Sequence[Bucket], wall: float) -> HeaderPairs:
    if not buckets:
        return ()
    bucket = min(buckets, key=lambda each: each.level)
    left = max(0, min(limit, int(bucket.level + ALMOST)))
    moment = time.gmtime(math.ceil(wall + bucket.full_in()))
    return (
        (f"{FAMILY}{what}-limit", str(limit)),
        (f"{FAMILY}{what}-remaining", str(left)),
        (f"{FAMILY}{what}-reset", time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)),
    )


def retry_seconds(seconds: float) -> str:
    """Whole seconds for `retry-after`. Where it takes longer, the client is told so again."""
    return str(max(1, min(LONGEST_RETRY_AFTER, math.ceil(seconds - ALMOST))))


def charged_tokens(usage: Mapping[str, Any]) -> int:
    """What an answer costs: tokens read anew and written; those that a cache had are free."""
    kinds = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
    figures = [usage.get(kind) for kind in kinds]
    return sum(n for n in figures if isinstance(n, int) and n > 0)


# --- keys that are guessed -----------------------------------------------------------------------


class GuessWatch:
    """Counts wrong keys by address. Safe to call from any thread."""

    def __init__(self, clock: Clock, most: int = MOST_CLIENTS) -> None:
        self._clock = clock
        rate = FREE_GUESSES / 60
        self._guesses: BoundedTable[Bucket] = BoundedTable(
            lambda now: Bucket(FREE_GUESSES, rate, now),
            lambda bucket: bucket.level >= bucket.capacity,
            most,
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._guesses)

    def note(self, address: str) -> Tuple[float, float]:
        """(seconds to wait before answering, seconds to send the client away for or 0)."""
        with self._lock:
            bucket = self._guesses.get(address, self._clock())
            bucket.level = max(bucket.level - 1, -SLOW_GUESSES - 1.0)
            over = math.ceil(-bucket.level - ALMOST)
            if over <= 0:
                return 0.0, 0.0
            delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (over - 1))
            return delay, bucket.wait() if over > SLOW_GUESSES else 0.0


# --- what a request passes -----------------------------------------------------------------------


class Gate:
    """Lets a request in, or raises why not; `leave` has to be told when it is over."""

    def __init__(
        self,
        config: Config,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        pause: Callable[[Exchange, float], None] = Exchange.sleep,
    ) -> None:
        limits = Limits(
            config.rate_limit_rpm,
            config.rate_limit_burst,
            config.rate_limit_tpm,
            config.rate_limit_concurrent,
        )
        self.limiter = RateLimiter(limits, clock, wall) if any(limits) else None
        self._config = config
        self._guesses = GuessWatch(clock)
        self._sleepers = threading.Semaphore(MOST_SLEEPERS)
        self._pause = pause
        self._held: Dict[str, Tuple[Counts, ...]] = {}  # by the exchange's id

    def __len__(self) -> int:
        """How many are inside, where that is counted."""
        return len(self._held)

    def enter(self, request: HttpRequest, exchange: Exchange) -> None:
        shown = shown_keys(request, self._config.auth_api_key_header)
        try:
            client = find_client(self._config, request, shown)
        except WrongKey as error:
            self._answer_guess(request, exchange, error)
            raise
        exchange.keys = shown
        if client.label:
            exchange.facts["key_label"] = client.label
        if self.limiter is not None and not is_probe(request):
            if not is_preflight(self._config, request):
                self._count(self.limiter, client, request, exchange)

    def leave(self, exchange: Exchange) -> None:
        held = self._held.pop(exchange.id, None)
        if held is not None and self.limiter is not None:
            self.limiter.leave(held, charged_tokens(exchange.usage))

    def _count(
        self, limiter: RateLimiter, client: Client, request: HttpRequest, exchange: Exchange
    ) -> None:
        names = limit_names(self._config.rate_limit_by, client, request.peer)
        admission = limiter.enter(names)
        exchange.answer_headers += admission.headers
        if admission.refused:
            retry = [("retry-after", retry_seconds(admission.seconds))]
            raise ProxyError(429, f"this proxy allows {admission.refused}", headers=retry)
        self._held[exchange.id] = admission.held

    def _answer_guess(self, request: HttpRequest, exchange: Exchange, error: WrongKey) -> None:
        """Make a guesser wait, as long as not too many do; a right key never comes here."""
        delay, away = self._guesses.note(address_name(request.peer))
        if delay and self._sleepers.acquire(blocking=False):
            try:
                self._pause(exchange, delay)
            finally:
                self._sleepers.release()
        if away:
            retry = [("retry-after", retry_seconds(away))]
            raise ProxyError(429, "too many wrong keys from this address", headers=retry) from error


def limit_names(by: str, client: Client, peer: str) -> Tuple[str, ...]:
    """The names that a request counts for. A key that nobody has checked is no name: whoever
    made up a new one for each request would have no limit."""
    address = f"address {address_name(peer)}"
    if by == "address" or not client.identity:
        return (address,)
    key = f"key {client.identity}"
    return (key, address) if by == "both" else (key,)


def address_name(peer: str) -> str:
    """An address as one client has it: of IPv6 the network, as each host has 2**64 of them."""
    if ":" not in peer:
        return peer
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped else f"{int(address) >> 64:x}/64"


def drop_doubled(exchange: Exchange, headers: HeaderPairs) -> None:
    """Leave our figures out where an answer that is passed on has those of its own limits."""
    if any(name.startswith(FAMILY) for name, _ in headers):
        kept = [pair for pair in exchange.answer_headers if not pair[0].startswith(FAMILY)]
        exchange.answer_headers = kept

"""Who may do what: the one place where requests are let in or turned away.

::

    rule        who is let in                                          nouns of the address
    OPEN        anybody                                                health, sign-in, styles and scripts
    READ        a key with the scope read                              what looks only, by whatever method
    BY_METHOD   GET, HEAD, OPTIONS: scope read; others: scope write    data sets, jobs, models ...
    MACHINE     a key with the scope worker; it sees all tenants       metrics, agents
    PAGE        as READ; without a key, the sign-in page comes back    the pages
    ATTEMPT     the attempt's own token, nobody else                   what workers send
    (none)      nobody: 401 without a key, 403 with one                a noun that is not in the table

While no key was ever made and the server listens on loopback only, all but ATTEMPT is open to the tenant ``default``.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import structlog
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillhouse.search.errors import AwayError, NotFoundError
from stillhouse.service.accounts import READ, WORKER, WRITE, Caller, Deed, Key, ServiceLedger, hashed, known_key
from stillhouse.service.buckets import Buckets, network
from stillhouse.service.guard import SAFE
from stillhouse.service.problems import away, problem

log = structlog.get_logger(__name__)

COOKIE = "stillhouse_key"
RECALL_S = 1.0
"""How long what the database said of a key is recalled: a revoked one is let in no longer than that."""
_MOST_RECALLED = 1000


class Rule(Enum):
    """Who is let in; see the table at the head of this file."""

    OPEN = auto()
    READ = auto()
    BY_METHOD = auto()
    MACHINE = auto()
    PAGE = auto()
    ATTEMPT = auto()


RULES: Mapping[str, Rule] = {
    "health": Rule.OPEN,
    "sign-in": Rule.OPEN,
    "sign-out": Rule.OPEN,
    "static": Rule.OPEN,
    "": Rule.PAGE,
    "ui": Rule.PAGE,
    "openapi.json": Rule.READ,
    "metrics": Rule.MACHINE,
    "catalogue": Rule.READ,
    "estimates": Rule.READ,
    "audit": Rule.READ,
    "datasets": Rule.BY_METHOD,
    "jobs": Rule.BY_METHOD,
    "uploads": Rule.BY_METHOD,
    "models": Rule.BY_METHOD,
    "pareto": Rule.BY_METHOD,
    "devices": Rule.BY_METHOD,
    "agents": Rule.MACHINE,
    "attempts": Rule.ATTEMPT,
}
"""By the address's first part, its noun. A new noun is refused until it is declared here."""


@dataclass(frozen=True)
class Refusal(Exception):  # noqa: N818 - it is an answer
    """Why a request is not let in."""

    status: int
    detail: str
    kind: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def unauthorised(detail: str) -> Refusal:
    """A 401."""
    return Refusal(401, detail, headers={"WWW-Authenticate": "Bearer"})


class Gate:
    """Lets requests in by the rules, in time with the rate limit, and writes the audit log.

    Args:
        app: The application behind it.
        ledger: Its ledger, with the accounts.
        always_keyed: Asks for a key even before one was made: the server can be reached from elsewhere.
        buckets: The rate limit.
        routes: Tells which addresses exist, so that one without a rule is told from one that is not there.
        sign_in: Makes the page that is shown to a browser without a key.
        changed: Is called before the answer to a request that may have changed something.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ledger: ServiceLedger,
        always_keyed: bool,
        buckets: Buckets,
        routes: Callable[[], Sequence[BaseRoute]],
        sign_in: Callable[[Request, str], Response],
        changed: Callable[[], None],
    ) -> None:
        self._app, self._ledger, self._accounts = app, ledger, ledger.accounts
        self._keyed, self._buckets, self._routes, self._sign_in = always_keyed, buckets, routes, sign_in
        self._changed = changed
        self._asked_until = 0.0
        self._recalled: dict[str, tuple[float, Key]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request, status = Request(scope), 500
        rule = rule_of(request.scope["path"])
        try:
            request.state.caller = await self._let_in(request, rule)
        except Refusal as refusal:
            client = request.client.host if request.client else ""
            path = request.scope["path"][:200]
            log.info("refused", status=refusal.status, method=request.method, path=path, client=client)
            await self._answer(request, rule, refusal)(scope, receive, send)
            return
        except AwayError as error:
            await away(request, error)(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request.method not in SAFE and rule is not Rule.MACHINE:  # a device asks every second
                    self._changed()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if _changes(rule, request.method):
                await self._log(request, status)

    async def _let_in(self, request: Request, rule: Rule | None) -> Caller:
        address = network(request.client.host if request.client else "")
        if rule is Rule.OPEN:
            self._spend(address)
            return Caller(tenant=None)
        if rule is Rule.ATTEMPT:
            await self._check_token(request, address)
            return Caller(tenant=None)
        secret, by_cookie = _secret(request)
        key = await self._known_key(secret) if secret else None
        self._spend(address if key is None else key.id)
        if key is None and await self._asks_for_keys():
            what = "this key is unknown, expired or revoked" if secret else "this server asks for a key"
            raise unauthorised(f"{what}; send one: Authorization: Bearer KEY")
        if rule is None and any(route.matches(request.scope)[0] is not Match.NONE for route in self._routes()):
            raise Refusal(403, "no rule says who may use this address, so nobody may (gate.RULES)")
        if key is None:
            return Caller(None) if rule is Rule.MACHINE else Caller()
        if rule is Rule.MACHINE:
            _check_scope(key, WORKER)
            return Caller(None, key)
        _check_scope(key, WRITE if _changes(rule, request.method) else READ)
        return Caller(key.tenant, key, by_cookie)

    async def _asks_for_keys(self) -> bool:
        """True once and for ever after a key was made, within ``RECALL_S``."""
        if not self._keyed and time.monotonic() >= self._asked_until:
            self._keyed = await run_in_threadpool(self._accounts.any_key)
            self._asked_until = time.monotonic() + RECALL_S
        return self._keyed

    async def _known_key(self, secret: str) -> Key | None:
        """The valid key with this secret; one that is revoked is let in for ``RECALL_S`` more at most."""
        name, now = hashed(secret), time.monotonic()
        until, key = self._recalled.get(name, (0.0, None))
        if now < until and key is not None and key.valid(time.time()):
            return key
        key = await run_in_threadpool(known_key, self._accounts, secret, now=time.time())
        if key is not None:
            if len(self._recalled) >= _MOST_RECALLED:
                self._recalled.clear()
            self._recalled[name] = now + RECALL_S, key
        return key

    async def _check_token(self, request: Request, address: str) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        attempt_id = request.scope["path"].split("/")[2:3]
        if scheme.lower() != "bearer" or not token.strip() or not attempt_id:
            self._spend(address)
            raise unauthorised("send the attempt's token: Authorization: Bearer TOKEN")
        try:
            attempt = await run_in_threadpool(self._ledger.attempt, attempt_id[0])
        except NotFoundError as error:
            self._spend(address)
            raise Refusal(404, str(error), "not-found") from None
        if not hmac.compare_digest(token.strip().encode(), attempt.token.encode()):
            self._spend(address)
            raise unauthorised("this is not the attempt's token")
        request.state.attempt = attempt
        self._spend(attempt.id)

    def _spend(self, name: str) -> None:
        wait_s = self._buckets.take(name)
        if wait_s > 0:
            detail = f"too many requests; send the next one in {wait_s:.1f} s"
            raise Refusal(429, detail, headers={"Retry-After": str(int(wait_s) + 1)})

    def _answer(self, request: Request, rule: Rule | None, refusal: Refusal) -> Response:
        if rule is Rule.PAGE and refusal.status == 401:
            answer = self._sign_in(request, "")
        else:
            answer = problem(request, refusal.status, refusal.detail, refusal.kind)
        answer.headers.update(refusal.headers)
        return answer

    async def _log(self, request: Request, status: int) -> None:
        """Failing to write it down does not fail what has been done."""
        caller: Caller = request.state.caller
        if caller.tenant is None:
            return
        path, request_id = request.scope["path"][:500], getattr(request.state, "request_id", "")
        deed = Deed(time.time(), caller.key_id, caller.tenant, request.method, path, status, request_id)
        try:
            await run_in_threadpool(self._accounts.log, deed)
        except Exception as error:
            log.error("the audit log was not written", deed=deed, error=repr(error))


def rule_of(path: str) -> Rule | None:
    """The rule of an address. Routes are matched on the address as it came, so its first part cannot lie."""
    noun = path.split("/")[1] if path.startswith("/") else path
    return None if noun == "" and path != "/" else RULES.get(noun)


def _changes(rule: Rule | None, method: str) -> bool:
    return method not in SAFE and rule in (Rule.BY_METHOD, Rule.OPEN)


def _check_scope(key: Key, scope: str) -> None:
    if scope not in key.scopes:
        has = ", ".join(key.scopes)
        raise Refusal(403, f"this needs a key with the scope {scope}, but {key.id} has {has}")


def _secret(request: Request) -> tuple[str, bool]:
    """What the request proves itself with, and whether a browser sent it by itself."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip(), False
    secret = request.cookies.get(COOKIE, "")
    return secret, bool(secret)

"""Who may call: API keys where strangers can reach the port, the service's own pages and programs where not."""

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import Depends, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import Request

from service.api.limits import count_address, count_key
from service.api.refusals import ForeignPage, ScopeMissing, Unauthenticated
from service.api.requests import trace_of
from service.api.services import Injected
from service.loopback import is_loopback
from service.records import KeyScope
from service.settings import AuthKind, Settings

_BEARER: Final = HTTPBearer(
    auto_error=False,
    scheme_name="apiKey",
    bearerFormat="hd_…",
    description="An API key. Not needed where the service listens on a loopback address only.",
)
_RANK: Final = {KeyScope.READ: 0, KeyScope.SUBMIT: 1, KeyScope.ADMIN: 2}
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_SECRET: Final = 256


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key_id: str | None
    """None where no keys are asked for."""
    scope: KeyScope


def is_required(settings: Settings) -> bool:
    """Tell whether requests need a key."""
    match settings.auth:
        case AuthKind.OFF:
            return False
        case AuthKind.REQUIRED:
            return True
        case AuthKind.AUTO:
            return not is_loopback(settings.host)


def _needs(scope: KeyScope) -> Callable[..., Awaitable[Caller]]:
    async def check(
        request: Request,
        services: Injected,
        sent: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Caller:
        if not is_required(services.settings):
            _refuse_foreign_pages(request, names=services.settings.auth is AuthKind.AUTO)
            await count_address(request)
            return Caller(None, KeyScope.ADMIN)
        secret = sent.credentials if sent is not None else ""
        if not secret.startswith("hd_") or len(secret) > _LONGEST_SECRET or not secret.isascii():
            await count_address(request)
            raise Unauthenticated
        key = await run_in_threadpool(services.store.keys.verify, secret)
        if key is None:
            await count_address(request)  # who tries keys is not let try them all
            raise Unauthenticated("this API key is not known, or was revoked")
        trace_of(request.scope).key_id = key.id
        await count_key(request, key.id)
        if _RANK[key.scope] < _RANK[scope]:
            raise ScopeMissing(scope, key.scope)
        return Caller(key.id, key.scope)

    return check


Reader = Annotated[Caller, Depends(_needs(KeyScope.READ))]
Submitter = Annotated[Caller, Depends(_needs(KeyScope.SUBMIT))]
Administrator = Annotated[Caller, Depends(_needs(KeyScope.ADMIN))]


def require_scope(caller: Caller, scope: KeyScope) -> None:
    """Refuse a caller whose key does not have `scope`.

    Raises:
        ScopeMissing: it does not.
    """
    if _RANK[caller.scope] < _RANK[scope]:
        raise ScopeMissing(scope, caller.scope)


def _refuse_foreign_pages(request: Request, *, names: bool) -> None:
    """Without keys, keep pages that happen to be open in the operator's browser from steering the service.

    Args:
        request: what was sent.
        names: also refuse a Host that is a name of the public DNS: only a rebound name leads here.
    """
    host = request.headers.get("host", "")
    if names and not _is_own_name(urlsplit(f"//{host}").hostname or ""):
        raise ForeignPage("the Host of this request is not a name of this machine: set HYPERDIAL_AUTH to allow it")
    if request.method in _SAFE:
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site not in (None, "same-origin", "none") or (site is None and origin is not None and _is_foreign(origin, host)):
        raise ForeignPage


def _is_own_name(name: str) -> bool:
    if "." not in name or name.endswith((".localhost", ".local")):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(origin: str, host: str) -> bool:
    return urlsplit(origin).netloc != host

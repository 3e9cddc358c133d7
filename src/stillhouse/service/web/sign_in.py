"""The way in for browsers: a page that takes a key and keeps it in a cookie that scripts cannot read."""

from __future__ import annotations

import re
import time

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from stillhouse import __version__
from stillhouse.service.accounts import Accounts, Caller, known_key
from stillhouse.service.gate import COOKIE
from stillhouse.service.web.pages import templates

router = APIRouter(include_in_schema=False)
_LOCAL = re.compile(r"/(?![/\\])[\x21-\x7e]{0,500}")
MOST_FORM_BYTES = 4096


def sign_in_page(request: Request, message: str) -> Response:
    """The form, as the answer to an address that asks for a key."""
    path = request.url.path if request.method == "GET" and not request.url.path.startswith("/sign-in") else "/"
    context = {"version": __version__, "message": message, "next": path}
    return templates.TemplateResponse(request, "sign_in.html", context, status_code=401)


@router.get("/sign-in", response_class=HTMLResponse)
def show(request: Request) -> Response:
    """The form."""
    answer = sign_in_page(request, "")
    answer.status_code = 200
    return answer


@router.post("/sign-in", response_class=HTMLResponse)
async def sign_in(request: Request) -> Response:
    """Takes the key and goes on to the page that was asked for."""
    if int(request.headers.get("content-length", MOST_FORM_BYTES + 1)) > MOST_FORM_BYTES:
        return sign_in_page(request, "This is no form with a key.")
    form = await request.form(max_files=0, max_fields=4)
    secret, wanted = str(form.get("key", "")).strip(), str(form.get("next", "/"))
    accounts: Accounts = request.app.state.context.ledger.accounts
    key = await run_in_threadpool(known_key, accounts, secret, now=time.time())
    if key is None:
        return sign_in_page(request, "This key is unknown, expired or revoked.")
    request.state.caller = Caller(key.tenant, key, by_cookie=True)
    answer = RedirectResponse(wanted if _LOCAL.fullmatch(wanted) else "/", status_code=303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=secure, path="/")
    return answer


@router.post("/sign-out", response_class=HTMLResponse)
def sign_out() -> Response:
    """Forgets the key in this browser."""
    answer = RedirectResponse("/sign-in", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
    return answer

"""How answers are written: with headers that leave a browser nothing to guess, and in pieces that nobody waits for."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from aiohttp import web
from google.rpc import code_pb2

from gradwire.server.access.identity import Identity
from gradwire.wire.errors import GradwireError

PIECE_BYTES = 64 * 2**10
"""Written at a time: to encrypt megabytes at once would hold up everything else."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""What the page may do: run and ask for what this server itself has as files, and nothing that stands in text."""

HEADERS = {
    "Server": "gradwire",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
}

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_STATUS = {
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.UNAVAILABLE: 503,
}
"""Of HTTP, by that of a refusal; 409 for any other one."""


async def answer(
    request: web.BaseRequest, status: int, body: str | bytes, content_type: str = TEXT, **headers: str
) -> web.StreamResponse:
    """Writes an answer, after which the connection is over. Args: body: a string is a line of text."""
    data = f"{body}\n".encode() if isinstance(body, str) else body
    response = web.StreamResponse(status=status, headers={**HEADERS, "Content-Type": content_type, **headers})
    if status != 304:
        response.content_length = len(data)
    response.force_close()
    await response.prepare(request)
    if request.method != "HEAD" and status != 304:
        await write(response, data)
    await response.write_eof()
    return response


async def write(response: web.StreamResponse, data: bytes) -> None:
    """Writes bytes of a body that has been begun."""
    view = memoryview(data)
    for start in range(0, len(data), PIECE_BYTES):
        await response.write(view[start : start + PIECE_BYTES])
        await asyncio.sleep(0)  # a write that need not wait lets nobody else to work


async def refusal(request: web.BaseRequest, error: GradwireError, who: Identity | None = None) -> web.StreamResponse:
    """The answer to what cannot be had. Args: who: in whose words runs are named."""
    status = _STATUS.get(error.code, 409)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return await answer(request, status, error.message if who is None else who.text(error.message), **headers)


def to_json(value: Any) -> str:
    """JSON as browsers take it, which know no number that is not finite: they are null."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(found) for key, found in value.items()}
    return [_finite(found) for found in value] if isinstance(value, list | tuple) else value

"""What the hub's web services share: who may ask, by bearer token; the listening socket; the server.

They refuse by default: without a bearer token that the tokens file knows, every path answers 401 and says why.
"""

import asyncio
import hashlib
import hmac
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hub_runtime.errors import StopProcess

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CALLER: Final = "hub.caller"
"""Where the scope of a request that `BearerTokens` let through says whose token it was."""
_PATIENCE_SECONDS: Final = 15.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def load_tokens(path: Path | None, variable: str) -> dict[str, str]:
    """Whose each token is: the name by the SHA-256 of the token; empty where there is no file.

    Args:
        path: a file `{"<who>": "<SHA-256 of the token>"}`, or a list of digests instead of one, while a token is being replaced.
        variable: the setting that names the file, for the text of the error.

    Raises:
        StopProcess: the file cannot be read, is not like that, or gives one token to two.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StopProcess(f"{variable} cannot be read ({type(error).__name__})", exit_code=78) from None
    whose: dict[str, str] = {}
    named: dict[str, Any] = content if isinstance(content, dict) else {"": None}
    for who, given in named.items():
        digests = given if isinstance(given, list) else [given]
        if not digests or not all(isinstance(digest, str) and _DIGEST.fullmatch(digest) for digest in digests):
            raise StopProcess(
                f'{variable} must hold {{"<who>": "<SHA-256 of the bearer token in hexadecimal>"}}, or a list of such digests', exit_code=78
            )
        for digest in digests:
            if whose.setdefault(digest, who) != who:
                raise StopProcess(f"{variable} gives one token to two: {whose[digest]} and {who}", exit_code=78)
    return whose


class BearerTokens:
    """Lets through who has a token (RFC 6750), before anything else looks at the request; `scope[CALLER]` says who it is."""

    def __init__(self, app: App, tokens: Mapping[str, str], variable: str) -> None:
        """`tokens` as `load_tokens` returns them; `variable` is named to whoever asks while there are none."""
        self._app = app
        self._tokens = list(tokens.items())
        self._variable = variable

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        caller = self._caller(dict(scope["headers"]).get(b"authorization", b""))
        if caller is not None:
            await self._app({**scope, CALLER: caller}, receive, send)
            return
        why = (
            "This service answers only with a bearer token (Authorization: Bearer ...) that its tokens file knows.\n"
            if self._tokens
            else f"This service has no tokens file ({self._variable}) and answers nobody.\n"
        ).encode()
        headers = [
            (b"www-authenticate", b'Bearer realm="dicom-web"'),
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(why)).encode()),
        ]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": why})

    def _caller(self, header: bytes) -> str | None:
        scheme, _, token = header.partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        # Every digest is compared, and each in constant time: the time of an answer says nothing of the tokens.
        matches = [who for known, who in self._tokens if hmac.compare_digest(digest, known)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen. Several workers share the port; a single process wants to hear that it is taken.

    Raises:
        OSError: it is, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256, reuse_port="HUB_WORKER" in os.environ)


class _Patience(H11Protocol):
    """Who has connected and asks nothing, or has its answer and goes on sending, is hung up on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.loop.call_later(_PATIENCE_SECONDS, self._hang_up, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Not at once: a reset would take the answer with it.
        self.loop.call_later(_PATIENCE_SECONDS, self._hang_up, self.cycle)

    def _hang_up(self, cycle: object) -> None:
        """Unless another request has begun since `cycle`."""
        if self.cycle is cycle and not self.transport.is_closing():
            self.transport.close()


def web_server(app: App, *, graceful_seconds: float = 5, **settings: Any) -> uvicorn.Server:  # noqa: ANN401 - uvicorn's own settings
    """Make a uvicorn server without logs of its own, which would hold paths and so identifiers. Run it in a thread; `should_exit` ends it."""
    config = uvicorn.Config(
        app,
        http=_Patience,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=max(1, round(graceful_seconds)),
        **settings,
    )
    return uvicorn.Server(config)

"""/livez, /readyz and /metrics on one port."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hub_runtime.metrics import Metrics


class Health:
    """Whether the process lives and is ready, and if not, why. Safe from any thread."""

    def __init__(self, *, live_seconds: float = 60.0, ready_seconds: float = 5.0) -> None:
        """`live_seconds`: a loop that has not beaten for so long counts as hung; for `ready_seconds`, as waiting for something."""
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}
        self._live_seconds, self._ready_seconds = live_seconds, ready_seconds
        self._last_beat: float | None = None

    def beat(self) -> None:
        """The main loop goes round. After the first beat, /livez fails when they stop."""
        self._last_beat = time.monotonic()

    def unready(self, what: str, reason: str) -> None:
        """Not ready because of `what` (`store`, `assignment`), for `reason`: text without data of any record."""
        with self._lock:
            self._reasons[what] = reason

    def ready(self, what: str) -> None:
        """`what` is no longer in the way."""
        with self._lock:
            self._reasons.pop(what, None)

    @property
    def reasons(self) -> dict[str, str]:
        """What is in the way now; empty when the process is ready."""
        with self._lock:
            reasons = dict(self._reasons)
        if not self._beaten_within(self._ready_seconds):
            reasons["loop"] = "the main loop waits: a call to the broker has not returned"
        return reasons

    @property
    def live(self) -> bool:
        """The main loop goes round, or there is none."""
        return self._beaten_within(self._live_seconds)

    def _beaten_within(self, seconds: float) -> bool:
        return self._last_beat is None or time.monotonic() - self._last_beat < seconds


class HealthServer:
    """Serves `health` and `metrics` until closed."""

    def __init__(self, host: str, port: int, health: Health, metrics: Metrics) -> None:
        """Bind and serve from a thread.

        Raises:
            OSError: the port is taken.
        """
        self._server = ThreadingHTTPServer((host, port), _handler(health, metrics))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(health: Health, metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            match self.path.split("?", 1)[0]:
                case "/livez":
                    live = health.live
                    self._answer(200 if live else 503, {"live": live})
                case "/readyz":
                    reasons = health.reasons
                    self._answer(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})
                case "/metrics":
                    self._send(200, "text/plain; version=0.0.4; charset=utf-8", metrics.text())
                case _:
                    self._answer(404, {"paths": ["/livez", "/readyz", "/metrics"]})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            self._send(status, "application/json", json.dumps(body).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            """A probe every few seconds is no news."""

    return Handler

"""One process of the hub: settings, logs, health, metrics, signals and the way out."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import ValidationError

from hub_runtime import workers
from hub_runtime.errors import StopProcess
from hub_runtime.health import Health, HealthServer
from hub_runtime.logs import configure_logging, dropped_log_fields, logger
from hub_runtime.metrics import Metric, Metrics
from hub_runtime.settings import ProcessSettings

EXIT_SOFTWARE = 70
EXIT_SETTINGS = 78

AnySettings = TypeVar("AnySettings", bound=ProcessSettings)
log = logger()


class Service(Generic[AnySettings]):
    """A context: inside it the process logs, answers /livez, /readyz and /metrics, and hears SIGTERM and SIGINT as `stop`."""

    def __init__(self, name: str, settings: AnySettings, *, metrics: Iterable[Metric] = ()) -> None:
        """`name` as the registry knows it (`ingest.closer`): it is the source of its events."""
        self.name = name
        self.settings = settings
        self.stop = threading.Event()
        self.health = Health()
        self.metrics = Metrics(metrics)
        self._failure: BaseException | None = None
        self._server: HealthServer | None = None

    @property
    def health_port(self) -> int:
        """Where /livez, /readyz and /metrics are served, inside the context."""
        if self._server is None:
            raise RuntimeError("the health server runs only inside `with service:`")
        return self._server.port

    def start_thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run `target` beside the main loop until it returns, which it should do soon after `stop` is set.

        What it raises ends the process: a thread that died unseen is work that nobody does.
        """

        def run() -> None:
            try:
                target()
            except BaseException as error:
                log.exception("a thread of the service failed; the process ends")
                self._failure = error
                self.stop.set()

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def check(self) -> None:
        """Raise what a thread of this service died of; call it where the main loop ends.

        Raises:
            StopProcess: a thread started by `start_thread` failed.
        """
        if isinstance(self._failure, StopProcess):
            raise self._failure
        if self._failure is not None:
            raise StopProcess(f"a thread failed with {type(self._failure).__name__}")

    def wait(self) -> None:
        """Block until `stop` is set, for services whose work is done in threads; then `check`."""
        while not self.stop.wait(0.5):
            self.metrics.set("hub_log_fields_dropped_total", dropped_log_fields())
        self.check()

    def __enter__(self) -> "Service[AnySettings]":
        configure_logging(self.name, replica=self.settings.replica, strict=self.settings.log_strict)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)
        self._server = HealthServer(self.settings.health_host, self.settings.health_port, self.health, self.metrics)
        log.info("started", host=self.settings.health_host, port=self._server.port)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        log.info("stopped")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Only the flag: whatever else a handler does may interrupt itself.
        self.stop.set()


def run_service(
    name: str, settings_class: type[AnySettings], serve: Callable[[Service[AnySettings]], None], *, metrics: Iterable[Metric] = ()
) -> NoReturn:
    """The body of a service's `main`: read the settings, then `serve` in this process, or keep `--workers N` processes that do.

    Exits with 0 after a graceful stop, 78 when the settings are wrong, and StopProcess' code (70 by default) when it cannot go on.
    """
    arguments = argparse.ArgumentParser(prog=name)
    arguments.add_argument("--workers", type=int, default=None, help="processes to run (HUB_WORKERS, 1)")
    wanted = arguments.parse_args().workers
    settings = _settings(name, settings_class)
    workers.die_with_parent()
    count = settings.workers if wanted is None else wanted
    if count > 1 and not workers.is_worker():
        configure_logging(name, replica=settings.replica, strict=settings.log_strict)
        sys.exit(
            workers.run_workers(count, replica=settings.replica, health_port=settings.health_port, stop_seconds=settings.drain_seconds + 10)
        )
    code = 0
    try:
        with Service(name, settings, metrics=metrics) as service:
            code = _serve(service, serve)
    finally:
        sys.stderr.flush()
    # Threads of handlers that outlived the drain must not hold the process: what they do is committed by nobody.
    workers.exit_now(code)


def _serve(service: Service[Any], serve: Callable[[Service[Any]], None]) -> int:
    try:
        serve(service)
        service.check()
    except StopProcess as reason:
        log.error("the process ends", reason=str(reason), exit_code=reason.exit_code)  # noqa: TRY400 - where it was raised is no news
        return reason.exit_code
    except Exception:
        log.exception("the process ends because of an unexpected error", exit_code=EXIT_SOFTWARE)
        return EXIT_SOFTWARE
    return 0


def _settings(name: str, settings_class: type[AnySettings]) -> AnySettings:
    try:
        return settings_class()
    except ValidationError as error:
        # The values stay out of the message: one of them may be a secret.
        wrong = "; ".join(f"HUB_{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" for item in error.errors())
        sys.stderr.write(f"{name}: the settings are not complete: {wrong}\n")
        sys.exit(EXIT_SETTINGS)

"""The way in over HTTP, STOW-RS (PS3.18 10.5): an instance stands in ReferencedSOPSequence only when it is durable and announced.

request  whose token?  media types?  room?  (BearerTokens, Stow)
body         parts as they arrive (stow_parts) -> intake, as for C-STORE -> Store Instances Response (stow_response)
"""  # fmt: skip

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from hub_dicom import Trusts, is_uid
from hub_runtime import logger
from hub_runtime.health import Health
from hub_runtime.metrics import Metric, Metrics
from hub_runtime.producer import EventProducer
from hub_runtime.service import Service, run_service
from hub_runtime.settings import open_store
from hub_runtime.web import CALLER, App, BearerTokens, listen, load_tokens, web_server
from starlette.requests import ClientDisconnect

from hub_ingest.accepted import takes
from hub_ingest.arrival import Spool
from hub_ingest.intake import OUT_OF_RESOURCES, PROCESSING_FAILURE, Call, Intake, Refusal
from hub_ingest.multipart import Malformed, MultipartReader, media_type
from hub_ingest.pressure import Pressure, watch_parts
from hub_ingest.settings import load_trusts
from hub_ingest.stow_parts import DICOM, Parts, Waiting
from hub_ingest.stow_response import JSON, XML, Result, http_status, negotiate, payload
from hub_ingest.stow_settings import StowSettings

SOURCE: Final = "ingest.stow"
TOKENS_FILE: Final = "HUB_STOW_TOKENS_FILE"
RETRY_AFTER_SECONDS: Final = 10
_AHEAD: Final = 2  # parts of one request that are being taken in while the next one arrives
_STEP_BYTES: Final = 256 * 1024  # of the body are handed to a thread at once

METRICS: Final = (
    Metric("hub_stow_requests_total", "counter", "Requests of known trusts answered, by HTTP status.", ("trust", "status")),
    Metric("hub_stow_requests_open", "gauge", "Requests whose body is being read now."),
    Metric(
        "hub_stow_instances_total",
        "counter",
        "Instances acknowledged; result: stored, or repeated when the object was there.",
        ("trust", "result"),
    ),
    Metric("hub_stow_bytes_total", "counter", "Bytes of data sets acknowledged.", ("trust",)),
    Metric("hub_stow_failures_total", "counter", "Parts answered with a failure reason.", ("trust", "status", "reason")),
    Metric("hub_stow_seconds", "histogram", "From an instance's last byte to its being durable and announced, or refused.", ("status",)),
)

Got = TypeVar("Got")
log = logger()


class Stow:
    """Answers store requests. All but reading bodies and taking instances runs in one event loop."""

    def __init__(self, settings: StowSettings, trusts: Trusts, intake: Intake, *, health: Health, metrics: Metrics, folder: Path) -> None:
        """`folder` is where large parts wait."""
        self._settings = settings
        self._trusts = trusts
        self._intake = intake
        self._health = health
        self._metrics = metrics
        self._folder = folder
        self._open: Counter[str] = Counter()
        # Threads wait for store and broker, so there are enough for everything that a full house does at once.
        self._threads = ThreadPoolExecutor(settings.stow_requests * (_AHEAD + 1), thread_name_prefix="stow")

    def app(self, tokens: Mapping[str, str]) -> App:
        """The web application: the store transaction of PS3.18 10.5 below /dicom-web, for those who have a token."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

        @app.post("/dicom-web/studies")
        async def store(request: Request) -> Response:
            return await self._answer(request, None)

        @app.post("/dicom-web/studies/{study}")
        async def store_in_study(request: Request, study: str) -> Response:
            return await self._answer(request, study)

        return BearerTokens(app, tokens, TOKENS_FILE)

    def close(self) -> None:
        """Begin no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: Request, study: str | None) -> Response:
        trust = self._trusts.by_name(request.scope[CALLER])
        if trust is None:
            log.warning("a token belongs to no trust of the trusts file", reason="no-trust")
            return _text(403, "This token belongs to nobody who may send: the trusts file does not name its owner.")
        address = request.client.host if request.client is not None else ""
        if not trust.calls_from(address):
            log.warning("a trust's token came from an address that is not the trust's", trust=trust.name, address=address)
            response = _text(403, "This token may not be used from this address: the trusts file says where its owner's calls come from.")
        else:
            response = await self._store(request, Call(trust), study)
        self._metrics.count("hub_stow_requests_total", trust=trust.name, status=str(response.status_code))
        return response

    async def _store(self, request: Request, call: Call, study: str | None) -> Response:
        checked = _check(request, study)
        if isinstance(checked, Response):
            return checked
        accepted, reader = checked
        trust = call.trust.name
        if self._health.reasons:
            return _busy("The object store or the message broker is away: send it again later.")
        if self._open.total() >= self._settings.stow_requests or self._open[trust] >= self._settings.stow_requests_per_trust:
            log.warning("a request was refused because too many are open", trust=trust, reason="too-many-requests")
            return _busy("Too many requests are open: send it again later.")
        self._open[trust] += 1
        self._metrics.set("hub_stow_requests_open", self._open.total())
        work = _Request(self, call, study, reader)
        try:
            malformed = await work.read(_chunks(request, self._settings.stow_idle_seconds))
            results = await work.results()
        except ClientDisconnect:
            log.warning("a sender hung up before its request was whole", trust=trust, reason="disconnected")
            return Response(status_code=400)
        finally:
            work.discard()
            self._open[trust] -= 1
            self._metrics.set("hub_stow_requests_open", self._open.total())
        status = http_status(results, malformed=malformed is not None)
        if malformed is not None:
            log.warning("a body could not be read to its end", trust=trust, status=str(status), reason="malformed", instances=len(results))
            if status == 400:
                return _text(400, f"The body is no multipart/related message that can be stored: {malformed}.")
        body = payload(results, accepted, malformed=malformed is not None)
        return Response(body, status, {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else None, accepted)

    def spool(self) -> Spool:
        """Where one part waits."""
        return Spool(self._folder, self._settings.stow_memory_bytes, self._settings.stow_maximum_bytes)

    async def in_thread(self, function: Callable[[], Got]) -> Got:
        """Run it beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def take(self, call: Call, study: str | None, waiting: Waiting) -> Result:
        """Take one instance in; raises nothing, and gives its spool back."""
        arrival, trust = waiting.arrival, call.trust.name
        uids = arrival.sop_class_uid, arrival.sop_instance_uid
        start = time.monotonic()
        try:
            taken = self._intake.take(call, arrival, only_study=study)
        except Refusal as refusal:
            result = Result(*uids, refusal.status, refusal.reason, passing=refusal.status == OUT_OF_RESOURCES)
        except Exception:
            log.exception("instance not taken because of an unexpected error", trust=trust, sop_class_uid=arrival.sop_class_uid)
            result = Result(*uids, PROCESSING_FAILURE, "unexpected-error")
        else:
            self._metrics.count("hub_stow_instances_total", trust=trust, result="stored" if taken.created else "repeated")
            self._metrics.count("hub_stow_bytes_total", arrival.size, trust=trust)
            result = Result(*uids, 0)
        finally:
            waiting.spool.discard()
        self._metrics.observe("hub_stow_seconds", time.monotonic() - start, status=f"{result.status:#06x}")
        return result

    def count_failure(self, trust: str, result: Result) -> None:
        """Say that a part was refused, without saying which."""
        status = f"{result.status:#06x}"
        log.warning("instance refused", trust=trust, status=status, reason=result.reason)
        self._metrics.count("hub_stow_failures_total", trust=trust, status=status, reason=result.reason)


class _Request:
    """One request's parts, on their way in: while one arrives, the ones before it are taken."""

    def __init__(self, stow: Stow, call: Call, study: str | None, reader: MultipartReader) -> None:
        self._stow = stow
        self._call = call
        self._study = study
        self._parts = Parts(reader, stow.spool, partial(takes, call.trust))
        self._results: list[Result | asyncio.Future[Result]] = []
        self._running: deque[asyncio.Future[Result]] = deque()
        self._stored = 0

    async def read(self, chunks: AsyncIterator[bytes]) -> Malformed | None:
        """Read the body and take its parts; what was wrong with it.

        Without anything stored it ends early when store or broker are away: the answer is then 503, whatever else is in the body.

        Raises:
            ClientDisconnect: the sender is gone.
        """
        try:
            async for chunk in chunks:
                found: list[Waiting | Result] = []
                try:
                    await self._stow.in_thread(partial(self._feed, chunk, found))
                finally:
                    for one in found:
                        await self._add(one)
                if self._parts.away and not self._stored:
                    return None
            self._parts.close()
        except Malformed as error:
            return error
        return None

    async def results(self) -> Sequence[Result]:
        """What became of each part, in order, when all that runs has ended."""
        results = [one if isinstance(one, Result) else await one for one in self._results]
        for result in results:
            if result.status:
                self._stow.count_failure(self._call.trust.name, result)
        return results

    def discard(self) -> None:
        """Give back what the part that is not whole has taken."""
        self._parts.discard()

    def _feed(self, chunk: bytes, found: list[Waiting | Result]) -> None:
        # What was found before the body went wrong is kept.
        found.extend(self._parts.feed(chunk))

    async def _add(self, one: Waiting | Result) -> None:
        if isinstance(one, Result):
            self._results.append(one)
            return
        while len(self._running) >= _AHEAD:
            self._note(await self._running.popleft())
        while self._running and self._running[0].done():
            self._note(self._running.popleft().result())
        if self._parts.away:
            one.spool.discard()
            uids = one.arrival.sop_class_uid, one.arrival.sop_instance_uid
            self._results.append(Result(*uids, OUT_OF_RESOURCES, "not-tried", passing=True))
            return
        task = asyncio.ensure_future(self._stow.in_thread(partial(self._stow.take, self._call, self._study, one)))
        self._running.append(task)
        self._results.append(task)

    def _note(self, result: Result) -> None:
        self._stored += result.status == 0
        self._parts.away |= result.passing


def _check(request: Request, study: str | None) -> tuple[str, MultipartReader] | Response:
    """The media type of the answer and what reads the body, or an answer that says what is wrong with the request."""
    accepted = negotiate(request.headers.get("accept"))
    if accepted is None:
        return _text(406, f"Answers are {JSON} or {XML}; ask for one of them with the header Accept.")
    if study is not None and not is_uid(study):
        return _text(400, "The path holds something that is no UID (PS3.5 9.1).")
    reader = _reader(request)
    return reader if isinstance(reader, Response) else (accepted, reader)


def _reader(request: Request) -> MultipartReader | Response:
    """What reads the body, or the answer to a body that nothing here reads."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        return _text(415, "The body is encoded: send it without Content-Encoding.")
    try:
        kind, parameters = media_type(request.headers.get("content-type", ""))
        if kind != "multipart/related" or parameters.get("type", DICOM).lower() != DICOM:
            return _text(415, f'Instances come as multipart/related; type="{DICOM}" (PS3.18 10.5.1).')
        return MultipartReader(parameters.get("boundary", ""))
    except Malformed as error:
        if not request.headers.get("content-type"):
            return _text(415, f'There is no Content-Type: send multipart/related; type="{DICOM}" (PS3.18 10.5.1).')
        return _text(400, f"The Content-Type cannot be used: {error}.")


async def _chunks(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body in steps that are worth a thread.

    Raises:
        Malformed: nothing came for too long.
        ClientDisconnect: the sender is gone.
    """
    stream = request.stream()
    buffer = bytearray()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise Malformed("the sender stopped sending") from None
        if chunk is not None:
            buffer += chunk
        if len(buffer) >= _STEP_BYTES or (chunk is None and buffer):
            yield bytes(buffer)
            buffer.clear()
        if chunk is None:
            return


def _busy(text: str) -> Response:
    return _text(503, text, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status, headers)


def main() -> None:
    """Run STOW-RS until SIGTERM: `hub-stow [--workers N]`."""
    run_service(SOURCE, StowSettings, _serve, metrics=METRICS)


def _serve(service: Service[StowSettings]) -> None:
    settings = service.settings
    trusts = load_trusts(settings.trusts_file)
    tokens = load_tokens(settings.stow_tokens_file, TOKENS_FILE)
    if not tokens:
        log.warning("no bearer tokens are set; every request is refused", reason="no-tokens")
    folder = settings.data_folder / "stow"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = open_store(settings)
    with EventProducer(settings) as producer, listen(settings.stow_host, settings.stow_port) as listener:
        pressure = Pressure(service.health)
        intake = Intake(store, producer, source=SOURCE, origin="stow-rs", pressure=pressure)
        stow = Stow(settings, trusts, intake, health=service.health, metrics=service.metrics, folder=folder)
        server = web_server(
            stow.app(tokens),
            graceful_seconds=settings.drain_seconds,
            proxy_headers=bool(settings.stow_proxies),
            forwarded_allow_ips=settings.stow_proxies,
        )
        watch_parts(service, store, pressure)
        web = service.start_thread("web", lambda: server.run([listener]))
        log.info("listening", host=settings.stow_host, port=listener.getsockname()[1])
        try:
            service.wait()
        finally:
            server.should_exit = True
            web.join(settings.drain_seconds + 5)
            stow.close()
            log.info("no longer listening")


if __name__ == "__main__":
    main()

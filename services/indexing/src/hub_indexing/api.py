"""The process that answers QIDO-RS over HTTP: who may ask, content negotiation, status codes. The searching is in `qido`.

It refuses by default: without a bearer token that the tokens file knows, every path answers 401 and says why.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import psycopg
from fastapi import FastAPI, Request, Response
from hub_dicom.matching import MalformedCondition
from hub_runtime import Service, logger, run_service
from hub_runtime.web import App, BearerTokens, listen, load_tokens, web_server
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from hub_indexing import qido
from hub_indexing.database import open_pool
from hub_indexing.settings import ApiSettings

MEDIA_TYPE: Final = "application/dicom+json"
TOKENS_FILE: Final = "HUB_QIDO_TOKENS_FILE"
_JSON: Final = "application/json"
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")

log = logger()


def make_app(pool: ConnectionPool[Connection[TupleRow]], tokens: Mapping[str, str], *, most_results: int = 5000) -> App:
    """The web application: searches of PS3.18 10.6 below /dicom-web, for those who have a token."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def answer(request: Request, level: qido.Level, study: str | None = None, series: str | None = None) -> Response:
        return _answer(pool, request, level, study, series, most_results=most_results)

    # PS3.18 Table 10.6.1-1.
    @app.get("/dicom-web/studies")
    def studies(request: Request) -> Response:
        return answer(request, "studies")

    @app.get("/dicom-web/series")
    def series(request: Request) -> Response:
        return answer(request, "series")

    @app.get("/dicom-web/instances")
    def instances(request: Request) -> Response:
        return answer(request, "instances")

    @app.get("/dicom-web/studies/{study}/series")
    def series_of_study(request: Request, study: str) -> Response:
        return answer(request, "series", study)

    @app.get("/dicom-web/studies/{study}/instances")
    def instances_of_study(request: Request, study: str) -> Response:
        return answer(request, "instances", study)

    @app.get("/dicom-web/studies/{study}/series/{series}/instances")
    def instances_of_series(request: Request, study: str, series: str) -> Response:
        return answer(request, "instances", study, series)

    return BearerTokens(app, tokens, TOKENS_FILE)


def _answer(
    pool: ConnectionPool[Connection[TupleRow]],
    request: Request,
    level: qido.Level,
    study: str | None,
    series: str | None,
    *,
    most_results: int,
) -> Response:
    media_type = _negotiate(request)
    if media_type is None:
        return _text(406, f"Results are {MEDIA_TYPE}; ask for it with the header Accept.")
    for uid in (study, series):
        if uid is not None and not (len(uid) <= 64 and _UID.fullmatch(uid)):
            return _text(400, "The path holds something that is no UID (PS3.5 9.1).")
    try:
        query = qido.read_query(level, request.query_params.multi_items(), most=most_results)
    except MalformedCondition as problem:
        return _text(400, str(problem))
    try:
        with pool.connection() as connection:
            found = qido.search(connection, query, study=study, series=series)
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable) as problem:
        log.warning("a search was not answered", reason="database-unavailable", error=type(problem).__name__)
        return _text(503, "The index is away or took too long: ask for less, or again later.", {"Retry-After": "5"})
    response = Response(json.dumps(found.datasets, ensure_ascii=False, separators=(",", ":")).encode(), 200, media_type=media_type)
    service = str(request.base_url) + "dicom-web"
    warnings = list(query.warnings)
    if found.more and query.cut:
        warnings.append("The number of results exceeded the maximum supported by the server. Additional results can be requested.")
    for warning in warnings:
        response.headers.append("Warning", f"299 {service}: {warning}")
    response.headers["Cache-Control"] = "no-store"
    return response


def _negotiate(request: Request) -> str | None:
    """The media type to answer with (PS3.18 8.7.5): the header, or the parameter where it stands; None where nothing fits."""
    accept = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
    ranges = [part.split(";") for part in accept.lower().split(",")]
    offered = {kind.strip() for kind, *parameters in ranges if not any(re.fullmatch(r"\s*q=0(\.0*)?\s*", text) for text in parameters)}
    if offered & {MEDIA_TYPE, "*/*", "application/*"}:
        return MEDIA_TYPE
    return _JSON if _JSON in offered else None


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(text + "\n", status, headers, "text/plain; charset=utf-8")


def serve(service: Service[ApiSettings]) -> None:
    """Answer until the process is told to stop."""
    settings = service.settings
    tokens = load_tokens(settings.qido_tokens_file, TOKENS_FILE)
    if not tokens:
        log.warning("no bearer tokens are set; every search is refused", reason="no-tokens")
    with (
        open_pool(settings.database_url.get_secret_value(), size=8, read_only=True) as pool,
        listen(settings.qido_host, settings.qido_port) as listener,
    ):
        app = make_app(pool, tokens, most_results=settings.qido_most_results)
        server = web_server(app)
        log.info("answering searches", host=settings.qido_host, port=listener.getsockname()[1])
        web = service.start_thread("web", lambda: server.run([listener]))
        watch = service.start_thread("database-watch", lambda: _watch(service, pool))
        try:
            service.wait()
        finally:
            server.should_exit = True
            web.join(10)
            watch.join(10)


def _watch(service: Service[ApiSettings], pool: ConnectionPool[Any]) -> None:
    """Unready while the database is away."""
    while not service.stop.is_set():
        try:
            with pool.connection(timeout=2) as connection:
                connection.execute("SELECT 1 FROM canonical_studies LIMIT 1")
            service.health.ready("database")
        except psycopg.Error:
            service.health.unready("database", "database-unavailable")
        service.stop.wait(2)


def main() -> None:
    """The command `hub-indexing-api`."""
    run_service("indexing.api", ApiSettings, serve)


if __name__ == "__main__":
    main()

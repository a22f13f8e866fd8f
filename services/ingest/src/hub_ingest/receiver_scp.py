"""The DICOM side of the receiver: who may associate, what is negotiated, and each C-STORE as it came off the network, not decoded.

pynetdicom negotiates the association (PS3.8 7.1, 9.2). What follows is a `Conversation` on the same socket: pynetdicom would poll for
it, read 4 KiB at a time and decode. What pynetdicom does not offer is added here: trust by title and address, bounds of associations,
TCP_NODELAY, one listening port for several processes.
"""

import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from socketserver import BaseServer
from typing import Any, Final, Generic, TypeVar

from hub_dicom import Trust, Trusts, file_meta
from hub_dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hub_dicom.storage import RETIRED_STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from hub_runtime import logger
from hub_runtime.metrics import Metrics
from hub_runtime.workers import is_worker
from pynetdicom import AE, AllStoragePresentationContexts, _config, build_context, evt, register_uid
from pynetdicom.pdu import A_ASSOCIATE_AC
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from hub_ingest.accepted import offered
from hub_ingest.arrival import Answer, Arrival, MemoryBudget, Part, Spool
from hub_ingest.commitment_dicom import PUSH_MODEL
from hub_ingest.conversation import Context, Conversation, Other
from hub_ingest.dimse import AFFECTED_SOP_CLASS_UID, AFFECTED_SOP_INSTANCE_UID, Command
from hub_ingest.receiver_tls import TlsDoor, transport_fault
from hub_ingest.settings import ReceiverSettings

# PS3.8 table 9-21: result, source, reason of an A-ASSOCIATE-RJ.
UNKNOWN_CALLER: Final = (1, 1, 3)
UNKNOWN_CALLED: Final = (1, 1, 7)
LOCAL_LIMIT_EXCEEDED: Final = (2, 3, 2)
_NOT_AUTHORISED: Final = 0x0124  # PS3.7 C.4.14
_PDU_BYTES: Final = 131_072
_ACSE_SECONDS: Final = 15
_REQUEST_BYTES: Final = 2**20  # of an A-ASSOCIATE-RQ; 128 contexts with every transfer syntax have a quarter of it

log = logger()


Call = TypeVar("Call")


class StorageProvider(Generic[Call]):
    """A Storage and Verification SCP that listens from its construction on; `serve` accepts."""

    def __init__(
        self,
        settings: ReceiverSettings,
        trusts: Trusts,
        *,
        admit: Callable[[Trust], Call],
        take: Callable[[Call, Arrival], Answer],
        metrics: Metrics,
        folder: Path,
        tls: TlsDoor | None = None,
        commitment: Callable[[Trust], Other] | None = None,
        away: Callable[[], Part | None] = lambda: None,
    ) -> None:
        """Bind.

        Args:
            settings: host, port, AE title and bounds.
            trusts: who may call.
            admit: makes what stands for one association of a trust.
            take: answers an instance of that association; blocks as long as the sender may wait, and does not raise.
            metrics: of the receiver.
            folder: where large instances wait.
            tls: leads in who calls the TLS port; without it there is none.
            commitment: makes what answers storage commitment on one association of a trust; without it that SOP class is refused.
            away: says what is missing to take an instance in now; then its data set is not kept, and `take` hears of it.

        Raises:
            OSError: the port is taken or the folder cannot be made.
        """
        self._trusts = trusts
        self._admit = admit
        self._take = take
        self._metrics = metrics
        self._called_ae = settings.receiver_ae_title.strip()
        self._commitment = commitment
        self._away = away
        self._settings = settings
        self._calls: weakref.WeakKeyDictionary[Any, Call] = weakref.WeakKeyDictionary()
        self._callers: weakref.WeakKeyDictionary[Any, Trust] = weakref.WeakKeyDictionary()
        self._admission = threading.Lock()
        self._folder = folder
        self._budget = MemoryBudget(settings.receiver_all_memory_bytes)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # pynetdicom's own log handlers decode and print identifiers at debug level: none of them is bound.
        _config.LOG_HANDLER_LEVEL = "none"
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._on_request),
            (evt.EVT_PDU_SENT, _on_pdu_sent),
            (evt.EVT_CONN_CLOSE, self._on_close),
        ]
        contexts = supported_contexts()
        if commitment is not None:
            contexts.append(build_context(PUSH_MODEL, list(TRANSFER_SYNTAXES[:3])))
        ae = _application_entity(settings)

        def listen(port: int, tls: TlsDoor | None) -> _Server:
            return _Server(
                ae,
                (settings.receiver_host, port),
                contexts,
                handlers,
                converse=self._converse,
                shared=is_worker(),
                tls=tls,
            )

        self._server = listen(settings.receiver_port, None)
        self._tls_server = None
        if tls is not None and settings.receiver_tls_port is not None:
            self._tls_server = listen(settings.receiver_tls_port, tls)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def tls_port(self) -> int | None:
        """Where it listens for TLS, if anywhere."""
        return int(self._tls_server.server_address[1]) if self._tls_server is not None else None

    def serve(self) -> None:
        """Accept associations, each in a thread of its own, until `close`."""
        self._server.serve_forever(poll_interval=0.1)

    def serve_tls(self) -> None:
        """The same for the TLS port; returns at once where there is none."""
        if self._tls_server is not None:
            self._tls_server.serve_forever(poll_interval=0.1)

    def close(self, seconds: float) -> int:
        """Stop accepting, and let the associations that run end within `seconds`; how many did not."""
        for server in self._servers():
            BaseServer.shutdown(server)
            # Not the server's own: that one waits for the threads of connections for ever.
            server.socket.close()
        deadline = time.monotonic() + seconds
        while (running := len(self._active())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return running

    def _servers(self) -> "list[_Server]":
        return [server for server in (self._server, self._tls_server) if server is not None]

    def _active(self) -> list[Any]:
        return [assoc for server in self._servers() for assoc in server.active_associations]

    def _on_request(self, event: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        """An A-ASSOCIATE-RQ is here: refuse it unless a trust calls us by our name."""
        assoc = event.assoc
        request = assoc.requestor.primitive
        calling, called, address = str(request.calling_ae_title), str(request.called_ae_title), str(assoc.requestor.address)
        trust = self._trusts.by_caller(calling, address)
        if trust is None:
            self._reject(assoc, UNKNOWN_CALLER, "unknown-caller", calling_ae=calling, address=address)
        elif (fault := transport_fault(trust, assoc.dul.socket.socket)) is not None:
            self._reject(assoc, UNKNOWN_CALLER, fault, trust=trust.name, calling_ae=calling, address=address)
        elif called.strip() != self._called_ae:
            self._reject(assoc, UNKNOWN_CALLED, "unknown-called-ae", trust=trust.name, called_ae=called)
        elif (full := self._without_room(assoc, trust)) is not None:
            self._reject(assoc, LOCAL_LIMIT_EXCEEDED, full, trust=trust.name)
        else:
            proposed = [str(context.abstract_syntax) for context in request.presentation_context_definition_list]
            assoc.acceptor.supported_contexts = offered(trust, proposed, assoc.acceptor.supported_contexts)
            self._calls[assoc] = self._admit(trust)
            self._metrics.count("hub_receiver_associations_total", trust=trust.name)
            self._count_open()

    def _without_room(self, assoc: Any, trust: Trust) -> str | None:  # noqa: ANN401 - pynetdicom has no types
        """Take a place, or say which bound is reached. Counted from associations that live: no place is lost to a thread that died.

        A connection that has not asked to associate takes no place, so that nobody is kept out by those who say nothing.
        """
        with self._admission:
            callers = [self._callers.get(one) for one in self._active()]
            if sum(caller is not None for caller in callers) >= self._settings.receiver_associations:
                return "limit"
            if callers.count(trust) >= self._settings.receiver_associations_per_trust:
                return "trust-limit"
            self._callers[assoc] = trust
            return None

    def _on_close(self, event: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        self._calls.pop(event.assoc, None)
        self._count_open(but=event.assoc)

    def _count_open(self, *, but: object = None) -> None:
        self._metrics.set("hub_receiver_associations_open", sum(assoc is not but and assoc in self._callers for assoc in self._active()))

    def _reject(self, assoc: Any, reason: tuple[int, int, int], code: str, **seen: str) -> None:  # noqa: ANN401 - pynetdicom has no types
        assoc.acse.send_reject(*reason)
        assoc.kill()
        self._metrics.count("hub_receiver_associations_refused_total", reason=code)
        log.warning("association refused", reason=code, **seen)

    def _converse(self, assoc: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        """The association is accepted: from here on the socket is ours, until its end."""
        # It read nothing after it sent the A-ASSOCIATE-AC (see `_on_pdu_sent`).
        assoc.dul.join()
        connection = assoc.dul.socket.socket if assoc.dul.socket is not None else None
        if connection is None:
            return
        call, trust = self._calls.get(assoc), self._callers.get(assoc)
        other = self._commitment(trust) if self._commitment is not None and trust is not None else None
        conversation = Conversation(
            connection,
            {
                cx.context_id: Context(cx.context_id, str(cx.abstract_syntax), str(cx.transfer_syntax[0]), bool(cx.as_scp))
                for cx in assoc.accepted_contexts
            },
            _Taking(self, call, other),
            maximum_pdu=_PDU_BYTES,
            peer_maximum_pdu=int(assoc.requestor.maximum_length or 0),
            idle_seconds=self._settings.receiver_idle_seconds,
        )
        end = "unexpected-error"
        try:
            end = conversation.run()
        finally:
            assoc.is_established = False
            if other is not None:
                other.end()
            self._calls.pop(assoc, None)
            self._callers.pop(assoc, None)
            self._metrics.count("hub_receiver_associations_ended_total", reason=end)
            self._count_open(but=assoc)

    def spool(self, start: bytes | None) -> Spool:
        """A place for a data set."""
        settings = self._settings
        return Spool(
            self._folder,
            settings.receiver_memory_bytes,
            settings.receiver_maximum_bytes,
            start=start,
            budget=self._budget,
            keep_free_bytes=settings.receiver_free_bytes,
            away=self._away(),
        )

    def store(self, call: Call | None, context: Context, command: Command, spool: Spool) -> Answer:
        """Answer a C-STORE whose data set is whole."""
        if call is None:
            # Cannot be: it was refused above. If it can, nothing gets in.
            return Answer(_NOT_AUTHORISED, "Not authorised: ask the hub's operator to let this sender in")
        arrival = Arrival(
            sop_class_uid=command.text(AFFECTED_SOP_CLASS_UID),
            sop_instance_uid=command.text(AFFECTED_SOP_INSTANCE_UID),
            transfer_syntax_uid=context.transfer_syntax,
            data_set=spool.stream,
            size=spool.size,
            too_large=spool.too_large,
            fault=spool.fault,
            away=spool.away,
            sha256=spool.sha256,
        )
        return self._take(call, arrival)


class _Taking(Generic[Call]):
    """What one association's messages are for: a `Handler`."""

    def __init__(self, provider: StorageProvider[Call], call: Call | None, other: Other | None) -> None:
        self._provider = provider
        self._call = call
        self.other = other

    def open(self, context: Context, command: Command) -> Spool:
        try:
            # The digest of the object on the way, if the request's UIDs are those of the instance: the intake refuses it otherwise.
            start = file_meta(command.text(AFFECTED_SOP_CLASS_UID), command.text(AFFECTED_SOP_INSTANCE_UID), context.transfer_syntax)
        except ValueError:
            start = None
        return self._provider.spool(start)

    def store(self, context: Context, command: Command, body: Spool) -> Answer:
        return self._provider.store(self._call, context, command, body)


def _on_pdu_sent(event: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
    """Called in pynetdicom's own thread of the connection: after the acceptance it ends, before it could read the first P-DATA."""
    if isinstance(event.pdu, A_ASSOCIATE_AC):
        event.assoc.dul.kill_dul()


class _Contexts(list[Any]):
    """Supported contexts that each association shares: pynetdicom copies them, 190 with 53 syntaxes each, for every connection."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Contexts":
        return self


class _Server(ThreadedAssociationServer):  # type: ignore[misc]  # pynetdicom has no types
    """Accepts connections."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        ae: Any,  # noqa: ANN401 - pynetdicom has no types
        address: tuple[str, int],
        contexts: _Contexts,
        handlers: list[Any],
        *,
        converse: Callable[[Any], None],
        shared: bool,
        tls: TlsDoor | None,
    ) -> None:
        self.converse = converse
        self._tls = tls
        self._shared = shared
        super().__init__(ae, address, ae.ae_title, contexts, evt_handlers=handlers, request_handler=_Handler)

    def server_bind(self) -> None:
        if self._shared:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # Without it a response waits for the sender's delayed acknowledgement: about 45 ms an instance.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - pynetdicom has no types
        # In the thread of the connection: a caller that is slow to shake hands keeps nobody waiting.
        inside = request if self._tls is None else self._tls.enter(request, str(client_address[0]))
        if inside is not None:
            super().finish_request(inside, client_address)

    def verify_request(self, _request: object, _address: object) -> bool:
        # Above the bound of associations a caller gets a proper rejection; far above it connections are hung up on.
        return len(self.active_associations) < int(self.ae.maximum_associations)

    def handle_error(self, _request: object, _address: object) -> None:
        log.exception("a connection failed before its association")  # noqa: LOG004 - socketserver calls it while it handles the exception


class _Handler(RequestHandler):  # type: ignore[misc]  # pynetdicom has no types
    """Sets up the association of a connection."""

    def _create_association(self) -> Any:  # noqa: ANN401 - pynetdicom has no types
        assoc = super()._create_association()
        assoc._run_reactor = lambda: self.server.converse(assoc)  # noqa: SLF001 - what it runs once the association is accepted
        whole = assoc.dul.socket.recv

        def bounded(size: int) -> Any:  # noqa: ANN401 - pynetdicom has no types
            # pynetdicom believes any length that a PDU claims.
            if size > _REQUEST_BYTES:
                assoc.dul.to_user_queue.put(None)  # the association need not wait for a request any longer
                raise OSError("an A-ASSOCIATE-RQ is not so long")
            return whole(size)

        assoc.dul.socket.recv = bounded
        return assoc


def _application_entity(settings: ReceiverSettings) -> Any:  # noqa: ANN401 - pynetdicom has no types
    ae = AE(ae_title=settings.receiver_ae_title)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = _PDU_BYTES
    ae.maximum_associations = 2 * settings.receiver_associations + 10  # connections; `_without_room` counts associations
    ae.acse_timeout = _ACSE_SECONDS
    ae.dimse_timeout = settings.receiver_idle_seconds
    ae.network_timeout = settings.receiver_idle_seconds
    return ae


_registered = threading.Lock()


def supported_contexts() -> _Contexts:
    """Verification, and every storage SOP class with every transfer syntax that holds its pixels."""
    current = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    retired = [uid for uid in RETIRED_STORAGE_SOP_CLASSES if uid not in current]
    with _registered:
        for uid in retired:
            register_uid(uid, f"RetiredStorage_{uid.replace('.', '_')}", StorageServiceClass)
    syntaxes = list(TRANSFER_SYNTAXES)
    contexts = [build_context(uid, syntaxes) for uid in (*sorted(current), *retired)]
    return _Contexts([build_context(Verification, syntaxes[:3]), *contexts])

"""From the spool to the hub: in the order of arrival, and a copy goes only after the hub's 0x0000.

Of what the hub says, three things follow: it has it; it never takes it, then it is moved aside; or it may take it later, then its study waits
and others go on. Three failures in a row are taken for an outage, and everything waits.
"""

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Final

from hub_dicom import NotPart10, read_file_meta
from hub_dicom.part10 import PREFIX_BYTES
from hub_dicom.sending import CONTEXTS_PER_ASSOCIATION, NoAssociation, NotSent, Pair, StoreAssociation, store_association
from hub_runtime import logger
from hub_runtime.metrics import Metrics

from hub_ingest.receiver_tls import UnusableCertificates
from hub_ingest.spool_folder import SpoolFolder, Waiting
from hub_ingest.spool_settings import SpoolSettings

_BATCH: Final = 500
_OUTAGE: Final = 3  # failures in a row
_FIRST_PAUSE: Final = 0.5
_IDLE_SECONDS: Final = 0.5
_CONTEXT_REFUSED: Final = (3, 4)  # PS3.8 table 9-18: abstract syntax, transfer syntaxes not supported
_NOT_SUPPORTED: Final = 0x0122  # PS3.7 C.5.6
_BLOCK_BYTES: Final = 2**20

log = logger()


def is_refusal(status: int) -> bool:
    """Whether the same instance gets the same answer again: it does not fit the request, or cannot be understood (PS3.4 B.2.3).

    Warnings count too: the copy may go after plain success only.
    """
    return status == _NOT_SUPPORTED or status & 0xFF00 == 0xA900 or status & 0xF000 in (0xB000, 0xC000)


class Pauses:
    """When what failed is tried again: after a pause that doubles, up to a longest one."""

    def __init__(self, longest: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`longest`: seconds."""
        self._longest, self._clock = longest, clock
        self._studies: dict[str, tuple[float, float]] = {}
        self._row = 0
        self._pause = 0.0

    def held(self) -> set[str]:
        """The studies whose pause is not over."""
        now = self._clock()
        return {study for study, (until, _) in self._studies.items() if until > now}

    def failed(self, study: str) -> None:
        """An instance of the study may be taken later."""
        pause = min(self._longest, 2 * self._studies.get(study, (0, _FIRST_PAUSE / 2))[1])
        self._studies[study] = (self._clock() + pause, pause)
        self._row += 1

    def unreachable(self) -> None:
        """The hub did not even talk."""
        self._row = _OUTAGE

    def succeeded(self, study: str) -> None:
        """The hub took an instance of the study."""
        self._studies.pop(study, None)
        self._row, self._pause = 0, 0.0

    @property
    def outage(self) -> bool:
        """Whether nothing should be tried before `pause` has passed."""
        return self._row >= _OUTAGE

    def pause(self) -> float:
        """Seconds to wait in an outage; then one more failure is enough for a longer pause."""
        self._pause = min(self._longest, max(_FIRST_PAUSE, 2 * self._pause))
        self._row = _OUTAGE - 1
        return self._pause


class Forwarder:
    """Sends what waits. One thread."""

    def __init__(self, spool: SpoolFolder, settings: SpoolSettings, metrics: Metrics, stop: threading.Event) -> None:
        """Nothing is sent before `run`."""
        self._spool, self._settings, self._metrics, self._stop = spool, settings, metrics, stop
        self._pauses = Pauses(settings.spool_retry_seconds)

    def run(self) -> None:
        """Forward until `stop`; the instance on its way is finished first."""
        while not self._stop.is_set():
            self._spool.arrived.clear()
            batch = self._spool.due(self._pauses.held(), _BATCH)
            if not batch:
                self._spool.arrived.wait(_IDLE_SECONDS)
                continue
            self._forward(batch)
            if self._pauses.outage:
                self._stop.wait(self._pauses.pause())

    def _forward(self, batch: list[Waiting]) -> None:
        """Send as many as one association can have contexts for."""
        pairs: dict[Pair, None] = {}
        ready: list[tuple[Waiting, Pair]] = []
        for entry in batch:
            pair = self._pair(entry)
            if pair is None:
                continue
            if pair not in pairs and len(pairs) == CONTEXTS_PER_ASSOCIATION:
                break
            pairs[pair] = None
            ready.append((entry, pair))
        if not ready:
            return
        host, port = self._settings.hub
        calling, called, files = self._settings.spool_calling_ae, self._settings.spool_called_ae, self._settings.tls
        try:
            # Anew for each association: a renewed certificate counts for the next one.
            tls = files.client_context() if files is not None else None
            with store_association(host, port, pairs=list(pairs), calling=calling, called=called, tls=tls) as association:
                self._send_all(association, ready)
        except UnusableCertificates as fault:
            log.error("instances wait: the hub cannot be called over TLS", reason=str(fault))  # noqa: TRY400 - where is no news
            self._pauses.unreachable()
            self._later("certificates")
        except NoAssociation as fault:
            refused = [(entry, fault.refused.get(pair)) for entry, pair in ready]
            if not all(result in _CONTEXT_REFUSED for _, result in refused):
                self._pauses.unreachable()
                self._later("no-association")
            for entry, result in refused:
                if result in _CONTEXT_REFUSED:
                    self._refuse(entry, None, "context-refused")

    def _send_all(self, association: StoreAssociation, ready: list[tuple[Waiting, Pair]]) -> None:
        failed: set[str] = set()
        for entry, pair in ready:
            if self._stop.is_set() or self._pauses.outage or not association.established:
                return
            if entry.study in failed:
                continue
            if pair not in association.accepted:
                if association.refused.get(pair) in _CONTEXT_REFUSED:
                    self._refuse(entry, None, "context-refused")
                    continue
                done = self._later("context-not-accepted")
            elif not self._whole(entry):
                self._refuse(entry, None, "damaged")
                continue
            else:
                done = self._send(association, entry)
            if not done:
                failed.add(entry.study)
                self._pauses.failed(entry.study)

    def _send(self, association: StoreAssociation, entry: Waiting) -> bool:
        """False: later."""
        try:
            reply = association.send(self._spool.path(entry))
        except NotSent:
            return self._later("no-answer")
        if reply.status == 0:
            self._spool.forwarded(entry)
            self._metrics.count("hub_spool_forwarded_total")
        elif is_refusal(reply.status):
            self._refuse(entry, reply.status, "refused", reply.comment)
        else:
            return self._later(f"{reply.status:#06x}")
        self._pauses.succeeded(entry.study)
        return True

    def _later(self, reason: str) -> bool:
        self._metrics.count("hub_spool_retries_total", reason=reason)
        log.warning("an instance waits: the hub did not take it now", reason=reason)
        return False

    def _refuse(self, entry: Waiting, status: int | None, reason: str, comment: str = "") -> None:
        self._spool.refuse(entry, status=status, reason=reason, comment=comment)
        self._metrics.count("hub_spool_refused_total", reason=reason)
        log.error(
            "an instance was moved aside: the hub does not take it", reason=reason, status=None if status is None else f"{status:#06x}"
        )

    def _pair(self, entry: Waiting) -> Pair | None:
        """What must be negotiated for it; None when its file is no longer what was written, and it was moved aside."""
        with self._spool.path(entry).open("rb") as file:
            start = file.read(PREFIX_BYTES)
        try:
            meta = read_file_meta(start)
        except NotPart10:
            self._refuse(entry, None, "damaged")
            return None
        return meta.sop_class_uid, meta.transfer_syntax_uid

    def _whole(self, entry: Waiting) -> bool:
        """Whether the disk gives back what was written."""
        digest = hashlib.sha256()
        with self._spool.path(entry).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == entry.sha256

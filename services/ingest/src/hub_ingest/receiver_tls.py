"""DICOM over mutual TLS: PS3.15 B.12, the BCP 195 (RFC 8996, RFC 9325) TLS Secure Transport Connection Profile.

Files are looked at before each handshake, so that a renewed certificate, key or CA counts for the next caller; associations that are
open keep the session they have. Files that do not fit together are not taken: the last ones that did go on serving.
"""

import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hub_dicom import Trust
from hub_runtime import logger
from hub_runtime.metrics import Metric, Metrics

METRICS: Final = (
    Metric("hub_receiver_tls_handshakes_total", "counter", "TLS handshakes; reason: empty when it succeeded.", ("reason",)),
    Metric("hub_receiver_tls_reloads_total", "counter", "Changes of the TLS files; result: taken, or refused.", ("result",)),
)

# RFC 9325 4.2: the four suites that implementations are recommended to prefer in TLS 1.2. Those of 1.3 are all of this kind.
CIPHER_SUITES: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
HANDSHAKE_SECONDS: Final = 10.0
_HANDSHAKES: Final = 64  # at once; more are hung up on, so that connections that say nothing cost a bounded number of threads

# X509_V_ERR_* of OpenSSL's x509_vfy.h
_VERIFY_REASONS: Final = {
    9: "certificate-not-yet-valid",
    10: "certificate-expired",
    18: "unknown-issuer",  # self-signed
    19: "unknown-issuer",  # a self-signed root that is not ours
    20: "unknown-issuer",
    21: "unknown-issuer",
    23: "certificate-revoked",
    26: "certificate-not-for-clients",
}
_TLS_REASONS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no-certificate",
    "UNSUPPORTED_PROTOCOL": "tls-version",
    "VERSION_TOO_LOW": "tls-version",
    "NO_SHARED_CIPHER": "no-shared-cipher-suite",
    "WRONG_VERSION_NUMBER": "no-tls",
    "HTTP_REQUEST": "no-tls",
    "UNEXPECTED_EOF_WHILE_READING": "hung-up",
}

log = logger()


class UnusableCertificates(ValueError):
    """Certificate, key and CA cannot be used together. The text names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate with its chain, its key, and the CAs that issue the trusts' certificates."""

    certificate: Path
    key: Path
    ca: Path
    setting: str = "HUB_RECEIVER_TLS"
    """What the settings' names start with, for messages."""

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, ca: Path | None, setting: str = "HUB_RECEIVER_TLS") -> Self | None:
        """The files that settings name; None where they name none.

        Raises:
            ValueError: they name some of the three.
        """
        if certificate is None and key is None and ca is None:
            return None
        if certificate is None or key is None or ca is None:
            raise ValueError(f"{setting}_CERTIFICATE_FILE, {setting}_KEY_FILE and {setting}_CA_FILE go together")
        return cls(certificate, key, ca, setting)

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file does. Raises OSError where one is missing."""
        return tuple(
            (stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in (path.stat() for path in (self.certificate, self.key, self.ca))
        )

    def context(self) -> ssl.SSLContext:
        """The server's side of the profile.

        Raises:
            UnusableCertificates: a file cannot be read or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
        context.num_tickets = 0
        self._load(context)
        return context

    def client_context(self) -> ssl.SSLContext:
        """The client's side of the profile: the server must show a certificate of the CAs for the host that is called.

        Raises:
            UnusableCertificates: a file cannot be read or is not what it should be.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(":".join(CIPHER_SUITES))
        # RFC 9325 3.3 to 3.5: no compression, no renegotiation. No tickets: each session shows its certificate anew.
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except OSError as error:  # an SSLError is one
            raise UnusableCertificates(
                f"{self.setting}_CERTIFICATE_FILE ({self.certificate.name}) and {self.setting}_KEY_FILE ({self.key.name}) "
                "must be PEM files, the key without a password and of the certificate"
            ) from error
        try:
            context.load_verify_locations(self.ca)
        except OSError as error:
            raise UnusableCertificates(
                f"{self.setting}_CA_FILE ({self.ca.name}) must be a PEM file of the CAs that issue the others' certificates"
            ) from error


class TlsDoor:
    """Shakes hands with callers. Safe from many threads."""

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """Load the files.

        Raises:
            UnusableCertificates: they cannot be used.
        """
        self._files = files
        self._metrics = metrics
        self._context = files.context()
        self._state = _state(files)
        self._loading = threading.Lock()
        self._slots = threading.BoundedSemaphore(_HANDSHAKES)

    def enter(self, connection: socket.socket, address: str) -> ssl.SSLSocket | None:
        """The connection inside TLS, its certificate verified; None, and closed, when the handshake failed: log and metric say why.

        Blocks for `HANDSHAKE_SECONDS` at most between two messages of the caller.
        """
        if not self._slots.acquire(blocking=False):
            connection.close()
            self._failed("too-many-handshakes", address)
            return None
        inside: ssl.SSLSocket | None = None
        try:
            inside = self._current().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            inside.settimeout(HANDSHAKE_SECONDS)
            inside.do_handshake()
            inside.settimeout(None)
        except OSError as error:
            (inside or connection).close()
            self._failed(_reason(error), address)
            return None
        finally:
            self._slots.release()
        self._metrics.count("hub_receiver_tls_handshakes_total", reason="")
        return inside

    def _failed(self, reason: str, address: str) -> None:
        self._metrics.count("hub_receiver_tls_handshakes_total", reason=reason)
        log.warning("TLS handshake failed", reason=reason, address=address)

    def _current(self) -> ssl.SSLContext:
        with self._loading:
            state = _state(self._files)
            if state != self._state:
                self._state = state
                try:
                    self._context = self._files.context()
                except UnusableCertificates as error:
                    self._metrics.count("hub_receiver_tls_reloads_total", result="refused")
                    log.error("changed TLS files are not taken, the old ones serve on", reason=str(error))  # noqa: TRY400 - the text says it
                else:
                    self._metrics.count("hub_receiver_tls_reloads_total", result="taken")
                    log.info("TLS files reloaded")
            return self._context


def certificate_names(connection: object) -> frozenset[str] | None:
    """The DNS names in the peer's verified certificate (RFC 5280 4.2.1.6), in lower case; None where the connection is not TLS."""
    if not isinstance(connection, ssl.SSLSocket):
        return None
    names = (connection.getpeercert() or {}).get("subjectAltName", ())
    return frozenset(str(entry[1]).lower() for entry in names if entry[0] == "DNS")


def transport_fault(trust: Trust, connection: object) -> str | None:
    """Why this trust may not call over this connection, as a reason code; None: it may."""
    names = certificate_names(connection)
    if names is None:
        return "tls-required" if trust.certificates else None
    if not trust.certificates:
        return "no-certificate-entered"
    return None if names & set(trust.certificates) else "other-certificate"


def _no_password() -> str:
    # Without it OpenSSL would ask at the terminal.
    return ""


def _state(files: TlsFiles) -> tuple[tuple[int, int, int], ...] | None:
    try:
        return files.state()
    except OSError:
        return None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_REASONS.get(error.verify_code, f"certificate-refused-{error.verify_code}")
    if isinstance(error, ssl.SSLEOFError):
        return "hung-up"
    if isinstance(error, ssl.SSLError):
        return _TLS_REASONS.get(error.reason or "", (error.reason or "tls-error").lower().replace("_", "-"))
    return "timeout" if isinstance(error, TimeoutError) else "hung-up"

"""The DICOM File Format, PS3.10 7: our own header before a data set that stays as it came, and back."""

import struct
from dataclasses import dataclass
from typing import Final

from hub_dicom.uid import is_uid

IMPLEMENTATION_CLASS_UID: Final = "2.25.160373487194573910573902873405718236451"
IMPLEMENTATION_VERSION_NAME: Final = "REGIONAL_HUB_1"
# Both stand in every stored object, and an object's key holds its digest: another value, and every repeat is taken for a variant.

PREFIX_BYTES: Final = 4096
"""So many bytes from the start of an object hold its file meta information for certain, when this module wrote it."""

_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})


class NotPart10(ValueError):
    """No DICOM file, or one without usable file meta information. The text says what is missing."""


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the file meta information says."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int
    """Where the data set begins, in bytes from the start."""


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information: the same bytes for the same UIDs. The data set follows it.

    Raises:
        ValueError: one is no UID.
    """
    uids = (sop_class_uid, sop_instance_uid, transfer_syntax_uid)
    if not all(is_uid(uid) for uid in uids):
        raise ValueError("file meta information needs a SOP class, an instance and a transfer syntax, all UIDs")
    elements = b"".join(
        (
            struct.pack("<HH2sHL", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            *(_uid_element(number, uid) for number, uid in zip((0x0002, 0x0003, 0x0010), uids, strict=True)),
            _uid_element(0x0012, IMPLEMENTATION_CLASS_UID),
            struct.pack("<HH2sH", 0x0002, 0x0013, b"SH", len(IMPLEMENTATION_VERSION_NAME)) + IMPLEMENTATION_VERSION_NAME.encode(),
        )
    )
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements)) + elements


def read_file_meta(start: bytes) -> FileMeta:
    """The file meta information at the start of a file.

    Args:
        start: the file, or at least its first `PREFIX_BYTES`.

    Raises:
        NotPart10: there is none, it is cut off, or it names no SOP class, instance or transfer syntax.
    """
    if start[128:132] != b"DICM":
        raise NotPart10("no DICM at byte 128: not a DICOM file")
    if len(start) < 144 or start[132:140] != struct.pack("<HH2sH", 0x0002, 0x0000, b"UL", 4):
        raise NotPart10("the file meta information does not start with its length")
    end = 144 + int(struct.unpack_from("<L", start, 140)[0])
    if end > len(start):
        raise NotPart10(f"the file meta information ends at byte {end}, beyond the {len(start)} bytes at hand")
    values: dict[int, str] = {}
    place = 144
    while place + 8 <= end:
        group, number, vr, length = struct.unpack_from("<HH2sH", start, place)
        place += 8
        if vr in _LONG:
            if place + 4 > end:
                break
            length = struct.unpack_from("<L", start, place)[0]
            place += 4
        if group != 0x0002 or place + length > end:
            raise NotPart10("the file meta information holds something else or is cut off")
        if vr == b"UI":
            values[number] = start[place : place + length].rstrip(b"\0 ").decode("ascii", "replace")
        place += length
    found = [values.get(number, "") for number in (0x0002, 0x0003, 0x0010)]
    if not all(is_uid(uid) for uid in found):
        raise NotPart10("the file meta information lacks a SOP class, an instance or a transfer syntax")
    return FileMeta(found[0], found[1], found[2], end)


def _uid_element(number: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return struct.pack("<HH2sH", 0x0002, number, b"UI", len(value)) + value

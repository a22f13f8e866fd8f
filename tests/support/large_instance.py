"""A multi-frame instance of any size, made while it is sent: neither the sender nor a file ever holds it."""

import hashlib
import socket
from collections.abc import Iterator

from hub_dicom import file_meta
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from support.wire import EXPLICIT, pdu, pdv, store_request

MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture
FRAME = 512 * 512 * 2
_FRAGMENT = 131_066  # what a PDU of 131,072 bytes carries
_BLOCK = bytes(range(251)) * (4 * _FRAGMENT // 251)


class LargeInstance:
    """`frames` frames of 512 KiB each; its bytes are the same each time they are asked for."""

    def __init__(self, study: str, instance: str, frames: int) -> None:
        self.study = study
        self.instance = instance
        self.size = frames * FRAME
        data_set = Dataset()
        data_set.SOPClassUID = MULTI_FRAME
        data_set.SOPInstanceUID = instance
        data_set.Modality = "OT"
        data_set.PatientName = "SYNTHETIC^LARGE"
        data_set.PatientID = "L-2"
        data_set.StudyInstanceUID = study
        data_set.SeriesInstanceUID = f"{study}.1"
        data_set.NumberOfFrames = frames
        data_set.Rows = data_set.Columns = 512
        data_set.SamplesPerPixel = 1
        data_set.PhotometricInterpretation = "MONOCHROME2"
        data_set.BitsAllocated = data_set.BitsStored = 16
        data_set.HighBit = 15
        data_set.PixelRepresentation = 0
        encoded = DicomBytesIO()
        encoded.is_little_endian, encoded.is_implicit_VR = True, False
        write_dataset(encoded, data_set)
        self.head = encoded.getvalue() + b"\xe0\x7f\x10\x00OW\0\0" + self.size.to_bytes(4, "little")

    def blocks(self) -> Iterator[bytes]:
        """The data set."""
        yield self.head
        left = self.size
        while left:
            block = _BLOCK if left >= len(_BLOCK) else _BLOCK[:left]
            left -= len(block)
            yield block

    def stored(self) -> tuple[str, int]:
        """SHA-256 and size of the object that it must become."""
        meta = file_meta(MULTI_FRAME, self.instance, EXPLICIT)
        digest, size = hashlib.sha256(meta), len(meta)
        for block in self.blocks():
            digest.update(block)
            size += len(block)
        return digest.hexdigest(), size

    def send(self, connection: socket.socket, *, most: int | None = None) -> None:
        """Send the C-STORE-RQ over an association's connection; of the data set only the first `most` bytes and then nothing more."""
        connection.sendall(pdu(4, pdv(store_request(self.instance, sop_class_uid=MULTI_FRAME), 3)))
        sent = 0
        for block in self.blocks():
            for place in range(0, len(block), _FRAGMENT):
                if most is not None and sent >= most:
                    return
                fragment = block[place : place + _FRAGMENT]
                sent += len(fragment)
                connection.sendall(pdu(4, pdv(fragment, 2 if sent == len(self.head) + self.size else 0)))

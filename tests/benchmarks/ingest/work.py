"""What is sent: synthetic images as PDUs in memory, each its own instance by a UID that is written over a placeholder."""

import io
from dataclasses import dataclass, replace
from typing import Final

from hub_dicom import read_file_meta
from hub_dicom.synthetic import SyntheticPatient, synthetic_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from support.wire import EXPLICIT, message, store_request

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT: Final = "1.2.840.10008.5.1.4.1.1.2.1"
_FRAMES: Final = 100


def uid(*numbers: int) -> str:
    """A UID of always the same length: six digits for each of at most four numbers."""
    return "2.25.9" + "".join(f"{number:06d}" for number in (*numbers, 0, 0, 0, 0)[:4])


_SOP_INSTANCE_UID: Final = uid(999_999, 1)
_STUDY_INSTANCE_UID: Final = uid(999_999, 2)
_SERIES_INSTANCE_UID: Final = uid(999_999, 3)


@dataclass(frozen=True, slots=True)
class Work:
    """Instances of one kind from so many senders at once, each on an association of its own."""

    name: str
    sop_class_uid: str
    data_set: bytes
    """With placeholders for its UIDs."""
    instances: int
    """Of all senders together."""
    senders: int

    @property
    def megabytes(self) -> float:
        """Of one instance, 10^6 bytes."""
        return len(self.data_set) / 1e6

    @property
    def instances_per_sender(self) -> int:
        """Each sends as many."""
        return self.instances // self.senders

    def with_instances(self, per_sender: int) -> "Work":
        """The same with another number of instances."""
        return replace(self, instances=per_sender * self.senders)


@dataclass(frozen=True, slots=True)
class Series:
    """What one sender sends in one run: its UIDs never come again."""

    run: int
    sender: int

    @property
    def study_instance_uid(self) -> str:
        """One study for each sender and run."""
        return uid(self.run, self.sender, 1)

    @property
    def series_instance_uid(self) -> str:
        """One series in it."""
        return uid(self.run, self.sender, 2)

    def sop_instance_uid(self, number: int) -> str:
        """Of the instance of this number."""
        return uid(self.run, self.sender, 3, number)


class Stamp:
    """A buffer that holds an instance and is made the next one by writing its UID over the last one's."""

    def __init__(self, content: bytes, series: Series) -> None:
        found = content.replace(_STUDY_INSTANCE_UID.encode(), series.study_instance_uid.encode())
        self.buffer = bytearray(found.replace(_SERIES_INSTANCE_UID.encode(), series.series_instance_uid.encode()))
        self._series = series
        self._places = []
        place = -1
        while (place := self.buffer.find(_SOP_INSTANCE_UID.encode(), place + 1)) >= 0:
            self._places.append(place)

    def number(self, number: int) -> bytearray:
        """The buffer as the instance of this number."""
        value = self._series.sop_instance_uid(number).encode()
        for place in self._places:
            self.buffer[place : place + len(value)] = value
        return self.buffer


def data_set(work: Work, series: Series) -> Stamp:
    """The instances as data sets."""
    return Stamp(work.data_set, series)


def pdus(work: Work, series: Series, maximum: int) -> Stamp:
    """The instances as whole C-STORE messages, in P-DATA-TF PDUs as long as the receiver takes."""
    request = store_request(_SOP_INSTANCE_UID, sop_class_uid=work.sop_class_uid)
    return Stamp(message(request, work.data_set, maximum=maximum or 131_072), series)


def works(instances: int, multi_frame: int) -> list[Work]:
    """`instances` CT of 0.53 MB with one sender and with four, and `multi_frame` of 52 MB."""
    ct = _ct()
    slices = _encoded(ct)
    ct.SOPClassUID = ENHANCED_CT
    ct.NumberOfFrames = _FRAMES
    ct.PixelData = ct.PixelData * _FRAMES
    frames = _encoded(ct)
    return [
        Work(f"{instances} CT, 1 sender", CT, slices, instances, 1),
        Work(f"{instances} CT, 4 senders", CT, slices, instances, 4),
        Work(f"{multi_frame} multi-frame, 1 sender", ENHANCED_CT, frames, multi_frame, 1),
    ]


def _ct() -> Dataset:
    patient = SyntheticPatient("SYNTHETIC^BENCHMARK", "SYNTHETIC-1")
    (made,) = synthetic_series(patient, study="benchmark", instances=1, pixels=512)
    assert read_file_meta(made.content).transfer_syntax_uid == EXPLICIT
    ct = dcmread(io.BytesIO(made.content))
    ct.SOPInstanceUID, ct.StudyInstanceUID, ct.SeriesInstanceUID = _SOP_INSTANCE_UID, _STUDY_INSTANCE_UID, _SERIES_INSTANCE_UID
    return ct


def _encoded(found: Dataset) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, found)
    return out.getvalue()

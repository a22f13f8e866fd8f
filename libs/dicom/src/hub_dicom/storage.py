"""What a receiver accepts: storage SOP classes that no list of current ones has any more, and transfer syntaxes in order of preference."""

from typing import Final

from pydicom.uid import UID

from hub_dicom.uid import is_uid

_DICOM_ROOT: Final = "1.2.840.10008."
_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."
_NO_INSTANCES: Final = ("Storage Commitment", "Media Storage")

RETIRED_STORAGE_SOP_CLASSES: Final = tuple(
    UID(uid)
    for uid in (
        "1.2.840.10008.5.1.1.27",  # Stored Print Storage
        "1.2.840.10008.5.1.1.29",  # Hardcopy Grayscale Image Storage
        "1.2.840.10008.5.1.1.30",  # Hardcopy Color Image Storage
        "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image Storage
        "1.2.840.10008.5.1.4.1.1.5",  # Nuclear Medicine Image Storage
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage
        "1.2.840.10008.5.1.4.1.1.8",  # Standalone Overlay Storage
        "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve Storage
        "1.2.840.10008.5.1.4.1.1.9.1",  # Waveform Storage - Trial
        "1.2.840.10008.5.1.4.1.1.10",  # Standalone Modality LUT Storage
        "1.2.840.10008.5.1.4.1.1.11",  # Standalone VOI LUT Storage
        "1.2.840.10008.5.1.4.1.1.12.3",  # X-Ray Angiographic Bi-Plane Image Storage
        "1.2.840.10008.5.1.4.1.1.77.1",  # VL Image Storage - Trial
        "1.2.840.10008.5.1.4.1.1.77.2",  # VL Multi-frame Image Storage - Trial
        "1.2.840.10008.5.1.4.1.1.88.1",  # Text SR Storage - Trial
        "1.2.840.10008.5.1.4.1.1.88.2",  # Audio SR Storage - Trial
        "1.2.840.10008.5.1.4.1.1.88.3",  # Detail SR Storage - Trial
        "1.2.840.10008.5.1.4.1.1.88.4",  # Comprehensive SR Storage - Trial
        "1.2.840.10008.5.1.4.1.1.129",  # Standalone PET Curve Storage
        "1.2.840.10008.5.1.4.34.1",  # RT Beams Delivery Instruction Storage - Trial
    )
)
"""Archives still hold and send them (PS3.6 A)."""

TRANSFER_SYNTAXES: Final = tuple(
    UID(uid)
    for uid in (
        # Where a sender offers several for one presentation context, the first of this list is taken. A sender that has to convert
        # then converts to something that loses nothing: uncompressed before lossless before lossy.
        "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
        "1.2.840.10008.1.2",  # Implicit VR Little Endian
        "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
        "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
        "1.2.840.10008.1.2.5",  # RLE Lossless
        "1.2.840.10008.1.2.4.70",  # JPEG Lossless, First-Order Prediction
        "1.2.840.10008.1.2.4.57",  # JPEG Lossless (Process 14)
        "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
        "1.2.840.10008.1.2.4.90",  # JPEG 2000 Lossless
        "1.2.840.10008.1.2.4.92",  # JPEG 2000 Part 2 Multi-component Lossless
        "1.2.840.10008.1.2.4.201",  # HTJ2K Lossless
        "1.2.840.10008.1.2.4.202",  # HTJ2K Lossless RPCL
        "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
        "1.2.840.10008.1.2.4.58",  # JPEG Lossless, Non-Hierarchical (Process 15), retired
        "1.2.840.10008.1.2.4.65",  # JPEG Lossless, Hierarchical (Process 28), retired
        "1.2.840.10008.1.2.4.66",  # JPEG Lossless, Hierarchical (Process 29), retired
        "1.2.840.10008.1.2.4.50",  # JPEG Baseline
        "1.2.840.10008.1.2.4.51",  # JPEG Extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
        "1.2.840.10008.1.2.4.93",  # JPEG 2000 Part 2 Multi-component
        "1.2.840.10008.1.2.4.203",  # HTJ2K
        "1.2.840.10008.1.2.4.111",  # JPEG XL JPEG Recompression
        "1.2.840.10008.1.2.4.112",  # JPEG XL
        "1.2.840.10008.1.2.4.52",  # JPEG Extended (Process 3 and 5), retired; the rest of the retired JPEG processes follows
        "1.2.840.10008.1.2.4.53",
        "1.2.840.10008.1.2.4.54",
        "1.2.840.10008.1.2.4.55",
        "1.2.840.10008.1.2.4.56",
        "1.2.840.10008.1.2.4.59",
        "1.2.840.10008.1.2.4.60",
        "1.2.840.10008.1.2.4.61",
        "1.2.840.10008.1.2.4.62",
        "1.2.840.10008.1.2.4.63",
        "1.2.840.10008.1.2.4.64",
        "1.2.840.10008.1.2.4.100",  # MPEG2 Main Profile / Main Level
        "1.2.840.10008.1.2.4.100.1",
        "1.2.840.10008.1.2.4.101",  # MPEG2 Main Profile / High Level
        "1.2.840.10008.1.2.4.101.1",
        "1.2.840.10008.1.2.4.102",  # MPEG-4 AVC/H.264 High Profile / Level 4.1
        "1.2.840.10008.1.2.4.102.1",
        "1.2.840.10008.1.2.4.103",  # MPEG-4 AVC/H.264 BD-compatible
        "1.2.840.10008.1.2.4.103.1",
        "1.2.840.10008.1.2.4.104",  # MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video
        "1.2.840.10008.1.2.4.104.1",
        "1.2.840.10008.1.2.4.105",  # MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video
        "1.2.840.10008.1.2.4.105.1",
        "1.2.840.10008.1.2.4.106",  # MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2
        "1.2.840.10008.1.2.4.106.1",
        "1.2.840.10008.1.2.4.107",  # HEVC/H.265 Main Profile / Level 5.1
        "1.2.840.10008.1.2.4.108",  # HEVC/H.265 Main 10 Profile / Level 5.1
    )
)
"""All that hold their pixels: not JPIP, which refers to them, nor SMPTE ST 2110, which is no storage."""


def is_private_sop_class(uid: str) -> bool:
    """Whether a UID can only be a SOP class of a manufacturer, or a storage class of DICOM that is newer than what we know."""
    return is_uid(uid) and not UID(uid).type and (not uid.startswith(_DICOM_ROOT) or uid.startswith(_STORAGE_ROOT))


def may_be_stored(uid: str) -> bool:
    """Whether instances of this SOP class can exist: a storage class of PS3.6, or one of which nobody here knows what it is."""
    known = UID(uid) if is_uid(uid) else None
    if known is None or not known.type:
        return known is not None and is_private_sop_class(uid)
    return known.type == "SOP Class" and "Storage" in known.name and not known.name.startswith(_NO_INSTANCES)

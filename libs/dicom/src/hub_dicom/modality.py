"""Modalities (0008,0060), PS3.3 C.7.3.1.1.1, and the folders of a dataset that hold them."""

from typing import Final

_FOLDERS: Final = {
    "ct": ("CT",),
    "mri": ("MR",),
    "xray": ("CR", "DX", "IO", "PX", "RF", "RG", "XA"),
    "mammography": ("MG",),
    "us": ("US", "IVUS", "BDUS"),
    "nm": ("NM",),
    "pet": ("PT",),
    "rt": ("RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT"),
    "microscopy": ("GM", "SM"),
    "endoscopy": ("ES",),
    "ophthalmology": ("OP", "OPM", "OPT", "OPTBSV", "OPTENF", "OPV"),
    "waveform": ("ECG", "EEG", "EMG", "EOG", "EPS", "HD", "RESP"),
}
_FOLDER_OF: Final = {modality: folder for folder, modalities in _FOLDERS.items() for modality in modalities}


def modality_folder(modality: str | None) -> str:
    """The folder for a modality: `ct`, `mri`, `xray`, …, and `other` for every one that has none of its own."""
    return _FOLDER_OF.get((modality or "").strip(" \0").upper(), "other")

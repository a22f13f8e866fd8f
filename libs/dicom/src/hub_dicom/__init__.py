"""Object keys, UIDs, trusts and shared DICOM knowledge."""

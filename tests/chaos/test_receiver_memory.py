"""An instance of 2 GiB in bounded memory."""

import time
from pathlib import Path

from hub_dicom.synthetic import synthetic_uid
from support.chaos_receiver import receiver_on_own_parts
from support.large_passes import large_instance_passes


def test_two_gibibytes_pass_in_bounded_memory(tmp_path: Path) -> None:
    with receiver_on_own_parts(tmp_path) as (receiver, store):
        start = time.monotonic()
        large_instance_passes(receiver, store, synthetic_uid("two-gibibytes"), 2048, seconds=240)
        print(f"sent, stored, and read back in {time.monotonic() - start:.1f} s")

"""The hub's own sender, which the spool and `hub send` use."""

import time

import pytest
from hub_dicom.sending import keep_answers
from pynetdicom import AE, build_context, evt
from pynetdicom.dimse_primitives import C_ECHO


@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_is_left_to_who_waits_for_it(kept: bool) -> None:
    """Without `keep_answers` pynetdicom takes it whenever its own thread runs: if it ever does not, this says so."""
    verification = [build_context("1.2.840.10008.1.1", "1.2.840.10008.1.2")]
    ae = AE()
    server = ae.start_server(("127.0.0.1", 0), block=False, contexts=verification, evt_handlers=[(evt.EVT_C_ECHO, lambda _: 0x0000)])
    try:
        association = ae.associate("127.0.0.1", server.server_address[1], contexts=verification)
        assert association.is_established
        if kept:
            keep_answers(association)
        answer = C_ECHO()
        answer.MessageIDBeingRespondedTo, answer.Status = 1, 0x0000
        association.dimse.msg_queue.put((1, answer))
        deadline = time.monotonic() + (0.5 if kept else 10)
        while association.dimse.msg_queue.qsize() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert bool(association.dimse.msg_queue.qsize()) is kept
        if kept:
            assert association.dimse.get_msg(block=True) == (1, answer)
            assert association.send_c_echo().Status == 0x0000
        association.abort()
    finally:
        server.shutdown()

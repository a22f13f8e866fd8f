"""PUT and produce alone: the objects, keys and events of the receiver without DICOM. What it reaches is the durable receiver's ceiling.

`put_and_produce MULTI_FRAME INSTANCES SENDERS RUN`: says `ready`, waits for a line, works, says the seconds, waits for the end of stdin.
"""

import hashlib
import sys
import threading
import time

from hub_dicom import Trusts, file_meta, instance_key
from hub_events import Event, new_traceparent
from hub_events.types import InstanceReceived, ObjectReference
from hub_ingest.intake import BUCKET, TOPIC
from hub_ingest.settings import ReceiverSettings
from hub_runtime.producer import EventProducer
from hub_runtime.settings import open_store
from support.wire import EXPLICIT

from benchmarks.ingest.sender import CALLING
from benchmarks.ingest.work import Series, data_set, works


def main() -> None:
    """Work as the arguments say, with the environment of a receiver."""
    kind, instances, senders, run = (int(argument) for argument in sys.argv[1:])
    work = works(instances, instances)[-1 if kind else 0]
    settings = ReceiverSettings.model_validate({})
    trust = Trusts.load(settings.trusts_file).by_caller(CALLING, "127.0.0.1")
    if trust is None:
        raise SystemExit("the trusts file does not name the sender")
    store = open_store(settings)
    stamps = [data_set(work, Series(run, sender)) for sender in range(senders)]
    metas = [
        [file_meta(work.sop_class_uid, Series(run, sender).sop_instance_uid(number), EXPLICIT) for number in range(instances // senders)]
        for sender in range(senders)
    ]
    digests = [
        [hashlib.sha256(meta + stamps[sender].number(number)).hexdigest() for number, meta in enumerate(metas[sender])]
        for sender in range(senders)
    ]
    failures: list[BaseException] = []

    def one(sender: int, producer: EventProducer) -> None:
        series, traceparent = Series(run, sender), new_traceparent()
        study, series_uid = series.study_instance_uid, series.series_instance_uid
        for number, (meta, sha256) in enumerate(zip(metas[sender], digests[sender], strict=True)):
            instance = series.sop_instance_uid(number)
            body = meta + stamps[sender].number(number)
            key = instance_key(trust.name, study, series_uid, instance, sha256)
            store.put_if_absent(BUCKET, key, body, sha256=sha256, content_type="application/dicom")
            reference = ObjectReference(bucket=BUCKET, key=key, sha256=sha256, size=len(body))
            event = InstanceReceived(
                trust=trust.name,
                study_instance_uid=study,
                series_instance_uid=series_uid,
                sop_instance_uid=instance,
                sop_class_uid=work.sop_class_uid,
                transfer_syntax_uid=EXPLICIT,
                object=reference,
                origin="c-store",
            )
            producer.produce(Event.first(TOPIC, study, event, source="ingest.receiver", traceparent=traceparent))

    def guarded(sender: int, producer: EventProducer) -> None:
        try:
            one(sender, producer)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            failures.append(error)

    with EventProducer(settings) as producer:
        threads = [threading.Thread(target=guarded, args=(sender, producer)) for sender in range(senders)]
        print("ready", flush=True)
        sys.stdin.readline()
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        print(time.perf_counter() - start, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

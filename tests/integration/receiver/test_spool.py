"""Store and forward: what the spool has answered with success comes to the hub, whatever happens in between."""

import contextlib
import hashlib
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_dicom import file_meta, instance_key, parse_instance_key, read_file_meta, read_header
from hub_dicom.storage import TRANSFER_SYNTAXES
from hub_dicom.synthetic import SyntheticPatient, synthetic_series, synthetic_uid
from hub_ingest.receiver_scp import supported_contexts
from hub_objectstore import S3ObjectStore
from pynetdicom import build_context
from support.certificates import Authority
from support.dicom_files import real_files, write_series
from support.receiver_process import ReceiverProcess, StartReceiver
from support.senders import Peer, Sent, send
from support.spool import CT, EXPLICIT, fill, hub, names, start_spool, tiny

BUCKET = "identifiable"
PATIENT = SyntheticPatient("SYNTHETIC^SPOOL", "S-1")
EASTON_TITLE = "EASTON"
NOBODY = 9  # the port where no hub listens


def _series(folder: Path, study: str, instances: int, pixels: int = 64) -> list[Path]:
    return write_series(folder, synthetic_series(PATIENT, study=study, instances=instances, pixels=pixels))


def _peer(spool: ReceiverProcess, calling: str = "CT1") -> Peer:
    return Peer(spool.peer.port, called="SPOOL", calling=calling)


def _key(path: Path) -> str:
    """Where the hub's own intake puts this file."""
    content = path.read_bytes()
    meta = read_file_meta(content)
    data_set = content[meta.data_set_offset :]
    header = read_header(data_set, meta.transfer_syntax_uid)
    stored = file_meta(meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid) + data_set
    sha256 = hashlib.sha256(stored).hexdigest()
    return instance_key("northgate", str(header.study_instance_uid), str(header.series_instance_uid), meta.sop_instance_uid, sha256)


def test_it_forwards_over_mutual_tls_and_never_to_a_hub_that_cannot_prove_itself(
    start_receiver: StartReceiver, admin_store: S3ObjectStore, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path), Authority(tmp_path, "other")
    server, router = authority.issue("hub.example", file="server"), authority.issue("router.easton.example")
    receiver_tls = {
        "HUB_RECEIVER_TLS_PORT": "0",
        "HUB_RECEIVER_TLS_CERTIFICATE_FILE": str(server.certificate),
        "HUB_RECEIVER_TLS_KEY_FILE": str(server.key),
        "HUB_RECEIVER_TLS_CA_FILE": str(authority.file),
    }
    spool_tls = {
        "spool_calling_ae": EASTON_TITLE,
        "spool_tls_certificate_file": router.certificate,
        "spool_tls_key_file": router.key,
        "spool_tls_ca_file": other.file,
    }
    with start_receiver(**receiver_tls) as receiver:
        port = int(receiver.line("listening for TLS")["port"])
        with start_spool(tmp_path, port, **spool_tls) as spool:
            assert [one.status for one in send(_peer(spool), _series(tmp_path / "files", "spooled-tls", 5))] == [0] * 5
            spool.wait_until(lambda: spool.metric("hub_spool_retries_total") > 0)
            assert len(names(tmp_path, "waiting")) == 5, "another CA's hub gets nothing"
            # The file changes under the running process: the next association sees the right CA.
            other.file.write_bytes(authority.file.read_bytes())
            spool.wait_until(lambda: names(tmp_path, "waiting") == [], seconds=60)
        stored = list(admin_store.list(BUCKET, f"easton/{synthetic_uid('spooled-tls')}/"))
        assert len(stored) == 5


def test_what_came_while_the_line_was_down_is_in_the_hub_when_it_is_back(
    start_receiver: StartReceiver, admin_store: S3ObjectStore, tmp_path: Path
) -> None:
    files = [*_series(tmp_path / "files", "spooled", 20), *(one.path for one in real_files()[:25])]
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with start_spool(tmp_path, port) as spool:
        assert [one.status for one in send(_peer(spool), files)] == [0] * len(files)
        assert [one.status for one in send(_peer(spool, "CT2"), files[:5])] == [0] * 5
        expected = {_key(path) for path in files}
        assert len(names(tmp_path, "waiting")) == len(expected)
        spool.wait_until(lambda: spool.metric("hub_spool_instances") == len(expected))
        assert spool.metric("hub_spool_oldest_seconds") > 0
        assert spool.ready(), "to take in while the hub is away is what it is for"
        with start_receiver(HUB_RECEIVER_PORT=str(port)):
            spool.wait_until(lambda: names(tmp_path, "waiting") == [], seconds=60)
        spool.wait_until(lambda: spool.metric("hub_spool_instances") == spool.metric("hub_spool_bytes") == 0)
        assert names(tmp_path, "refused") == []
        log = json.dumps(spool.lines)
    for key in expected:
        info = admin_store.stat(BUCKET, key)
        assert info is not None
        name = parse_instance_key(key)
        assert hashlib.sha256(admin_store.get(BUCKET, key)).hexdigest() == name.sha256
        assert name.study_instance_uid not in log
        assert name.sop_instance_uid not in log


def test_instances_go_on_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    fill(tmp_path, *(tiny(number) for number in range(60)))
    with hub() as there, start_spool(tmp_path, there.port) as spool:
        spool.wait_until(lambda: names(tmp_path, "waiting") == [])
    assert [instance for instance, _ in there.received] == [f"1.2.3.4.{number}" for number in range(60)]


def test_kills_at_any_instant_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    files = _series(tmp_path / "files", "spool-killed", 150, pixels=128)
    uid_of = {path: synthetic_uid("spool-killed", 1, number) for number, path in enumerate(files, 1)}
    left, acknowledged, kills = list(files), set[str](), 0
    chance = random.Random(5)

    def slow(_: str) -> int:
        """A hub that is slower than the sender: something always waits."""
        time.sleep(0.01)
        return 0

    with hub(slow) as there:
        while left:
            with start_spool(tmp_path, there.port) as spool:
                goal = len(acknowledged) + chance.randrange(10, 40)
                pause = chance.random() * 0.02

                def after(one: Sent, spool: ReceiverProcess = spool, goal: int = goal, pause: float = pause) -> None:
                    if one.status == 0:
                        acknowledged.add(uid_of[one.path])
                    if len(acknowledged) == goal:
                        threading.Timer(pause, spool.process.kill).start()

                with contextlib.suppress(ConnectionError):
                    send(_peer(spool), left, after_each=after)
                left = [path for path in left if uid_of[path] not in acknowledged]
                if left:
                    spool.process.wait(10)
                    kills += 1
        with start_spool(tmp_path, there.port) as spool:
            spool.wait_until(lambda: names(tmp_path, "waiting") == [])
            assert names(tmp_path, "incoming") == []
        assert kills >= 3
        assert {instance for instance, _ in there.received} == set(uid_of.values()) == acknowledged


def test_what_the_hub_will_never_take_is_put_aside_and_holds_nobody_up(tmp_path: Path) -> None:
    answers = {"1.2.3.4.1": 0xA900, "1.2.3.4.3": 0xC000, "1.2.3.4.5": 0xB000}
    fill(tmp_path, *(tiny(number) for number in range(8)))
    fill(tmp_path, tiny(9, sop_class="1.2.840.10008.5.1.4.1.1.4"))
    with hub(lambda uid: answers.get(uid, 0), [build_context(CT, EXPLICIT)]) as there, start_spool(tmp_path, there.port) as spool:
        spool.wait_until(lambda: names(tmp_path, "waiting") == [])
        assert [uid for uid, _ in there.received] == [f"1.2.3.4.{number}" for number in (0, 2, 4, 6, 7)]
        spool.wait_until(lambda: spool.metric("hub_spool_refused_instances") == 4)
    reasons = [json.loads(path.read_text()) for path in (tmp_path / "spool" / "refused").glob("*.json")]
    assert sorted((one["status"] or "", one["reason"]) for one in reasons) == [
        ("", "context-refused"),
        ("0xa900", "refused"),
        ("0xb000", "refused"),
        ("0xc000", "refused"),
    ]
    kept = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "spool" / "refused").glob("*.dcm")}
    put = [tiny(1), tiny(3), tiny(5), tiny(9, sop_class="1.2.840.10008.5.1.4.1.1.4")]
    assert kept == {hashlib.sha256(one).hexdigest() for one in put}


def test_where_no_context_is_wanted_all_is_put_aside(tmp_path: Path) -> None:
    fill(tmp_path, tiny(1))
    with hub(contexts=[build_context("1.2.840.10008.1.1", EXPLICIT)]) as there, start_spool(tmp_path, there.port) as spool:
        spool.wait_until(lambda: len(names(tmp_path, "refused")) == 2)
        assert names(tmp_path, "waiting") == []


@pytest.mark.parametrize("status", [0xA700, 0x0124, 0x0110])
def test_what_may_be_taken_later_waits_in_its_order_and_others_go_on(tmp_path: Path, status: int) -> None:
    over = threading.Event()
    fill(tmp_path, tiny(1), tiny(2))
    fill(tmp_path, *(tiny(number, study="1.2.9") for number in (3, 4)), study="1.2.9")
    with (
        hub(lambda uid: status if uid == "1.2.3.4.1" and not over.is_set() else 0) as there,
        start_spool(tmp_path, there.port) as spool,
    ):
        spool.wait_until(lambda: len(names(tmp_path, "waiting")) == 2 and there.asked.count("1.2.3.4.1") >= 2)
        assert [uid for uid, _ in there.received] == ["1.2.3.4.3", "1.2.3.4.4"]
        over.set()
        spool.wait_until(lambda: names(tmp_path, "waiting") == [])
    assert [uid for uid, _ in there.received][2:] == ["1.2.3.4.1", "1.2.3.4.2"]
    assert names(tmp_path, "refused") == []


def test_a_hub_that_has_no_room_is_not_hammered(tmp_path: Path) -> None:
    for number in range(200):
        fill(tmp_path, tiny(number, study=f"1.2.{number}"), study=f"1.2.{number}")
    with hub(lambda _: 0xA700) as there, start_spool(tmp_path, there.port, spool_retry_seconds=30):
        time.sleep(4)
        assert 3 <= len(there.asked) < 12


def test_more_pairs_than_an_association_has_contexts_take_several_and_keep_their_syntax(tmp_path: Path) -> None:
    explicit = [uid for uid in TRANSFER_SYNTAXES if uid not in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")]
    classes = [str(one.abstract_syntax) for one in supported_contexts()[1:]]
    pairs = [(sop_class, syntax) for sop_class in classes for syntax in explicit[:2]][:200]
    fill(tmp_path, *(tiny(number, sop_class=pair[0], syntax=pair[1]) for number, pair in enumerate(pairs)))
    with hub() as there, start_spool(tmp_path, there.port) as spool:
        spool.wait_until(lambda: names(tmp_path, "waiting") == [])
    assert there.received == [(f"1.2.3.4.{number}", syntax) for number, (_, syntax) in enumerate(pairs)]
    assert there.associations == [128, 72]


def test_what_the_disk_gives_back_otherwise_is_put_aside_and_not_sent(tmp_path: Path) -> None:
    fill(tmp_path, tiny(1), tiny(2), tiny(3))
    first, second, _ = sorted((tmp_path / "spool" / "waiting").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    (tmp_path / "spool" / "incoming" / "half").write_bytes(b"torn")
    with hub() as there, start_spool(tmp_path, there.port) as spool:
        spool.wait_until(lambda: names(tmp_path, "waiting") == [])
        assert names(tmp_path, "incoming") == []
    assert [uid for uid, _ in there.received] == ["1.2.3.4.3"]
    assert [json.loads(path.read_text())["reason"] for path in (tmp_path / "spool" / "refused").glob("*.json")] == ["damaged"] * 2


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[dict[str, object]]:
    """A file system of 6 MB for the spool where we may mount one, else a bound that is as small."""
    folder.mkdir()
    if os.geteuid() != 0:
        yield {"spool_maximum_bytes": 6_000_000}
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6000k", "tmpfs", str(folder)], check=True)
    try:
        yield {}
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_full_disk_is_out_of_resources_and_loses_nothing(tmp_path: Path, *, bounded: bool) -> None:
    files = _series(tmp_path / "files", f"full-{bounded}", 24, pixels=512)  # 0.5 MB each
    uids = {path: synthetic_uid(f"full-{bounded}", 1, number) for number, path in enumerate(files, 1)}
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    disk = contextlib.nullcontext({"spool_maximum_bytes": 6_000_000}) if bounded else _small_disk(tmp_path / "spool")
    with disk as settings, start_spool(tmp_path, port, **settings) as spool:
        sent = send(_peer(spool), files)
        assert {one.status for one in sent} == {0, 0xA700}
        taken = {uids[one.path] for one in sent if one.status == 0}
        assert len(names(tmp_path, "waiting")) == len(taken) >= 5
        assert names(tmp_path, "incoming") == []
        spool.wait_until(lambda: not spool.ready())
        with hub(port=port) as there:
            spool.wait_until(lambda: names(tmp_path, "waiting") == [])
            spool.wait_until(spool.ready)
            assert {uid for uid, _ in there.received} == taken
            again = [one.path for one in sent if one.status != 0][:5]
            assert {one.status for one in send(_peer(spool), again)} == {0}
            spool.wait_until(lambda: names(tmp_path, "waiting") == [])


def test_one_process_spools_in_a_folder(tmp_path: Path) -> None:
    with (
        start_spool(tmp_path, NOBODY),
        pytest.raises(AssertionError, match="another process spools"),
        start_spool(tmp_path, NOBODY),
    ):
        pass

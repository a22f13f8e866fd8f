"""The demo: real studies from three made-up trusts through the whole hub, and a page that shows what came out."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hub_client.datasets import BUCKETS, DatasetVersion, Part, download, list_datasets, show
from hub_dicom.manifest import ResearchInstance, ResearchManifest
from hub_events.types import DatasetExported
from hub_objectstore import ObjectMissing, S3ObjectStore
from pydicom import Dataset, dcmread
from pydicom.config import disable_value_validation
from pydicom.filebase import DicomBytesIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hub_console import tables
from hub_console.compare import compare, counts, preamble_words
from hub_console.exports import request
from hub_console.ledger import STAGE_TITLES, STAGES, Ledger, Record, Stage, Study
from hub_console.page import Comparison, DatasetPartShown, Page, SamePerson, Shown, render
from hub_console.picture import NotAPicture, data_uri, png
from hub_console.records import Reader, all_topics, readable
from hub_console.running import RunFailed, Running
from hub_console.sender import Outcome, discover, send
from hub_console.studies import ADA, ADA_ELSEWHERE, WRITTEN, FilesMissing, Prepared, choose, prepare

DATASET = "demo"
_TRAINING_PERCENT = 80
_STALLED_SECONDS = 120
_PARTS: tuple[Part, ...] = ("training", "validation")


class DemoFailed(RunFailed):
    """The demo did not come to its end."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A study of the demo, and what the ledger says of it."""

    prepared: Prepared
    study: Study


def run(data: Path, running: Running, out: Console, *, own: bool) -> Path:
    """Run the demo on a hub that runs; the path of the page. `own`: the hub ends with the demo, and the words say so.

    Raises:
        DemoFailed: something did not come through.
    """
    with disable_value_validation():  # real files hold values that the Standard forbids; saying so once a file helps nobody here
        return _run(data / "demo", running, out, own=own)


def _run(folder: Path, running: Running, out: Console, *, own: bool) -> Path:
    titles = _ae_titles(running)
    with _progress(out) as bar:
        prepared = _prepare(folder / "studies", bar)
        with Reader(running.kafka, all_topics()) as reader:
            ledger = Ledger()
            _read(ledger, reader.to_the_end())
            before = {(one.study.trust, one.study_instance_uid): _arrivals(ledger, one) for one in prepared}
            began = time.monotonic()
            _send(prepared, titles, running, bar)
            _follow(ledger, reader, prepared, before, bar)
    with out.status(f"Exporting dataset {DATASET} ..."):
        answer = _export(running)
        version = show(running.store(), DATASET, answer.version or 1)
        seconds = time.monotonic() - began
    with out.status("Downloading the dataset and writing the page ..."):
        dataset = folder / "dataset"
        shutil.rmtree(dataset, ignore_errors=True)
        for part in _PARTS:
            download(running.store(), DATASET, version.version, part, dataset / part)
        sent = [Sent(one, ledger.studies[one.study.trust, one.study_instance_uid]) for one in prepared]
        page = _page(sent, ledger, version, dataset, running, seconds=seconds, own=own)
        path = folder / "index.html"
        path.write_text(render(page), encoding="utf-8")
    _say(out, page, ledger, path)
    if page.same_person is None:
        raise DemoFailed("the two studies of one person did not become one subject: look at trusts.yaml, and at the quarantine above")
    return path


def _ae_titles(running: Running) -> dict[str, str]:
    found = {trust["name"]: trust["ae_titles"][0] for trust in running.endpoints.get("trusts", [])}
    wanted = {study.trust for study in choose()}
    if not wanted <= found.keys():
        raise DemoFailed(
            f"the demo sends as {', '.join(sorted(wanted))}, but this hub's trusts are {', '.join(sorted(found)) or 'unknown'}: "
            "run it over a data folder of its own (`hub demo --data FOLDER`, without HUB_TRUSTS_FILE)"
        )
    return found


def _prepare(folder: Path, bar: Progress) -> list[Prepared]:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        studies = choose()
    except FilesMissing as error:
        raise DemoFailed(str(error)) from error
    task = bar.add_task("Preparing studies", total=len(studies))
    prepared = []
    for number, study in enumerate(studies, 1):
        prepared.append(prepare(study, number, folder / study.trust / f"{number:02d}"))
        bar.advance(task)
    return prepared


def _send(prepared: Sequence[Prepared], titles: Mapping[str, str], running: Running, bar: Progress) -> None:
    """All studies, each trust from its own AE title, the trusts side by side as in life."""
    receiver = running.endpoints["receiver"]
    by_trust: dict[str, list[Path]] = {}
    for one in prepared:
        by_trust.setdefault(one.study.trust, []).extend(one.files)
    task = bar.add_task("Sending by C-STORE", total=sum(len(paths) for paths in by_trust.values()))

    def of(trust: str) -> list[Outcome]:
        files, _ = discover(by_trust[trust])
        return send(
            files,
            receiver["host"],
            receiver["port"],
            calling=titles[trust],
            called=receiver["ae_title"],
            progress=lambda _: bar.advance(task),
        )

    with ThreadPoolExecutor(len(by_trust)) as pool:
        outcomes = [outcome for of_trust in pool.map(of, by_trust) for outcome in of_trust]
    failed = [outcome for outcome in outcomes if not outcome.stored]
    if failed:
        raise DemoFailed(
            f"{len(failed)} of {len(outcomes)} files were not stored; the first: {failed[0].text}. Logs: {running.endpoints['logs']}"
        )


def _follow(ledger: Ledger, reader: Reader, prepared: Sequence[Prepared], before: Mapping[tuple[str, str], int], bar: Progress) -> None:
    """Read on until nothing of these studies waits any more."""
    labels = {
        "received": "Received",
        "assembled": "Complete (quiet for 3 s)",
        "closed": "Numbered, with a manifest",
        "deidentified": "De-identified or held back",
        "indexed": "Indexed or held back",
    }
    tasks: dict[Stage, TaskID] = {stage: bar.add_task(labels[stage], total=len(prepared)) for stage in STAGES}
    moved = time.monotonic()
    passed: dict[Stage, int] = {}
    while True:
        _read(ledger, iter(reader.new(0.3)))
        now = {stage: sum(_passed(ledger, one, before, stage) for one in prepared) for stage in STAGES}
        for stage, task in tasks.items():
            bar.update(task, completed=now[stage])
        if now["indexed"] == len(prepared):
            return
        if now != passed:
            passed, moved = now, time.monotonic()
        if time.monotonic() - moved > _STALLED_SECONDS:
            stage = next(stage for stage in STAGES if now[stage] < len(prepared))
            late = next(one for one in prepared if not _passed(ledger, one, before, stage))
            raise DemoFailed(
                f"nothing has moved for {_STALLED_SECONDS} s: {len(prepared) - now[stage]} studies are not {STAGE_TITLES[stage]}. "
                f"Look with `hub status` and `hub trace {late.study_instance_uid}`"
            )


def _passed(ledger: Ledger, one: Prepared, before: Mapping[tuple[str, str], int], stage: Stage) -> bool:
    """Whether the study, as sent now, has passed the stage and all before it, be it done or held back."""
    study = ledger.studies.get((one.study.trust, one.study_instance_uid))
    if study is None or study.arrivals - before[one.study.trust, one.study_instance_uid] < len(one.files):
        return False
    if stage == "indexed":
        return study.settled()
    states = [study.state(earlier) for earlier in STAGES[: STAGES.index(stage) + 1]]
    return "waiting" not in states and ("absent" not in states or "failed" in states)


def _export(running: Running) -> DatasetExported:
    made = list_datasets(running.store())
    percent = made[0].training_percent if made else _TRAINING_PERCENT
    _, answer = request(running, DATASET, [], percent, wait_seconds=120)
    if answer is None or answer.outcome == "refused":
        raise DemoFailed(f"the dataset was refused: {answer.reason if answer else 'no answer'}")
    return answer


def _page(
    sent: Sequence[Sent], ledger: Ledger, version: DatasetVersion, dataset: Path, running: Running, *, seconds: float, own: bool
) -> Page:
    store = running.store()
    files = {path.stem: path for path in dataset.rglob("*.dcm")}
    released = {one.prepared.study_instance_uid: _released(one.study, store) for one in sent}
    comparable = [found for one in sent if (found := _comparable(one, released[one.prepared.study_instance_uid], files, store)) is not None]
    return Page(
        written=datetime.now(UTC),
        seconds=seconds,
        comparisons=[_comparison(*pair) for pair in _telling(comparable)],
        studies=[_shown(one, released[one.prepared.study_instance_uid], files, store) for one in sent],
        stages=ledger.counts(),
        quarantine=[(*place, count["studies"], count["instances"]) for place, count in ledger.quarantine().items()],
        same_person=_same_person(sent),
        dataset=version.dataset,
        dataset_version=version.version,
        dataset_parts=[
            DatasetPartShown(
                name=part,
                place=f"s3://{BUCKETS[part]}/{version.dataset}/{version.version}/",
                subjects=version.part(part).subjects,
                studies=version.part(part).studies,
                instances=version.part(part).instances,
                size=version.part(part).bytes,
                folder=str(dataset / part),
            )
            for part in _PARTS
        ],
        manifest_sha256=version.training.manifest.sha256,
        places=_places(running.endpoints),
        commands=_commands(sent, version, dataset.parent.parent, own=own),
    )


def _released(study: Study, store: S3ObjectStore) -> ResearchManifest | None:
    """The research manifest of the study's latest revision."""
    if study.manifest is None or not study.deidentified_instances:
        return None
    return ResearchManifest.model_validate_json(store.get(*study.manifest))


def _after(instance: ResearchInstance, files: Mapping[str, Path], store: S3ObjectStore) -> Dataset | None:
    """The released instance, from the dataset where it is in it."""
    path = files.get(instance.sop_instance_uid)
    if path is not None:
        return dcmread(path)
    try:
        return dcmread(DicomBytesIO(store.get("research", instance.key)))
    except ObjectMissing:
        return None


def _comparable(
    one: Sent, manifest: ResearchManifest | None, files: Mapping[str, Path], store: S3ObjectStore
) -> tuple[Sent, Dataset, Dataset] | None:
    """A study of one image before and after, so that there is no doubt which instance became which."""
    if manifest is None or len(manifest.instances) != 1 or len(one.prepared.files) != 1:
        return None
    after = _after(manifest.instances[0], files, store)
    return (one, dcmread(one.prepared.files[0]), after) if after is not None and "PixelData" in after else None


def _telling(comparable: Sequence[tuple[Sent, Dataset, Dataset]]) -> list[tuple[Sent, Dataset, Dataset]]:
    """The first, and the one that lost most elements: few files hold as many private ones as a scanner's own."""
    rest = sorted(comparable[1:], key=lambda pair: len(pair[1]) - len(pair[2]), reverse=True)
    return [*comparable[:1], *rest[:1]]


def _comparison(one: Sent, before: Dataset, after: Dataset) -> Comparison:
    rows = compare(before, after)
    numbers = ", ".join(_numbers(before))
    return Comparison(
        title=f"{one.prepared.study.title} (a public test file of {one.prepared.study.origin})",
        trust=one.prepared.study.trust,
        before=_picture(before, 640),
        after=_picture(after, 640),
        before_name=f"{before.get('PatientName', '')}, born {_date(str(before.get('PatientBirthDate', '')))}, {numbers}",
        after_name=f"PatientID {after.get('PatientID', '')}",
        rows=rows,
        counts=counts(rows),
        same_pixels=before.get("PixelData") == after.get("PixelData"),
        preamble=preamble_words(before.preamble, after.preamble),
        written=WRITTEN if one.prepared.study.person else frozenset(),
    )


def _picture(dataset: Dataset | None, side: int) -> str:
    """The picture as a data URI; empty when there is none to show."""
    try:
        return data_uri(png(dataset, side)) if dataset is not None else ""
    except NotAPicture:
        return ""


def _date(text: str) -> str:
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 else text or "unknown"


def _numbers(dataset: Dataset) -> Iterator[str]:
    """A patient's numbers, with who issued them."""
    yield f"{dataset.get('PatientID', 'no number')} ({dataset.get('IssuerOfPatientID') or 'no issuer'})"
    for item in dataset.get("OtherPatientIDsSequence") or ():
        yield f"{item.get('PatientID')} ({item.get('IssuerOfPatientID') or 'no issuer'})"


def _shown(one: Sent, manifest: ResearchManifest | None, files: Mapping[str, Path], store: S3ObjectStore) -> Shown:
    study, prepared = one.study, one.prepared
    picture, text = "", ""
    if study.state("indexed") == "done" and manifest is not None and manifest.instances:
        outcome: Any = "released"
        middle = manifest.instances[len(manifest.instances) // 2]
        path = files.get(middle.sop_instance_uid)
        where = next((part for part in _PARTS if path is not None and part in path.parts), "not in the dataset")
        text = f"subject {study.subject} · {where}"
        picture = _picture(_after(middle, files, store), 300)
    else:
        outcome = "held back" if study.reasons() else "failed"
    if study.reasons():
        reasons = ", ".join(f"{code} ({count})" for code, count in study.reasons().items())
        text = f"{text} · held back: {reasons}" if text else reasons
    return Shown(
        trust=prepared.study.trust,
        title=prepared.study.title,
        origin=prepared.study.origin,
        modality="/".join(prepared.modalities),
        instances=len(prepared.files),
        outcome=outcome,
        text=text,
        picture=picture,
    )


def _same_person(sent: Sequence[Sent]) -> SamePerson | None:
    """The person at two trusts, when both studies were released and have one subject."""
    both = [one for one in sent if one.prepared.study.person in (ADA, ADA_ELSEWHERE)]
    subjects = {one.study.subject for one in both}
    if len(both) < 2 or len(subjects) != 1 or None in subjects or not all(one.study.indexed_instances for one in both):
        return None
    return SamePerson(
        subject=str(subjects.pop()),
        seen=[
            (
                one.prepared.study.trust,
                one.prepared.study.title,
                " · ".join(_numbers(dcmread(one.prepared.files[0], stop_before_pixels=True))),
            )
            for one in both
        ],
    )


def _places(endpoints: Mapping[str, Any]) -> list[tuple[str, str]]:
    receiver, qido = endpoints["receiver"], endpoints["qido"]
    return [
        ("DICOM", f"{receiver['ae_title']} at {receiver['host']}:{receiver['port']}"),
        ("QIDO-RS", f"{qido['url']} (token in {qido['token_file']})"),
        ("S3", f"{endpoints['s3']['endpoint']}: {', '.join(endpoints['s3']['buckets'])}"),
        ("Kafka", endpoints["kafka"]["bootstrap_servers"]),
        ("Credentials", endpoints["credentials_file"]),
        ("Logs", endpoints["logs"]),
    ]


def _commands(sent: Sequence[Sent], version: DatasetVersion, data: Path, *, own: bool) -> list[tuple[str, str]]:
    usual = data == Path(".hub").absolute()
    hub, where = ".venv/bin/hub", "" if usual else f" --data {data}"
    start = "make up" if usual else f"{hub} up{where}"
    return [
        *([(start, "in another terminal: the demo's hub has ended with it; this starts it again over the same data")] if own else []),
        (f"{hub} status{where}", "how every trust and stage stands"),
        (f"{hub} trace {sent[0].prepared.study_instance_uid}{where}", "every event of the first study, across both zones"),
        (f"{hub} export show {version.dataset} {version.version}{where}", "what is in the dataset"),
        (f"{hub} export create only-ct --where Modality=CT --training-percent {version.training_percent}{where}", "a dataset of your own"),
        (f"{hub} export download {version.dataset} FOLDER --part validation{where}", "fetch a part, checked and resumable"),
        (f"{hub} send PATH --calling NORTHGATE{where}", "send files of your own"),
    ]


def _say(out: Console, page: Page, ledger: Ledger, path: Path) -> None:
    out.print(tables.status_table(ledger))
    if page.quarantine:
        out.print(tables.quarantine_table(ledger))
    if page.same_person is not None:
        names = " and ".join(trust for trust, _, _ in page.same_person.seen)
        out.print(f"One made-up person was seen at {names}: both studies are of subject [bold]{page.same_person.subject}[/].\n")
    out.print(f"[bold green]Dataset {page.dataset}, version {page.dataset_version}[/], {page.seconds:.0f} s after the first file was sent")
    for part in page.dataset_parts:
        out.print(
            f"  {part.name}: {part.instances} instances of {part.subjects} subjects in {part.place}, downloaded to {part.folder}",
            soft_wrap=True,
        )
    out.print("\nLook further:")
    for command, words in page.commands:
        out.print(f"  [bold]{command}[/]\n      [dim]{words}[/]", soft_wrap=True)
    out.print(f"\n[bold]Before and after, on one page: {path}[/]", soft_wrap=True)


def _arrivals(ledger: Ledger, one: Prepared) -> int:
    study = ledger.studies.get((one.study.trust, one.study_instance_uid))
    return study.arrivals if study else 0


def _read(ledger: Ledger, messages: Iterator[Any]) -> None:
    for record in readable(messages):
        if isinstance(record, Record):
            ledger.add(record)


def _progress(out: Console) -> Progress:
    return Progress(TextColumn("{task.description:<27}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out)

"""What the commands print."""

from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hub_console.ledger import GROUPS, STAGE_TITLES, STAGES, Ledger
from hub_console.records import Lag
from hub_console.trace import Line


def table(*columns: str, title: str | None = None, right: Iterable[str] = ()) -> Table:
    """A table in the console's style."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in set(right) else "left", overflow="fold")
    return made


def endpoints_table(endpoints: Mapping[str, Any]) -> Table:
    """Where everything is."""
    made = table("What", "Where")
    receiver, qido = endpoints["receiver"], endpoints["qido"]
    made.add_row("DICOM (C-STORE)", f"{receiver['ae_title']} at {receiver['host']}:{receiver['port']}")
    for trust in endpoints["trusts"]:
        made.add_row(
            f"  from {trust['name']}", f"calling AE {', '.join(trust['ae_titles'])}; complete after {trust['quiet_seconds']:g} s of quiet"
        )
    made.add_row("QIDO-RS", f"{qido['url']}  (bearer token in {qido['token_file']})")
    made.add_row("Kafka", endpoints["kafka"]["bootstrap_servers"])
    made.add_row("S3", f"{endpoints['s3']['endpoint']} ({endpoints['s3']['store']}): {', '.join(endpoints['s3']['buckets'])}")
    database = endpoints["database"]
    made.add_row("PostgreSQL", f"{database['host']}:{database['port']}/{database['name']}")
    made.add_row("Credentials", endpoints["credentials_file"])
    made.add_row("Trusts", endpoints["trusts_file"])
    for name, path in endpoints["keys_files"].items():
        made.add_row(f"Keys of {name}", path or "(from the environment)")
    made.add_row("Logs", endpoints["logs"])
    made.add_row("For scripts", f"{endpoints['data_folder']}/endpoints.json")
    services = ", ".join(f"{name} {entry['pid']}" for name, entry in endpoints["services"].items())
    made.add_row("Process ids", services)
    return made


def status_table(ledger: Ledger) -> Table:
    """Each trust's studies by stage: done, waiting, failed."""
    columns = [STAGE_TITLES[stage] for stage in STAGES]
    made = table("Trust", *columns, "in", "out", right=[*columns, "in", "out"], title="Studies per trust and stage; instances in and out")
    for column in made.columns:
        column.min_width = len(str(column.header))
    for column in (made.columns[0], *made.columns[-2:]):
        column.no_wrap = True
    for trust, row in ledger.counts().items():
        cells = []
        for stage in STAGES:
            count = row[stage]
            cell = Text(str(count.done), "green")
            for number, name, colour in (
                (count.waiting, "waiting", "yellow"),
                (count.held_back, "held back", "magenta"),
                (count.failed - count.held_back, "failed", "red"),
            ):
                if number:
                    cell.append(f"\n{number} {name}", style=colour)
            cells.append(cell)
        made.add_row(trust, *cells, str(row["received"].instances), str(row["indexed"].instances))
    return made


def quarantine_table(ledger: Ledger) -> Table:
    """What is held back, why."""
    made = table("Trust", "Held back by", "Reason", "studies", "instances", right=["studies", "instances"], title="Quarantine")
    for (trust, stage, reason), count in ledger.quarantine().items():
        made.add_row(trust, stage, reason, str(count["studies"]), str(count["instances"]))
    return made


def dead_letter_table(ledger: Ledger) -> Table:
    """Records that a reader gave up."""
    made = table("Trust", "Group", "Record", "Reason", "Error", title="Dead letters")
    for letter, trust in ledger.dead_letters:
        made.add_row(trust, letter.group, f"{letter.topic} {letter.partition}@{letter.offset}", letter.reason, letter.error)
    return made


def lag_table(lags: Iterable[Lag]) -> Table:
    """How far each group is behind."""
    names = {group: STAGE_TITLES[stage] for stage, group in GROUPS.items()}
    made = table("Consumer group", "makes studies", "lag", "partitions behind", right=["lag", "partitions behind"], title="Consumer groups")
    for lag in lags:
        made.add_row(lag.group, names.get(lag.group, ""), Text(str(lag.records), "yellow" if lag.records else "green"), str(lag.partitions))
    return made


def trace_table(lines: Iterable[Line]) -> Table:
    """Every event of a study."""
    made = table("Time (UTC)", "Zone", "Event", "Made by", "What it says", "Where")
    for line in lines:
        style = "red" if line.failed else ""
        made.add_row(
            line.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3],
            line.zone,
            line.topic.split(".", 1)[1],
            line.source,
            Text(line.text, style),
            f"{line.partition}@{line.offset}",
        )
    return made


def status_json(ledger: Ledger, lags: Iterable[Lag]) -> dict[str, Any]:
    """`hub status --json`."""
    return {
        "trusts": {
            trust: {
                stage: {
                    "done": count.done,
                    "waiting": count.waiting,
                    "failed": count.failed,
                    "held_back": count.held_back,
                    "instances": count.instances,
                }
                for stage, count in row.items()
            }
            for trust, row in ledger.counts().items()
        },
        "quarantine": [
            {"trust": trust, "stage": stage, "reason": reason, "studies": count["studies"], "instances": count["instances"]}
            for (trust, stage, reason), count in ledger.quarantine().items()
        ],
        "dead_letters": [{"trust": trust, **letter.model_dump(mode="json")} for letter, trust in ledger.dead_letters],
        "datasets": ledger.datasets(),
        "lag": {lag.group: {"records": lag.records, "partitions": lag.partitions} for lag in lags},
        "events": dict(sorted(ledger.events.items())),
    }


def size(count: int) -> str:
    """Bytes for a reader."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"

"""The conformance statement says what the code does: SOP classes, roles, transfer syntaxes, status codes, cipher suites."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import hub_ingest
from hub_dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hub_dicom.storage import TRANSFER_SYNTAXES
from hub_ingest import (
    commitment_dicom,
    commitment_ledger,
    commitment_scp,
    conversation,
    intake,
    receiver,
    receiver_scp,
    receiver_tls,
    stow,
    stow_parts,
)
from hub_ingest.accepted import STORAGE_SOP_CLASSES
from hub_ingest.commitment_settings import CommitmentSettings
from hub_ingest.settings import ReceiverSettings
from hub_ingest.stow_settings import StowSettings

TEXT = (Path(hub_ingest.__file__).parents[2] / "CONFORMANCE.md").read_text()


def _section(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(heading)}.*\n((?:(?!#).*\n)*)", TEXT, re.MULTILINE)
    assert match, heading
    return match.group(1)


def _tables(text: str) -> list[list[list[str]]]:
    """The body rows of each table."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in block.strip().split("\n")[2:]] for block in blocks]


def _codes(table: list[list[str]], column: int = 1) -> set[int]:
    return {int(row[column], 16) for row in table}


def _raised(module: ModuleType, name: str, position: int = 0) -> set[int]:
    """The values that a module hands to `name(…)` at a position, where they are constants of it."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and len(node.args) > position:
            # `*uids` stands for two arguments.
            argument = node.args[position - isinstance(node.args[0], ast.Starred)]
            if isinstance(argument, ast.Name):
                found.add(int(getattr(module, argument.id)))
    return found


def test_sop_classes_and_roles() -> None:
    (rows,) = _tables(_section("4.2.1.1"))
    assert len(rows) == len({row[1] for row in rows})
    assert {row[2] for row in rows} == {"SCP"}
    offered = {str(context.abstract_syntax) for context in receiver_scp.supported_contexts()} | {str(commitment_dicom.PUSH_MODEL)}
    assert {row[1] for row in rows} == offered
    assert offered - {"1.2.840.10008.1.1", str(commitment_dicom.PUSH_MODEL)} == STORAGE_SOP_CLASSES


def test_transfer_syntaxes_in_their_order() -> None:
    syntaxes, rejections = _tables(_section("4.2.1.4"))
    assert [row[1] for row in syntaxes] == list(map(str, TRANSFER_SYNTAXES))
    assert [tuple(map(int, row[:3])) for row in rejections] == [receiver_scp.UNKNOWN_CALLER, receiver_scp.UNKNOWN_CALLED, (2, 3, 2)]


def test_what_an_association_says_of_itself() -> None:
    (rows,) = _tables(_section("4.2.1.2"))
    values = dict(rows)
    assert values["implementation class UID"] == IMPLEMENTATION_CLASS_UID
    assert values["implementation version name"] == IMPLEMENTATION_VERSION_NAME
    assert int(values["maximum PDU length received"]) == receiver_scp._PDU_BYTES
    bounds = [ReceiverSettings.model_fields[name].default for name in ("receiver_associations", "receiver_associations_per_trust")]
    assert list(map(int, re.findall(r"\b\d+\b", values["associations open at once"]))) == bounds


def test_status_codes_of_c_store() -> None:
    (rows,) = _tables(_section("4.2.1.5"))
    answered = _raised(intake, "Refusal") - {intake.OTHER_STUDY}
    for module in (receiver, receiver_scp, conversation):
        answered |= _raised(module, "Answer")
    assert _codes(rows) == answered


def test_status_codes_and_reasons_of_storage_commitment() -> None:
    statuses, reasons = _tables(_section("4.2.1.6"))
    assert _codes(statuses) == set(commitment_dicom.ACTION_STATUSES)
    returned = {
        node.id
        for function in (commitment_scp.AssociationCommitment._take, commitment_scp.AssociationCommitment._status)
        for node in ast.walk(ast.parse(inspect.getsource(function).replace("    def", "def", 1).replace("\n    ", "\n")))
        if isinstance(node, ast.Name) and node.id.isupper()
    }
    assert {getattr(commitment_scp, name) for name in returned if isinstance(getattr(commitment_scp, name), int)} >= set(
        commitment_dicom.ACTION_STATUSES
    )
    assert _codes(reasons) == set(commitment_ledger.FAILURE_REASONS)


def test_stow() -> None:
    _, reasons = _tables(_section("4.5"))
    given = _raised(intake, "Refusal") | _raised(stow, "Result", 2) | _raised(stow_parts, "Result", 2)
    assert _codes(reasons) == given


def test_cipher_suites() -> None:
    (rows,) = _tables(_section("7 Security"))
    assert [row[0] for row in rows] == list(receiver_tls.CIPHER_SUITES)


def test_every_setting_that_it_names_is_one() -> None:
    known = {f"HUB_{name.upper()}" for settings in (ReceiverSettings, CommitmentSettings, StowSettings) for name in settings.model_fields}
    named = set(re.findall(r"HUB_[A-Z_]+", TEXT))
    assert named
    assert named <= known
    assert CommitmentSettings.model_fields["commitment_give_up_seconds"].default == 7 * 86_400
    assert (
        ReceiverSettings.model_fields["commitment_wait_seconds"].default
        == CommitmentSettings.model_fields["commitment_wait_seconds"].default
    )
    assert ReceiverSettings.model_fields["commitment_references"].default == 10_000

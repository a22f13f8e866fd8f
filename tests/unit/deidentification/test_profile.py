"""Rules as data: what is wrong with them is said at start, and whatever changes what comes out changes the digest."""

import hashlib

import pytest
from hub_deidentification import rules
from hub_deidentification.profile import Action, Profile, ProfileFile, load_profile
from hub_deidentification.rules import UnusableRules, parse_table, table
from pydicom.datadict import tag_for_keyword


def changed(**values: object) -> Profile:
    return Profile(ProfileFile.model_validate(load_profile().content.model_dump() | values))


def action(keyword: str) -> Action:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return load_profile().rule(tag).action


def test_a_changed_table_is_refused() -> None:
    with pytest.raises(UnusableRules, match="SHA-256"):
        parse_table(b"tag,name,retired,in_standard_iod,basic_profile\n")


def test_rows_are_counted_and_tags_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"tag,name,retired,in_standard_iod,basic_profile\n"
    for rest, match in ((b'"(0010,0010)",Name,N,Y,Z\n', "1 rows"), (b'"(0010,001)",Name,N,Y,Z\n', "line 2")):
        monkeypatch.setattr(rules, "SHA256", hashlib.sha256(header + rest).hexdigest())
        with pytest.raises(UnusableRules, match=match):
            parse_table(header + rest)


def test_every_code_of_the_table_is_known() -> None:
    profile = load_profile()
    assert all(isinstance(profile.rule(row.number).action, Action) for row in table() if row.number is not None)


def test_the_digest_follows_the_rules() -> None:
    identities = {
        load_profile().identity,
        changed(options=()).identity,
        changed(overrides={}).identity,
        changed(accept=("CTImageStorage",)).identity,
        changed(kept_text=()).identity,
    }
    assert len(identities) == 5
    assert changed().identity == load_profile().identity
    assert all(identity.startswith("basic-modified-dates@") and len(identity) == 33 for identity in identities)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kept_text": ("Manufactorer",)}, "Manufactorer"),
        ({"overrides": {"PatientNam": "X"}}, "PatientNam"),
        ({"accept": ("CTImageStorge",)}, "CTImageStorge"),
    ],
)
def test_a_misspelt_keyword_is_refused(values: dict[str, object], match: str) -> None:
    with pytest.raises(UnusableRules, match=match):
        changed(**values)


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(UnusableRules, match="no profile"):
        load_profile("strict-basic")


def test_without_the_option_dates_go() -> None:
    profile = changed(options=())
    assert profile.rule(0x00080020).action is Action.EMPTY
    assert profile.rule(0x00080021).action is Action.DUMMY
    assert load_profile().rule(0x00080020).action is Action.SHIFT


def test_examples_of_every_kind() -> None:
    assert action("PatientAddress") is Action.REMOVE
    assert action("AccessionNumber") is Action.EMPTY
    assert action("InstitutionName") is Action.DUMMY
    assert action("SOPInstanceUID") is Action.REPLACE_UID
    assert action("SourceImageSequence") is Action.CLEAN
    assert action("AnatomicRegionSequence") is Action.CLEAN
    assert action("ReceiveCoilName") is Action.EMPTY
    assert action("RetrieveURI") is Action.REMOVE
    assert action("Rows") is Action.KEEP
    assert action("Manufacturer") is Action.KEEP
    assert load_profile().rule(0x60003000).action is Action.REMOVE

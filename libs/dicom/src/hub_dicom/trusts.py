"""Who may send: the trusts, by name, calling AE title and address."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hub_dicom.keys import RESERVED
from hub_dicom.patients import PatientPatterns
from hub_dicom.storage import may_be_stored

Network = IPv4Network | IPv6Network
_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
_DNS_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")


class UnusableTrusts(ValueError):
    """The file of trusts cannot be used; nothing starts before it is mended. The text names file, line and field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NationalNumber(_Strict):
    """Where a trust puts the national patient number."""

    field: Literal["PatientID", "OtherPatientIDsSequence"]
    issuer: Annotated[str, Field(min_length=1, max_length=64)]
    """Must equal IssuerOfPatientID, in the sequence's item for OtherPatientIDsSequence."""


class CommitmentAddress(_Strict):
    """Where a trust takes reports of storage commitment (N-EVENT-REPORT) when it does not wait for them."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    ae_title: str
    tls: bool = False
    """Called over TLS; its certificate must be for `host`."""

    @field_validator("ae_title")
    @classmethod
    def _ae_title(cls, title: str) -> str:
        return _checked_ae_title(title)


class Trust(_Strict):
    """One sender."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    """In keys and events."""
    title: str = ""
    ae_titles: Annotated[tuple[str, ...], Field(min_length=1)]
    """Calling AE titles."""
    addresses: Annotated[tuple[Network, ...], Field(min_length=1)]
    """Where its calls come from."""
    certificates: tuple[str, ...] = ()
    """DNS names in its client certificates (subjectAltName). With any it calls only over TLS and shows one of them; without, never over TLS."""
    commitment: CommitmentAddress | None = None
    quiet_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300
    """After so long without an instance a study is taken to be complete."""
    limit_seconds: Annotated[float, Field(gt=0, le=604_800)] | None = None
    """After so long a study that never gets quiet is closed as it is, and goes on as the next revision; the assembler's own limit if not set."""
    assigning_authority: Annotated[str, Field(min_length=1, max_length=64)]
    """The issuer of its local patient numbers."""
    national_number: NationalNumber | None = None
    router: bool = False
    """Whether a router of its own puts objects and announces them (services/ingest/ROUTERS.md)."""
    refuse_sop_classes: tuple[str, ...] = ()
    """Not taken in: presentation contexts for them are rejected."""
    quarantine_sop_classes: tuple[str, ...] = ()
    """Taken in, and held back afterwards. A private class named here is taken in whatever `private_sop_classes` says."""
    private_sop_classes: Literal["refuse", "quarantine"] = "refuse"
    """What happens to SOP classes that DICOM does not register: as the two above."""
    modalities: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Modality (0008,0060) of what is wanted; the rest is taken in and held back. None: everything is wanted."""
    test_patients: PatientPatterns | None = None
    """Who is held back because nobody is. None: nobody is looked for."""
    conflicts: Literal["keep-first", "hold-back"] = "keep-first"
    """Other pixels or elements under a UID: the later one is held back, and with `hold-back` the first one too."""

    def calls_from(self, address: str) -> bool:
        """Whether `address` is one that this trust's calls come from."""
        place = _place(address)
        return place is not None and any(place in network for network in self.addresses)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name!r} is a reserved first level of keys: choose another name")
        return name

    @field_validator("ae_titles")
    @classmethod
    def _ae_titles(cls, titles: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_checked_ae_title(title) for title in titles)

    @field_validator("refuse_sop_classes", "quarantine_sop_classes")
    @classmethod
    def _sop_classes(cls, uids: tuple[str, ...]) -> tuple[str, ...]:
        for uid in uids:
            if not may_be_stored(uid):
                raise ValueError(f"{uid!r} is no storage SOP class: write the UID of one (PS3.6 A), or of a manufacturer's own")
        return uids

    @field_validator("modalities")
    @classmethod
    def _modalities(cls, modalities: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for modality in modalities or ():
            if not _MODALITY.fullmatch(modality):
                raise ValueError(f"{modality!r} is no modality: capital letters, digits and _ as in Modality (0008,0060), such as CT or DX")
        return modalities

    @model_validator(mode="after")
    def _one_fate(self) -> Self:
        both = sorted(set(self.refuse_sop_classes) & set(self.quarantine_sop_classes))
        if both:
            raise ValueError(f"{both[0]!r} is to be refused and to be quarantined: take it out of one of the two")
        return self

    @field_validator("certificates")
    @classmethod
    def _certificates(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _DNS_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no DNS name in lower case, without wildcard, as its certificate has it in subjectAltName")
        return names


class Trusts(_Strict):
    """All senders."""

    trusts: Annotated[tuple[Trust, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The trusts that a YAML file declares.

        Raises:
            UnusableTrusts: the file cannot be read, is no YAML, or declares something that cannot be.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise UnusableTrusts(f"{path.name} cannot be read ({reason}): HUB_TRUSTS_FILE says where it is") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            raise UnusableTrusts(f"{path.name}{line}: no YAML: {getattr(error, 'problem', None) or 'malformed'}") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            lines = [_described(path.name, root, item["loc"], item["msg"]) for item in error.errors()]
            raise UnusableTrusts("\n".join(dict.fromkeys(lines))) from error

    @model_validator(mode="after")
    def _no_two_alike(self) -> Self:
        for one, other in combinations(self.trusts, 2):
            if one.name == other.name:
                raise ValueError(f"two trusts are named {one.name!r}")
            same = sorted(set(one.certificates) & set(other.certificates))
            if same:
                raise ValueError(f"{one.name!r} and {other.name!r} share the certificate name {same[0]!r}: each trust needs its own")
            shared = sorted(set(one.ae_titles) & set(other.ae_titles))
            if shared and any(_overlap(a, b) for a in one.addresses for b in other.addresses):
                raise ValueError(
                    f"{one.name!r} and {other.name!r} share the AE title {shared[0]!r} and addresses: a call could be either's"
                )
        return self

    def by_caller(self, ae_title: str, address: str) -> Trust | None:
        """The trust that calls itself `ae_title` (spaces around it mean nothing, PS3.8 9.3.2) from `address`, or None."""
        title = ae_title.strip(" ")
        for trust in self.trusts:
            if title in trust.ae_titles and trust.calls_from(address):
                return trust
        return None

    def by_name(self, name: str) -> Trust | None:
        """The trust of this name, or None."""
        return next((trust for trust in self.trusts if trust.name == name), None)


def _place(address: str) -> IPv4Address | IPv6Address | None:
    try:
        place: IPv4Address | IPv6Address = ip_address(address.split("%", 1)[0])
    except ValueError:
        return None
    return place.ipv4_mapped or place if isinstance(place, IPv6Address) else place


def _checked_ae_title(title: str) -> str:
    # PS3.5 6.2, VR AE: 16 characters at most, no control characters, no backslash.
    if not 1 <= len(title) <= 16 or title != title.strip() or not title.isascii() or not title.isprintable() or "\\" in title:
        raise ValueError(f"{title!r} is no AE title: 1 to 16 printable characters without backslash, no space at either end")
    return title


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _described(file: str, root: yaml.Node | None, place: Sequence[int | str], message: str) -> str:
    """`trusts.yaml, line 4: trusts.0.name: …`."""
    line = 1
    node = root
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    field = ".".join(str(part) for part in place) or "trusts"
    return f"{file}, line {line}: {field}: {message.removeprefix('Value error, ')}"

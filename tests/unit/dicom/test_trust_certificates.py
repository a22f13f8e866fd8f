"""Names in certificates: whose they are is never in doubt."""

import pytest
from hub_dicom import Trust, Trusts
from pydantic import ValidationError


def _trust(name: str, *certificates: str) -> Trust:
    return Trust.model_validate(
        {
            "name": name,
            "ae_titles": [name.upper()],
            "addresses": ["127.0.0.1/32"],
            "assigning_authority": "R",
            "certificates": certificates,
        }
    )


def test_several_names_and_none() -> None:
    assert _trust("a", "router.a.example", "router2.a.example").certificates == ("router.a.example", "router2.a.example")
    assert _trust("a").certificates == ()


@pytest.mark.parametrize(
    "name", ["*.a.example", "Router.a.example", "router", "", "router.a.example ", "127.0.0.1", "-.example", "a..example"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="no DNS name"):
        _trust("a", name)


def test_a_name_belongs_to_one_trust() -> None:
    Trusts(trusts=(_trust("a", "router.a.example"), _trust("b", "router.b.example")))
    with pytest.raises(ValidationError, match=r"share the certificate name 'router\.a\.example'"):
        Trusts(trusts=(_trust("a", "router.a.example"), _trust("b", "x.example", "router.a.example")))

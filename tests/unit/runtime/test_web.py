"""The tokens file of the web services."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_runtime import StopProcess
from hub_runtime.web import load_tokens

ONE, TWO = "1" * 64, "2" * 64


def load(folder: Path, content: Any) -> dict[str, str]:
    path = folder / "tokens.json"
    path.write_text(json.dumps(content))
    return load_tokens(path, "HUB_SOME_FILE")


def test_a_token_may_be_replaced_while_the_old_one_still_serves(tmp_path: Path) -> None:
    assert load(tmp_path, {"a": [ONE, TWO]}) == {ONE: "a", TWO: "a"}
    assert load(tmp_path, {"a": ONE, "b": TWO}) == {ONE: "a", TWO: "b"}
    assert load(tmp_path, {}) == load_tokens(None, "HUB_SOME_FILE") == {}


@pytest.mark.parametrize(
    "content", [{"a": ONE, "b": ONE}, {"a": "token"}, {"a": []}, {"a": [ONE, 1]}, [ONE], None, {"a": ONE.upper() + "Z"}]
)
def test_what_is_no_tokens_file_is_said_by_the_settings_name(tmp_path: Path, content: Any) -> None:
    with pytest.raises(StopProcess, match="HUB_SOME_FILE"):
        load(tmp_path, content)

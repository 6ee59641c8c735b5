"""Tags as labels, and back."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from envsync.runner.cloud.labels import as_labels, as_name, as_tags
from envsync.runner.cloud.provider import Tags

VALUE = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?)?")  # what Google and Hetzner both take
KEY = re.compile(r"[a-z][a-z0-9_-]*[a-z0-9]|[a-z]")


@given(st.text(max_size=80), st.text(max_size=50), st.text("aZz9-_.:@ é", min_size=1, max_size=12))
def test_whatever_is_said_comes_back(cluster: str, owner: str, key: str) -> None:
    tags = Tags(cluster=cluster, owner=owner, deadline="2026-11-29T18:00:00Z", more=((key, "x"),)).to_dict()
    labels = as_labels(tags)
    assert all(VALUE.fullmatch(value) and len(value) <= 63 for value in labels.values()), labels
    assert all(KEY.fullmatch(key) for key in labels)
    assert as_tags(labels) == {key: value for key, value in tags.items() if key != "Name"}


def test_what_is_usual_can_be_read() -> None:
    labels = as_labels(Tags(cluster="ada-1", owner="ada@laptop").to_dict())
    assert labels == {"envsync-cluster": "ada-1", "envsync-owner": "adaz40laptop", "envsync-deadline": ""}


def test_names_keep_what_tells_them_apart() -> None:
    assert as_name("envsync-Ada_1.x-0123") == "envsync-ada-1-x-0123"
    long = as_name("envsync-" + "a" * 70 + "-0123456789ab")
    assert len(long) == 63
    assert long.endswith("a-0123456789ab")

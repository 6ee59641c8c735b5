"""What processes of a cluster are for a cloud: credentials that are made up, and who asks for them there."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from envsync.runner.cloud import gce_tokens
from envsync.runner.cloud.sts import Identity, Temporary

if TYPE_CHECKING:
    import pytest

ASK = """
def ask():
    import json, os, urllib.error, urllib.request
    request = urllib.request.Request(os.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"])
    try:
        without = urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        without = error.code
    with open(os.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"]) as file:
        request.add_header("Authorization", file.read())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer), without
"""
"""What an SDK asks the endpoint of its host; then without its token."""

ASK_GOOGLE = """
def ask_google():
    import json, os, urllib.request
    path = "computeMetadata/v1/instance/service-accounts/default/token"
    url = f"http://{os.environ['GCE_METADATA_HOST']}/{path}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["access_token"]
"""
"""What Google's library asks."""
READER, GOOGLE_TOKEN = "reader@envsync-tests.iam.gserviceaccount.com", "ya29.c4n4ry"

LENDING = """
import datetime
from envsync.runner.cloud import gce_tokens, sts

def later():
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)

class Lent(sts.Identity):
    region = ""
    def __init__(self, profile):
        pass
    def temporary(self):
        keys = {"access_key": "A", "secret_key": "c4n4ry-1", "token": "c4n4ry-2"}
        return sts.Temporary(**keys, expires=later(), own=False)

class Impersonated(gce_tokens.Identity):
    def __init__(self, account):
        self.account = account
    def temporary(self):
        whose = {"account": self.account, "project": "p", "universe": "u"}
        return gce_tokens.Token(value="c4n4ry-3", expires=later(), **whose)

sts.Identity, gce_tokens.Identity = Lent, Impersonated
"""
"""For a script whose Python has neither botocore nor google-auth."""


def lent(number: int = 1, *, seconds: float = 3600, own: bool = False) -> Temporary:
    """Return credentials that nobody takes, and that end after so many seconds."""
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)
    secret, token = f"s3cr3t-c4n4ry-{number}", f"t0k3n-c4n4ry-{number}"
    return Temporary(access_key=f"ASIA{number:016}", secret_key=secret, token=token, expires=end, own=own)


def lend(patch: pytest.MonkeyPatch) -> Temporary:
    """Have clusters forward these; nobody is asked for them."""
    made = lent()
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTSTESTSTESTS0")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "c4n4ry-of-the-forwarding-tests-0123456789")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        patch.setenv(name, os.devnull)
    patch.setattr(Identity, "temporary", lambda self: made)
    return made


def lend_google(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Have clusters forward a token that nobody is asked for; return their keywords."""
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    made = gce_tokens.Token(value=GOOGLE_TOKEN, expires=end, account=READER, project="p", universe="u")
    patch.setattr(gce_tokens.Identity, "temporary", lambda self: made)
    return {"credentials": "forward", "impersonate": READER}


def lend_both(patch: pytest.MonkeyPatch) -> tuple[Temporary, dict[str, Any]]:
    """Have clusters forward both clouds'; return AWS's, and their keywords."""
    return lend(patch), {**lend_google(patch), "credentials": ["aws", "google"]}


def asking(text: str = ASK) -> Callable[[], Any]:
    """Return `ASK`, or another, as a function that travels by value: the tests' modules are nowhere else."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(text, scope)  # scripts of tests have the text
    made: Callable[[], Any] = scope[re.findall(r"def (\w+)", text)[0]]
    return made

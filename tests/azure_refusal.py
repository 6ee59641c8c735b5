"""How Azure refuses."""

from __future__ import annotations

from tests.http_cloud import Refused


def refusal(code: str, message: str = "", status: int = 409) -> Refused:
    """Return an error as Azure says it."""
    return Refused(status, {"error": {"code": code, "message": message or code}})

"""How a command finds a cluster: by its environment, and by certificates that only its user can read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from envsync.agent.owner import write_owner
from envsync.scratch import sweep_temporary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed.security import Security

__all__ = ["client_environment", "sweep"]

_PREFIX = "envsync-run-"


@contextlib.contextmanager
def client_environment(address: str, security: Security | None) -> Iterator[dict[str, str]]:
    """Yield an environment in which ``Client()`` connects to a cluster.

    Parameters
    ----------
    address : str
        The scheduler's, as this machine reaches it.
    security : distributed.security.Security or None
        Certificates that are in memory are written to files that only this user can read, for as long as the
        block runs; the environment names the files.
    """
    added = {"DASK_SCHEDULER_ADDRESS": address}
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        write_owner(Path(folder))  # before there is a key in it: no key of a killed run is without its name
        if security is not None and security.require_encryption:
            added["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "True"
            tls = security.get_tls_config_for_role("client")
            for name, key, variable in (
                ("ca.pem", "ca_file", "CA_FILE"),
                ("cert.pem", "cert", "CLIENT__CERT"),
                ("key.pem", "key", "CLIENT__KEY"),
            ):
                value = tls.get(key)
                if isinstance(value, str) and value:
                    path = _as_file(value, Path(folder) / name)
                    added[f"DASK_DISTRIBUTED__COMM__TLS__{variable}"] = path
        yield {**os.environ, **added}


def _as_file(value: str, file: Path) -> str:
    """Return the path of a certificate or key that may be its own text, as distributed allows."""
    if "\n" not in value:
        return value
    file.touch(mode=0o600, exist_ok=False)
    file.write_text(value)
    return str(file)


def sweep() -> None:
    """Remove the certificates of clusters whose ``envsync run`` was killed before it could do so."""
    sweep_temporary(_PREFIX)

"""Everything that envsync raises on purpose, in one tree.

::

    EnvsyncError
    ├── ConfigurationError      Dask's configuration says of envsync what makes no sense
    ├── CaptureError            a live environment could not be looked at
    ├── LockError               a lock could not be read, or is not ours
    │   └── LockVersionError    its [tool.envsync] table is of a schema that this envsync does not know
    ├── ResolveError            no lock can be made for the target
    │   ├── NoWheelError        a pin has no wheel for the target
    │   └── UnsupportedError    this envsync cannot reproduce what is there (conda packages, other systems)
    ├── BuildError              a local project did not build into a wheel
    ├── StoreError              a blob could not be read or written
    │   └── CorruptBlobError    bytes that do not have the digest they are named by
    ├── ImageError              a container image cannot be made, or cannot be read
    ├── RegistryError           a container registry cannot be used, or refused what was asked of it
    │   └── RegistryLoginError  it does not let us in, or not do that
    ├── ToolError               uv (or another program we run) failed
    ├── HostError               a host cannot be used
    │   ├── ConnectError        not reached: no such host, refused, timed out
    │   ├── HostKeyError        reached, but it is not known to be the host that was asked for
    │   ├── AuthenticationError reached, but it does not let us in
    │   ├── CommandError        a command on it failed
    │   └── UnfitHostError      it lacks what is needed (libc too old, disk full, read-only home)
    ├── AgentError              the agent on a host failed
    │   └── RealiseError        an environment could not be made there
    ├── ClusterError            a cluster could not be started or changed
    │   ├── BatchError          a batch system cannot be used, or does not answer
    │   │   ├── SubmitError     it refused a job, or nobody knows whether it took it
    │   │   └── JobFailed       a job ended before its workers were there, or will never start
    │   ├── CloudError          a cloud refused what was asked of it, or does not answer
    │   │   ├── CapacityError   it has no such machine there now, or not for this account
    │   │   └── BootError       a machine did not come up; carries the end of its console
    │   ├── LimitReached        its time or money was over before it was up
    │   ├── ProcessDied         a scheduler or worker process ended; carries its last lines
    │   └── StartTimeout        a process did not come up in time
    └── MismatchError           environments differ; carries the differences

Each message says what happened, where, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.plugins.compare import Difference
    from envsync.runner.verification import Verification


class EnvsyncError(Exception):
    """The root of the tree.

    Parameters
    ----------
    message : str
        What happened, and to what.
    where : str, optional
        The host, file or process that it happened in.
    hint : str, optional
        What to do next.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[EnvsyncError], state: dict[str, object]) -> EnvsyncError:
    error = cls.__new__(cls)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


def _with_tail(text: str, what: str, tail: Sequence[str]) -> str:
    return "\n".join([text, f"  {what}:", *(f"  | {line}" for line in tail)]) if tail else text


class ConfigurationError(EnvsyncError):
    """Dask's configuration says of envsync what makes no sense, or not what was asked for."""


class CaptureError(EnvsyncError):
    """A live environment could not be looked at."""


class LockError(EnvsyncError):
    """A lock could not be read, or is not one of ours."""


class LockVersionError(LockError):
    """The [tool.envsync] table is of a schema that this envsync does not know."""


class ResolveError(EnvsyncError):
    """No lock can be made for the target."""


class NoWheelError(ResolveError):
    """A pin has no wheel for the target."""


class UnsupportedError(ResolveError):
    """What is there cannot be reproduced by this envsync."""


class BuildError(EnvsyncError):
    """A local project did not build into a wheel."""


class StoreError(EnvsyncError):
    """A blob could not be read or written."""


class CorruptBlobError(StoreError):
    """Bytes that do not have the digest they are named by."""


class ImageError(EnvsyncError):
    """A container image cannot be made, or cannot be read."""


class RegistryError(EnvsyncError):
    """A container registry cannot be used, or refused what was asked of it."""


class RegistryLoginError(RegistryError):
    """The registry does not let us in, or not do that."""


class ToolError(EnvsyncError):
    """A program that we run failed.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    returncode : int
        The program's exit status.
    output : str
        What it said, credentials removed.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", returncode: int = 1, output: str = ""
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.returncode = returncode
        self.output = output


class HostError(EnvsyncError):
    """A host cannot be used."""


class ConnectError(HostError):
    """The host was not reached."""


class HostKeyError(HostError):
    """The host was reached, but is not known to be the one that was asked for."""


class AuthenticationError(HostError):
    """The host does not let us in."""


class CommandError(HostError):
    """A command on the host failed.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    returncode : int
        The command's exit status.
    stderr : str
        The end of what it wrote to its standard error.
    """

    def __init__(
        self, message: str, *, where: str = "", hint: str = "", returncode: int = 1, stderr: str = ""
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.returncode = returncode
        self.stderr = stderr


class UnfitHostError(HostError):
    """The host lacks what is needed."""


class AgentError(EnvsyncError):
    """The agent on a host failed."""


class RealiseError(AgentError):
    """An environment could not be made on a host."""


class ClusterError(EnvsyncError):
    """A cluster could not be started or changed."""


class BatchError(ClusterError):
    """A batch system cannot be used, or does not answer."""


class SubmitError(BatchError):
    """A batch system refused a job, or nobody knows whether it took it."""


class CloudError(ClusterError):
    """A cloud refused what was asked of it, or does not answer."""


class CapacityError(CloudError):
    """A cloud has no such machine there now, or not for this account: another place may have it.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    scope : {"zone", "region"}
        What lacks it.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "", scope: str = "zone") -> None:
        super().__init__(message, where=where, hint=hint)
        self.scope = scope


class BootError(CloudError):
    """A machine did not come up.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    tail : sequence of str
        The last lines of its console.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "", tail: Sequence[str] = ()) -> None:
        super().__init__(message, where=where, hint=hint)
        self.tail = tuple(tail)

    def __str__(self) -> str:
        return _with_tail(super().__str__(), "the end of its console", self.tail)


class LimitReached(ClusterError):  # noqa: N818 - the event is the name
    """A cluster's time or money was over before it was up."""


class JobFailed(BatchError):  # noqa: N818 - the event is the name
    """A job ended before its workers were there, or will never start."""


class ProcessDied(ClusterError):  # noqa: N818 - the event is the name
    """A scheduler or worker process ended when it should not have.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    returncode : int or None
        Its exit status; negative for a signal.
    tail : sequence of str
        The last lines of its log.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        returncode: int | None = None,
        tail: Sequence[str] = (),
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.returncode = returncode
        self.tail = tuple(tail)

    def __str__(self) -> str:
        return _with_tail(super().__str__(), "its last lines", self.tail)


class StartTimeout(ClusterError):  # noqa: N818 - the event is the name
    """A process did not come up in time."""


class MismatchError(EnvsyncError):
    """Environments differ.

    Parameters
    ----------
    message, where, hint : str
        As for `EnvsyncError`.
    differences : sequence of Difference
        All of them, the worst first.
    verification : Verification, optional
        Every process of the cluster, where one was looked at.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        differences: Sequence[Difference] = (),
        verification: Verification | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.differences = tuple(differences)
        self.verification = verification

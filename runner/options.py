"""What a user says about a cluster, as arguments of its processes. Nothing here starts anything."""

from __future__ import annotations

import json
import re
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

from distributed.nanny import Nanny
from distributed.utils import import_term

from envsync.runner.keywords import demand

if TYPE_CHECKING:
    from envsync.hooks import Hooks
    from envsync.runner.layout import WorkerSpec

__all__ = ["Options", "image_in", "plain_config", "run_name", "without_deprecated"]

LOOPBACK = "127.0.0.1"

DASK_CUDA = "dask-cuda"

_CUDA = frozenset(
    (
        *("device_memory_limit", "enable_cudf_spill", "cudf_spill_stats", "jit_unspill", "pre_import"),
        *(
            "rmm_pool_size",
            "rmm_maximum_pool_size",
            "rmm_managed_memory",
            "rmm_async",
            "rmm_release_threshold",
        ),
        *("rmm_log_directory", "rmm_track_allocations", "rmm_allocator_external_lib_list"),
        *("enable_tcp_over_ucx", "enable_infiniband", "enable_nvlink", "enable_rdmacm"),
    )
)
"""Options of dask-cuda's worker, as LocalCUDACluster has them. Each version knows most of them."""

# LocalCluster takes these; they do nothing unless they are set
_VOID = ("services", "worker_services")

# the first words of the settings that dask.yaml and distributed.yaml know, and of two that older ones knew
_NAMESPACES = frozenset(
    (
        *("temporary-directory", "visualization", "tokenize", "dataframe", "array", "optimization", "admin"),
        *("distributed", "shuffle", "rmm", "ucx", "distributed-ucxx"),
    )
)
# of this process alone
_OURS = frozenset(("scheduler", "scheduler-address", "pool", "num-workers", "envsync", "jobqueue"))
_TLS = frozenset(("distributed.comm.tls", "distributed.scheduler.dashboard.tls"))
_SECRET = re.compile(r"passw|passphrase|secret|credential|token|auth|keys?(?![a-z])")
_HARMLESS = frozenset(("optimization.fuse.rename-keys",))
_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of a `SyncedCluster`, checked.

    Raises
    ------
    ValueError, TypeError
        One that makes no sense, or that cannot be passed to another process.
    """

    local: bool
    n_workers: int | None = None
    threads_per_worker: int | None = None
    memory_limit: str | float | None = "auto"
    on_mismatch: str = "raise"
    processes: bool | None = True
    host: str | None = None
    scheduler_port: int = 0
    dashboard_address: str | None = ":8787"
    worker_dashboard_address: str | None = None
    protocol: str | None = None
    interface: str | None = None
    blocked_handlers: list[str] | None = None
    service_kwargs: Mapping[str, Any] | None = None
    worker_class: type | str | None = None
    gpu_worker: str | None = None
    env: Mapping[str, Any] | None = None
    scheduler_kwargs: Mapping[str, Any] | None = None
    worker_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        demand(**{one.name: getattr(self, one.name) for one in fields(self)}, **self.worker_kwargs)
        if self.processes is False:
            raise ValueError(
                "processes=False: a SyncedCluster has processes for workers, in an environment of their own;"
                " for threads of this process use distributed.LocalCluster(processes=False)"
            )
        if self.on_mismatch not in ("raise", "warn", "ignore"):
            raise ValueError(f"on_mismatch must be 'raise', 'warn' or 'ignore', not {self.on_mismatch!r}")
        for name in ("n_workers", "threads_per_worker"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral | None):
                raise TypeError(f"{name} has to be a whole number, not {value!r}")
        if self.n_workers is not None and self.n_workers < 0:
            raise ValueError(f"n_workers must not be negative, not {self.n_workers}")
        if self.threads_per_worker is not None and self.threads_per_worker < 1:
            raise ValueError(f"threads_per_worker must be at least 1, not {self.threads_per_worker}")
        if self.env is not None and not isinstance(self.env, Mapping):
            raise TypeError(
                f"env={self.env!r}: it takes a dictionary of environment variables for the workers;"
                " the lock of the environment is given as lock="
            )
        if self.gpu_worker not in (None, DASK_CUDA):
            raise ValueError(f"gpu_worker must be {DASK_CUDA!r} or None, not {self.gpu_worker!r}")
        if self.gpu_worker is not None and self.worker_class is not None:
            raise TypeError(
                f"gpu_worker={self.gpu_worker!r} has a class of its own: worker_class= is not taken"
            )
        if self.gpu_worker is None and (theirs := sorted(_CUDA & set(self.worker_kwargs))):
            raise TypeError(
                f"{theirs[0]}= is an option of dask-cuda's worker: say gpu_worker={DASK_CUDA!r} too"
            )
        for name in _VOID:
            if self.worker_kwargs.get(name):
                raise TypeError(f"{name}= is not taken: start it with preload= or a plugin")
        for name, options in (
            ("scheduler_kwargs", self.scheduler_kwargs or {}),
            ("service_kwargs", self.service_kwargs or {}),
            ("env", self.env or {}),
            ("worker options", self.worker_kwargs),
        ):
            for key, value in options.items():
                if not _plain(value):
                    raise TypeError(
                        f"{name}: {key}={value!r} cannot be passed to a process on another machine: "
                        "numbers, strings, lists and dictionaries can"
                    )

    @property
    def nanny(self) -> bool:
        """Whether workers run under a nanny."""
        if self.worker_class is None:
            return True
        found = import_term(self.worker_class) if isinstance(self.worker_class, str) else self.worker_class
        return issubclass(found, Nanny)

    @property
    def worker_class_name(self) -> str | None:
        """The worker's class in full; None for the default."""
        if self.worker_class is None or isinstance(self.worker_class, str):
            return self.worker_class
        return f"{self.worker_class.__module__}.{self.worker_class.__qualname__}"

    def scheme(self, *, encrypted: bool) -> str:
        """Return the protocol, such as ``"tls://"``."""
        if self.protocol:
            return self.protocol if self.protocol.endswith("://") else f"{self.protocol}://"
        if self.host and "://" in self.host:
            return self.host.split("://")[0] + "://"
        return "tls://" if encrypted else "tcp://"

    def dashboard_host(self, *, encrypted: bool) -> str | None:
        """Return where the dashboard listens on its host, if that is not where the scheduler does."""
        if self.dashboard_address is None:
            return None
        named = str(self.dashboard_address).rpartition(":")[0]
        if named:
            return None if named in ("0.0.0.0", "[::]", "") else named  # noqa: S104 - compared, not bound
        return LOOPBACK if encrypted and not self.local else None

    def scheduler(self, *, encrypted: bool) -> dict[str, Any]:
        """Return the arguments of the Scheduler."""
        dashboard = self.dashboard_address
        if dashboard is not None:
            inside = self.dashboard_host(encrypted=encrypted)
            if inside is not None:
                dashboard = f"{inside}:{str(dashboard).rpartition(':')[2]}"
        return {
            "host": LOOPBACK if self.local and self.host is None and not self.interface else self.host,
            "port": self.scheduler_port,
            "interface": self.interface,
            "protocol": self.scheme(encrypted=encrypted),
            "dashboard": dashboard is not None,
            "dashboard_address": dashboard,
            "blocked_handlers": self.blocked_handlers,
            "service_kwargs": dict(self.service_kwargs) if self.service_kwargs else None,
            **(self.scheduler_kwargs or {}),
        }

    def worker(self, spec: WorkerSpec, *, encrypted: bool) -> dict[str, Any]:
        """Return the part of a worker's configuration that is its own, without name and scheduler."""
        rest = {name: value for name, value in self.worker_kwargs.items() if name not in {*_VOID, *_CUDA}}
        resources = {**spec.resources, **(rest.pop("resources", None) or {})}
        options = {
            "host": LOOPBACK if self.local and not self.interface and self.host is None else None,
            "interface": self.interface or (None if self.host else spec.interface),
            "protocol": self.scheme(encrypted=encrypted),
            "dashboard": self.worker_dashboard_address is not None,
            "dashboard_address": self.worker_dashboard_address,
            "resources": resources or None,
            "death_timeout": 60,
            **rest,
        }
        environment = spec.environment()
        given = {name: str(value) for name, value in (self.env or {}).items()}
        if self.nanny and self.gpu_worker is None:  # dask-cuda gives its nannies variables of its own
            options["env"] = given or None
        else:
            environment.update(given)
        if self.local and self.host is not None:
            options["host"] = self.host
        config: dict[str, Any] = {
            "options": options,
            "env": environment,
            "cpus": list(spec.cpus),
            "class": self.worker_class_name,
        }
        if self.gpu_worker is not None:
            config["cuda"] = {name: value for name, value in self.worker_kwargs.items() if name in _CUDA}
        return config


def image_in(env: Any, *, engine: str | None, lock: object) -> tuple[str | None, Any]:
    """Return the container image that ``env=`` names, and what else it says: the variables of workers.

    Raises
    ------
    TypeError, ValueError
        What is given beside it makes no sense.
    """
    if isinstance(env, str) and env.startswith("image:"):
        if engine not in (None, "", "podman", "docker"):
            raise ValueError(f"engine must be 'podman' or 'docker', not {engine!r}")
        if lock is not None:
            raise TypeError("an image has its own lock: give env='image:...' or lock=, not both")
        return env, None
    if engine is not None:
        raise TypeError("engine= is for images: env='image:...'")
    return None, env


def without_deprecated(keywords: dict[str, Any], host: str | None) -> str | None:
    """Take out ``ip`` and ``start`` as LocalCluster does, with its warnings; return what `host` is then."""
    ip, start = keywords.pop("ip", None), keywords.pop("start", None)
    if start is not None:
        warnings.warn("start= is deprecated and has no effect", DeprecationWarning, stacklevel=3)
    if ip is None:
        return host
    warnings.warn("ip= is deprecated: write host= instead", DeprecationWarning, stacklevel=3)
    return str(ip)


def run_name(name: object) -> str:
    """Return a name that is nobody else's, fit for paths and certificates, whatever the user's is."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", str(name or "envsync")).lstrip(".-")[:60] or "envsync"
    return f"{readable}-{uuid.uuid4().hex[:12]}"


def plain_config(config: Mapping[str, Any], hooks: Hooks) -> dict[str, Any]:
    """Return the part of Dask's configuration that its processes elsewhere need.

    That is what Dask's and distributed's own defaults speak of, under whatever spelling. Other packages'
    settings stay here, and so does what only this process can use, what cannot be written down, what belongs
    to TLS (certificates have a way of their own) and whatever looks like a secret.

    Parameters
    ----------
    config : mapping
        The whole configuration.
    hooks : Hooks
        Told the names, never the values, of settings that are left out.
    """
    left: list[str] = []

    def plain(part: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        kept = {}
        for key, value in part.items():
            where = (*path, str(key))
            name = ".".join(where).replace("_", "-").lower()
            if name in _OURS:
                continue
            if (not path and name not in _NAMESPACES) or name in _TLS:
                if _says_something(value):
                    left.append(".".join(where))
            elif isinstance(value, dict):
                kept[key] = plain(value, where)
            elif not _plain(value) or (_says_something(value) and _secret(name, value)):
                left.append(".".join(where))
            else:
                kept[key] = value
        return kept

    kept = plain(config, ())
    if left:
        hooks.note("here", f"these settings of Dask's are not sent along: {', '.join(sorted(left))}")
    return kept


def _says_something(value: object) -> bool:
    if isinstance(value, dict):  # distributed.yaml itself gives the oldest TLS version
        return any(_says_something(part) for key, part in value.items() if key != "min-version")
    return value is not None


def _secret(name: str, value: object) -> bool:
    """Tell whether a setting looks like one that nobody else should see."""
    if name in _HARMLESS:
        return False
    below = name.partition(".")[2]  # "tokenize" is nothing secret
    return bool(_SECRET.search(below) or _WITH_PASSWORD.search(json.dumps(value)))


def _plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True

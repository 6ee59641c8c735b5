"""An account of an OpenStack cloud: the SDK's connections, a region each, and calls that are made again.

openstacksdk is imported nowhere else but in `openstack_errors`.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import stamina

from envsync.errors import CloudError
from envsync.runner.cloud.openstack_errors import missing, translated, worth_another_try

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Account"]

T = TypeVar("T")

_AT_ONCE = 32  # connections; requests' own limit is ten
_CALL = 60.0  # seconds that an answer may take
_ATTEMPTS = 8
_PACE = {"timeout": 180.0, "wait_initial": 0.5, "wait_max": 20.0}
_FIRST = 3  # of the first call: a wrong address is told within seconds
logging.getLogger("keystoneauth").addHandler(logging.NullHandler())  # its warnings are our errors


class Account:
    """A project, by ``clouds.yaml`` or ``OS_*`` variables. What those say stays with the SDK.

    Parameters
    ----------
    cloud : str
        The name of the cloud in ``clouds.yaml``; empty: what the variables say.
    """

    def __init__(self, cloud: str) -> None:
        try:
            import openstack
        except ImportError as error:
            raise missing() from error
        self._connect: Callable[..., Any] = openstack.connect
        self._cloud = cloud
        self._connections: dict[str, Any] = {}
        self._connecting = threading.Lock()

    def at(self, region: str) -> Any:
        """Return the SDK's connection to a region, one for all threads: each would log in for itself.

        Parameters
        ----------
        region : str
            Empty for what the configuration says.
        """
        with self._connecting:
            if region not in self._connections:
                named = {"region_name": region} if region else {}
                cloud = self._cloud or os.environ.get("OS_CLOUD") or None
                api = self._connect(cloud=cloud, app_name="envsync", api_timeout=_CALL, **named)
                for adapter in api.session.session.adapters.values():
                    adapter.init_poolmanager(_AT_ONCE, _AT_ONCE)
                if region:
                    for service in ("compute", "network", "image"):  # asks where it is, once
                        proxy = self.again(partial(getattr, api, service), attempts=_FIRST)
                        # releases and configurations differ in whether a lost call is made again in there,
                        # where nobody looks whether it has made something: none is
                        proxy.request = partial(proxy.request, connect_retries=0)
                        proxy.status_code_retries = 0
                self._connections[region] = api
            return self._connections[region]

    def own_region(self) -> str:
        """Return the region that the configuration names, or the only one that there is."""
        with translated("account"):
            named = self.at("").config.get_region_name()
        there = (str(named),) if named else self.regions("")
        if len(there) != 1:
            raise CloudError(
                f"no region is given, and there are {', '.join(there) or 'none'}",
                where="openstack",
                hint="Name one: OpenStack(..., region='...'), --region; or region_name in clouds.yaml.",
            )
        return there[0]

    def regions(self, region: str) -> tuple[str, ...]:
        """Return the regions that the catalogue has nova in; asked for in one of them."""
        with translated("account"):
            catalogue = self.again(self.at(region).config.get_service_catalog, attempts=_FIRST)
            found = catalogue.get_endpoints(service_type="compute") if catalogue is not None else {}
        there = (one.get("region_id") or one.get("region") for each in found.values() for one in each)
        return tuple(sorted({str(one) for one in there if one}))

    def again(self, call: Callable[[], T], *, attempts: int = _ATTEMPTS) -> T:
        """Call, and again where it was busy or the answer is lost: for what can be said twice."""
        caller = stamina.RetryingCaller(attempts=attempts, **_PACE)
        return caller.on(worth_another_try)(call)

    def listed(self, call: Callable[[], Iterable[Any]]) -> list[Any]:
        """Return a list to its end."""
        return self.again(lambda: list(call()))

    def once(self, look: Callable[[], Sequence[Any]], make: Callable[[], Any]) -> Any:
        """Make what is not there: it is looked for first, and again whenever an answer was lost.

        Parameters
        ----------
        look : callable
            Returns what there is of it; it asks `again` by itself.
        make : callable
            Makes it.
        """
        for attempt in stamina.retry_context(on=worth_another_try, attempts=_ATTEMPTS, **_PACE):
            there = look()  # by itself: what it raises was tried again already
            with attempt:
                return there[0] if there else make()
        raise AssertionError

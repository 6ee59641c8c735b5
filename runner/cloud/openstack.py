"""OpenStack, through openstacksdk: connections are in `openstack_account`, words in `openstack_messages`.

Nothing here has tokens that make a second call harmless: what is made has a name, or a description, and is
looked for before it is made, and before it is made again.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from envsync.errors import CapacityError, CloudError
from envsync.runner.cloud.openstack_account import Account
from envsync.runner.cloud.openstack_choices import choose_image, choose_network, expected_of
from envsync.runner.cloud.openstack_errors import refused, status_of, translated
from envsync.runner.cloud.openstack_messages import (
    OURS,
    described,
    description_of,
    found_as,
    group_name,
    machine_of,
    rules_of,
    server_name,
    server_of,
    state_of,
    tag_of,
)
from envsync.runner.cloud.provider import (
    CLUSTER,
    Found,
    Machine,
    MachineRequest,
    Price,
    Provider,
    Shared,
    Tags,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from envsync.runner.cloud.provider import Expected, Market

__all__ = ["OpenStackProvider"]

T = TypeVar("T")

_PLACED = 120.0  # seconds that nova may take to find a host for a server
_POLL = 0.5
_HAS_A_HOST = ("networking", "block_device_mapping", "spawning")


class OpenStackProvider(Provider):
    """A project of an OpenStack cloud, by ``clouds.yaml`` or ``OS_*`` variables.

    Parameters
    ----------
    regions : sequence of str
        Where machines may be made, the first choice first; the account's own if there are none.
    cloud : str
        The name of the cloud in ``clouds.yaml``; what ``OS_*`` variables say if empty.
    zones : sequence of str
        Only in these availability zones, in this order.
    image : str
        The name or the id of an image; the newest plain Debian or Ubuntu of the cloud's if empty.
    network : str
        The name or the id of the network that machines are put in; the project's only one if empty.
    floating_network : str
        The name or the id of the network that each machine gets a floating address of; none if empty.
    config_drive : bool
        Whether machines read what they run first from a drive, where a cloud has no metadata service.
    reached_from : sequence of str
        Networks that may reach the machines' sshd.
    """

    name = "openstack"
    gone_on_shutdown = False
    left_on_shutdown = (
        "OpenStack keeps a server that has shut itself down, with its disk and its address: it counts in the "
        "project's quota, and most clouds bill it. Should this computer lose its power or the network, "
        "`envsync reap` deletes it, from anywhere"
    )

    def __init__(
        self,
        regions: Sequence[str] = (),
        *,
        cloud: str = "",
        zones: Sequence[str] = (),
        image: str = "",
        network: str = "",
        floating_network: str = "",
        config_drive: bool = False,
        reached_from: Sequence[str] = ("0.0.0.0/0", "::/0"),
    ) -> None:
        self._account = Account(cloud)
        self._zones = tuple(zones)
        self._image = image
        self._network = network
        self._floating_network = floating_network
        self._config_drive = config_drive
        self._reached_from = tuple(reached_from)
        self._known: dict[tuple[str, ...], Any] = {}
        self.regions = tuple(regions) or (self._account.own_region(),)

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the zones that are up, if the region has the type. See `Provider.zones`."""
        with translated(region):
            if self._flavor(region, machine_type) is None:
                return ()
            found = self._account.listed(self._account.at(region).compute.availability_zones)
        there = sorted(str(one.name) for one in found if (one.state or {}).get("available", True))
        return tuple(zone for zone in self._zones if zone in there) if self._zones else tuple(there)

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:  # noqa: ARG002
        """Make the security group, look image and network up; keys come with each server.

        See `Provider.open`.
        """
        with translated(region, machine_type):
            if self._flavor(region, machine_type) is None:
                raise CloudError(
                    f"there is no flavor {machine_type}",
                    where=f"openstack {region}",
                    hint="Is the type's name right? `openstack flavor list` shows them.",
                )
            image = self._find_image(region)
            self._networks(region)
            network = self._account.at(region).network
            group = self._account.once(
                partial(self._groups, region, tags.cluster),
                partial(
                    network.create_security_group,
                    name=group_name(tags.cluster),
                    description=description_of(tags),
                ),
            )
            for rule in rules_of(str(group.id), self._reached_from):
                try:
                    self._account.again(partial(network.create_security_group_rule, **rule))
                except Exception as error:  # noqa: PERF203 - of few
                    if status_of(error) != 409 or "already exists" not in str(error):
                        raise
        return Shared(region=region, key="", group=str(group.id), image=str(image.id))

    def create(self, request: MachineRequest) -> Machine:
        """Have nova make one server, and wait until it has found a host. See `Provider.create`."""
        region, cluster = request.shared.region, request.tags.cluster
        if request.market == "spot":
            raise CapacityError(
                "OpenStack has no spot machines",
                where=f"openstack {region}",
                hint="Leave spot= away, or say 'prefer'.",
                scope="region",
            )
        with translated(request.zone or region, request.type):
            compute = self._account.at(region).compute
            flavor = self._flavor(region, request.type)
            inner, outer = self._networks(region)
            asked = server_of(request, flavor=str(flavor.id), network=inner, config_drive=self._config_drive)
            made = self._account.once(
                partial(self._servers, region, cluster, name=f"^{server_name(request)}$"),
                partial(compute.create_server, **asked),
            )
            try:
                server = self._placed(region, made.id, request)
                address = self._give_address(region, server, outer, request) if outer else None
            except BaseException:
                # nova keeps what came to nothing, and counts it
                with contextlib.suppress(Exception):
                    self._account.again(partial(compute.delete_server, made.id))
                raise
        return machine_of(server, region, address)

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return a cluster's servers. See `Provider.describe`."""
        with translated(region):
            servers = self._servers(region, cluster)
            if not self._floating_network:
                return tuple(machine_of(one, region) for one in servers)
            # nova learns of floating addresses late
            outer = {
                tags["server"]: str(one.floating_ip_address)
                for one, tags in self._addresses(region)
                if one.port_id and "server" in tags
            }
            return tuple(machine_of(one, region, outer.get(str(one.id), "")) for one in servers)

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Delete servers, and the addresses that they were given. See `Provider.terminate`."""
        if not ids:
            return
        with translated(region):
            api = self._account.at(region)
            for one in ids:
                self._account.again(partial(api.compute.delete_server, one))
            if self._floating_network:
                for address, tags in self._addresses(region):
                    if tags.get("server") in ids:
                        self._account.again(partial(api.network.delete_ip, address.id))

    def console(self, region: str, identity: str) -> str:
        """Return a server's console so far. See `Provider.console`."""
        with translated(region):
            try:
                answer = self._account.again(
                    partial(self._account.at(region).compute.get_server_console_output, identity)
                )
            except Exception as error:
                if status_of(error) in (404, 409):  # it is gone, or has no host yet
                    return ""
                if status_of(error) == 501:
                    raise CloudError(
                        "this cloud does not show what a server writes to its console",
                        where=f"openstack {region}",
                        hint="host_keys='first' takes the key of whoever answers first, and holds to it.",
                    ) from error
                raise
        return str(answer.get("output") or "")

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Delete a cluster's security group and its addresses. See `Provider.close`."""
        with translated(region):
            left = tuple(
                str(one.id) for one in self._groups(region, cluster) if not self._delete_group(region, one.id)
            )
            if not left:
                for address, tags in self._addresses(region):
                    if tags[CLUSTER] == cluster:
                        self._account.again(partial(self._account.at(region).network.delete_ip, address.id))
        return left

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:  # noqa: ARG002
        """Return None: OpenStack knows no prices. See `Provider.price`."""
        return None

    def expected(self, region: str, machine_type: str) -> Expected | None:
        """Return what the image's name tells. See `Provider.expected`."""
        with translated(region, machine_type):
            flavor = self._flavor(region, machine_type)
            return None if flavor is None else expected_of(self._find_image(region), flavor)

    def everywhere(self) -> tuple[str, ...]:
        """Return the regions that the account's catalogue has nova in. See `Provider.everywhere`."""
        return self._account.regions(self.regions[0])

    def found(self, region: str) -> tuple[Found, ...]:
        """Return servers, security groups and floating addresses. See `Provider.found`."""
        with translated(region):
            servers = [
                one
                for one in self._account.listed(partial(self._account.at(region).compute.servers, tags=OURS))
                if CLUSTER in (one.metadata or {}) and state_of(one) != "ended"
            ]
            groups = self._ours(region, "security_groups")
            addresses = self._addresses(region)
        return (
            *(found_as("machine", one, one.metadata, state_of(one)) for one in servers),
            *(found_as("group", one, tags) for one, tags in groups),
            *(found_as("address", one, tags, str(one.status or "")) for one, tags in addresses),
        )

    def remove(self, region: str, found: Found) -> bool:
        """Delete a server, a security group or an address. See `Provider.remove`."""
        if found.kind == "machine":
            self.terminate(region, [found.id])
            return True
        with translated(region):
            if found.kind == "group":
                return self._delete_group(region, found.id)
            self._account.again(partial(self._account.at(region).network.delete_ip, found.id))
        return True

    # -- inner

    def _remember(self, key: tuple[str, ...], ask: Callable[[], T]) -> T:
        """Ask for what stays as it is once, for as long as this lives."""
        if key not in self._known:
            self._known[key] = ask()
        found: T = self._known[key]
        return found

    def _flavor(self, region: str, machine_type: str) -> Any:
        def ask() -> Any:
            found = self._account.listed(self._account.at(region).compute.flavors)
            named = [one for one in found if machine_type in (one.name, one.id)]
            return named[0] if named else None

        return self._remember((region, "flavor", machine_type), ask)

    def _find_image(self, region: str) -> Any:
        def ask() -> Any:
            api, where = self._account.at(region), f"openstack {region}"
            return choose_image(
                self._account.listed(api.image.images), self._image, str(api.current_project_id), where
            )

        return self._remember((region, "image"), ask)

    def _networks(self, region: str) -> tuple[str, str]:
        """Return the ids of the network that machines are in and of that of their floating addresses."""

        def ask() -> tuple[str, str]:
            api, where = self._account.at(region), f"openstack {region}"
            there, project = self._account.listed(api.network.networks), str(api.current_project_id)
            inner = choose_network(there, self._network, project, where)
            if not self._floating_network:
                return inner, ""
            return inner, choose_network(
                there, self._floating_network, project, where, option="floating_network"
            )

        return self._remember((region, "networks"), ask)

    def _servers(self, region: str, cluster: str, **asked: str) -> list[Any]:
        found = self._account.listed(
            partial(self._account.at(region).compute.servers, tags=tag_of(cluster), **asked)
        )
        return [one for one in found if (one.metadata or {}).get(CLUSTER) == cluster]

    def _ours(self, region: str, kind: str, **asked: str) -> list[tuple[Any, dict[str, str]]]:
        """Return what the project has of neutron's that says it is ours, each with its tags."""
        api = self._account.at(region)
        # an administrator sees everybody's
        found = self._account.listed(
            partial(getattr(api.network, kind), project_id=api.current_project_id, **asked)
        )
        return [(one, tags) for one in found if (tags := described(one.description))]

    def _groups(self, region: str, cluster: str) -> list[Any]:
        found = self._ours(region, "security_groups", name=group_name(cluster))
        return [one for one, tags in found if tags[CLUSTER] == cluster]

    def _addresses(self, region: str) -> list[tuple[Any, dict[str, str]]]:
        return self._ours(region, "ips")

    def _delete_group(self, region: str, identity: str) -> bool:
        """Delete a security group; whether it is gone, or still in use."""
        try:
            self._account.again(partial(self._account.at(region).network.delete_security_group, identity))
        except Exception as error:
            if status_of(error) == 409:
                return False
            raise
        return True

    def _placed(self, region: str, identity: str, request: MachineRequest) -> Any:
        """Return a server when it has a host, or when nova has taken long to find one."""
        deadline = time.monotonic() + _PLACED
        while True:
            server = self._account.again(partial(self._account.at(region).compute.get_server, identity))
            if server.status == "ERROR":
                said = (server.fault or {}).get("message") or "it came to nothing, and nova says no more"
                raise refused(said, request.zone or region, request.type)
            if server.status != "BUILD" or server.task_state in _HAS_A_HOST or time.monotonic() > deadline:
                return server
            time.sleep(_POLL)

    def _give_address(self, region: str, server: Any, outer: str, request: MachineRequest) -> str:
        """Give a server a floating address, when it has the port to which that leads."""
        network = self._account.at(region).network
        deadline = time.monotonic() + _PLACED
        while not (ports := self._account.listed(partial(network.ports, device_id=server.id))):
            self._placed(region, server.id, request)  # it may have come to nothing since
            if time.monotonic() > deadline:
                raise CloudError(
                    f"{server.name} had no port within {_PLACED:g} s, and gets no address",
                    where=f"openstack {region}",
                )
            time.sleep(_POLL)
        port = str(ports[0].id)
        made = self._account.once(
            lambda: [one for one, _ in self._ours(region, "ips", port_id=port)],
            partial(
                network.create_ip,
                floating_network_id=outer,
                port_id=port,
                description=description_of(request.tags, str(server.id)),
            ),
        )
        return str(made.floating_ip_address)

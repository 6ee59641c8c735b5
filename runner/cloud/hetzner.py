"""Hetzner Cloud, through hcloud, which is imported nowhere else but in `hetzner_errors`.

A location is a region of one zone. Servers have no console that can be read and no user-data that is secret,
so that nobody vouches for a first connection; and a server that is off is billed as one that runs.
"""

from __future__ import annotations

import os
import re
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import stamina

from envsync.errors import CapacityError, CloudError
from envsync.runner.cloud.hetzner_errors import (
    but_for,
    code_of,
    translated,
    unreachable,
    worth_another_try,
)
from envsync.runner.cloud.hetzner_messages import (
    MACHINES,
    STATES,
    as_found,
    as_machine,
    as_price,
    fingerprint,
    of_cluster,
)
from envsync.runner.cloud.labels import as_labels, as_name, as_tags
from envsync.runner.cloud.patience import Patience
from envsync.runner.cloud.provider import (
    CLUSTER,
    Expected,
    Found,
    Machine,
    MachineRequest,
    Price,
    Provider,
    Shared,
    Tags,
)
from envsync.runner.cloud.systems import system_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from envsync.runner.cloud.provider import Market

__all__ = ["HetznerProvider"]

_ENDPOINT = "https://api.hetzner.cloud/v1"
_LOCATION = "envsync-location"  # a label of what has no location: a firewall, a key
_SOURCES = 100  # networks that a rule may name


class HetznerProvider(Provider):
    """A project of Hetzner Cloud, by the token in ``HCLOUD_TOKEN``.

    Parameters
    ----------
    locations : sequence of str
        Where machines may be made, the first choice first, such as ``"fsn1"``.
    image : str
        The name of one of Hetzner's images, or the id or the description of a snapshot.
    network : str
        The name of a private network that machines are put in, beside their public address.
    reached_from : sequence of str
        Networks that may reach the machines' sshd.
    """

    name = "hetzner"
    has_console = False
    gone_on_shutdown = False
    left_on_shutdown = (
        "Hetzner bills a server that is off as one that runs. Should this computer lose its power or the "
        "network, servers shut themselves down, and are billed until they are deleted: `envsync reap` does "
        "that, from anywhere"
    )

    def __init__(
        self,
        locations: Sequence[str],
        *,
        image: str = "debian-12",
        network: str = "",
        reached_from: Sequence[str] = ("0.0.0.0/0", "::/0"),
    ) -> None:
        try:
            import hcloud  # noqa: F401 - whether it is there
        except ImportError as error:
            raise CloudError(
                "Hetzner needs hcloud, which is not installed",
                where="hetzner",
                hint="Install it: pip install 'dask-envsync[hetzner]'",
            ) from error
        self._token = os.environ.get("HCLOUD_TOKEN", "").strip()
        if not re.fullmatch(r"[!-~]+", self._token):
            raise CloudError(
                "there is no token of a project in HCLOUD_TOKEN, or no such text as tokens are",
                where="hetzner",
                hint="Make one in the Hetzner Console (Security, API tokens: read and write), and set it.",
            )
        if not locations:
            raise CloudError(
                "no location is given",
                where="hetzner",
                hint="Name one: Hetzner(..., location='fsn1'), --region fsn1; or nbg1, hel1, ash, hil, sin.",
            )
        self.regions = tuple(locations)
        self._image = image
        self._network = network
        self._reached_from = tuple(reached_from)
        self._own = threading.local()
        caller = stamina.RetryingCaller(attempts=6, timeout=120.0, wait_initial=0.3, wait_max=10.0)
        self._patience = Patience(caller, worth=worth_another_try, unreachable=unreachable)
        self._types: dict[str, Any] = {}
        self._images: dict[str, Any] = {}  # by architecture
        self._pricing: dict[str, Any] = {}
        self._letting_in = threading.Lock()
        self._let_in: dict[str, set[str]] = {}  # by firewall

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the location itself if it has the type. See `Provider.zones`."""
        with translated(region):
            found = self._type(machine_type)
        offered = () if found is None else tuple(one.location.name for one in found.locations or ())
        return (region,) if region in offered else ()

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:
        """Upload the key, make the firewall, look the image up. See `Provider.open`."""
        name = as_name(f"envsync-{tags.cluster}-{region}")
        labels = {**as_labels(tags.to_dict()), _LOCATION: region}
        with translated(region):
            image = self._find_image(region, self._demand_type(region, machine_type))
            keys = self._client.ssh_keys
            key = keys.get_by_name(name)
            if key is None:
                # without a key Hetzner makes up a password, and sends a mail with it for each machine
                with but_for("uniqueness_error"):
                    key = keys.create(name=name, public_key=public_key, labels=labels)
                key = key or keys.get_by_name(name) or keys.get_by_fingerprint(fingerprint(public_key))
            firewalls = self._client.firewalls
            group = firewalls.get_by_name(name)
            if group is None:
                with but_for("uniqueness_error"):
                    group = firewalls.create(name=name, rules=self._rules(()), labels=labels).firewall
                group = group or firewalls.get_by_name(name)
        assert key is not None
        assert group is not None
        return Shared(region=region, key=str(key.id), group=str(group.id), image=str(image.id))

    def create(self, request: MachineRequest) -> Machine:
        """Make one server, whose name is of the token: there are no two of a name. See `Provider.create`."""
        from hcloud.firewalls import Firewall
        from hcloud.images import Image
        from hcloud.locations import Location
        from hcloud.networks import Network
        from hcloud.server_types import ServerType
        from hcloud.ssh_keys import SSHKey

        region, cluster = request.shared.region, request.tags.cluster
        if request.market == "spot":
            raise CapacityError(
                "Hetzner has no spot machines",
                where=f"hetzner {region}",
                hint="Leave spot= away, or say 'prefer'.",
                scope="region",
            )
        name = as_name(f"envsync-{cluster}-{request.token[:12]}")
        with translated(region, request.type):
            self._check_disk(request)
            networks = None
            if self._network:
                network = self._client.networks.get_by_name(self._network)
                if network is None:
                    raise CloudError(
                        f"there is no network called {self._network}",
                        where=f"hetzner {region}",
                        hint="`hcloud network list` shows those of the project.",
                    )
                networks = [Network(id=network.id)]
            made = None
            with but_for("uniqueness_error"):
                made = self._again(
                    lambda: (
                        self._client.servers.create(
                            name=name,
                            server_type=ServerType(name=request.type),
                            image=Image(id=int(request.shared.image)),
                            location=Location(name=region),
                            ssh_keys=[SSHKey(id=int(request.shared.key))],
                            firewalls=[Firewall(id=int(request.shared.group))],
                            networks=networks,
                            user_data=request.user_data,
                            labels=as_labels(request.tags.to_dict()),
                        ).server
                    )
                )
            made = made or self._client.servers.get_by_name(name)  # an earlier try has made it
            if made is None or as_tags(made.labels).get(CLUSTER) != cluster:
                raise CloudError(f"somebody else has a server called {name}", where=f"hetzner {region}")
            machine = as_machine(made)
            self._let_each_other_in(request.shared, cluster, machine)
        return machine

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return a cluster's servers. See `Provider.describe`."""
        with translated(region):
            found = self._again(lambda: self._client.servers.get_all(label_selector=of_cluster(cluster)))
        return tuple(as_machine(one) for one in found if one.location.name == region)

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Delete servers. See `Provider.terminate`."""
        for one in ids:
            with translated(region), but_for("not_found"):
                server = self._again(partial(self._client.servers.get_by_name, one))
                if server is not None and CLUSTER in as_tags(server.labels):
                    self._again(server.delete)

    def console(self, region: str, identity: str) -> str:  # noqa: ARG002
        """Return nothing: Hetzner shows consoles as pictures alone. See `Provider.console`."""
        return ""

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Delete a cluster's keys and firewalls. See `Provider.close`."""
        selector = f"{of_cluster(cluster)},{_LOCATION}=={region}"
        with translated(region):
            left = [
                str(one.id)
                for one in self._client.firewalls.get_all(label_selector=selector)
                if not self._gone(one)
            ]
            for key in self._client.ssh_keys.get_all(label_selector=selector):
                self._gone(key)
        return tuple(left)

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:  # noqa: ARG002
        """Return the price of a server with its public address. See `Provider.price`."""
        if market == "spot":
            return None
        pricing = self._price_list()
        return as_price(pricing, machine_type, region) if pricing is not None else None

    def disk_price(self, shared: Shared, size: int) -> Price | None:  # noqa: ARG002
        """Return 0: the disk is in the server's price. See `Provider.disk_price`."""
        pricing = self._price_list()
        if pricing is None:
            return None
        return Price(amount=0.0, currency=str(pricing["currency"]), source="in the server's price", date="")

    def expected(self, region: str, machine_type: str) -> Expected | None:
        """Return the image, and what is known of servers from it. See `Provider.expected`."""
        with translated(region):
            found = self._demand_type(region, machine_type)
            if found.architecture not in MACHINES:
                return None
            image = self._find_image(region, found)
        # a snapshot's, too: the system is that of the server that it is of
        system = system_of(f"{image.os_flavor}-{image.os_version}")
        return Expected(
            image=str(image.id),
            name=str(image.name or image.description or image.id),
            machine=MACHINES[found.architecture],
            libc=("glibc", system.libc) if system else None,
            python=system.python if system else "",
        )

    def everywhere(self) -> tuple[str, ...]:
        """Return all locations. See `Provider.everywhere`."""
        with translated("account"):
            return tuple(str(one.name) for one in self._again(self._client.locations.get_all))

    def found(self, region: str) -> tuple[Found, ...]:
        """Return servers, firewalls and keys. See `Provider.found`."""
        ours, there = next(iter(as_labels({CLUSTER: ""}))), f"{_LOCATION}=={region}"
        client = self._client
        with translated(region):
            servers = self._again(lambda: client.servers.get_all(label_selector=ours))
            firewalls = self._again(lambda: client.firewalls.get_all(label_selector=f"{ours},{there}"))
            keys = self._again(lambda: client.ssh_keys.get_all(label_selector=f"{ours},{there}"))
        return (
            *(
                as_found("machine", one, str(one.name), STATES.get(one.status, "pending"))
                for one in servers
                if one.location.name == region
            ),
            *(as_found("group", one, str(one.id)) for one in firewalls),
            *(as_found("key", one, str(one.id)) for one in keys),
        )

    def remove(self, region: str, found: Found) -> bool:
        """Delete a server, a firewall or a key. See `Provider.remove`."""
        if found.kind == "machine":
            self.terminate(region, [found.id])
            return True
        kinds = {"group": self._client.firewalls, "key": self._client.ssh_keys}
        with translated(region):
            try:
                one = kinds[found.kind].get_by_id(int(found.id))
            except Exception as error:
                if code_of(error) == "not_found":
                    return True
                raise
            return self._gone(one)

    # -- inner

    def _price_list(self) -> dict[str, Any] | None:
        try:
            with translated("prices"):
                if not self._pricing:
                    self._pricing = self._again(lambda: self._client.request("GET", "/pricing"))["pricing"]
        except CloudError:
            return None
        return self._pricing

    @property
    def _client(self) -> Any:
        """Hcloud's client, one for each thread: its session is not made for several."""
        if not hasattr(self._own, "client"):
            from hcloud import Client

            endpoint = os.environ.get("HCLOUD_ENDPOINT", _ENDPOINT)  # as Hetzner's own command line has it
            self._own.client = Client(
                self._token, api_endpoint=endpoint, application_name="envsync", timeout=(10, 60)
            )
        return self._own.client

    def _again(self, call: Callable[[], Any]) -> Any:
        """Call, and again where Hetzner was busy or its answer is lost; hcloud waits when throttled."""
        return self._patience.call(call)

    def _type(self, name: str) -> Any:
        if name not in self._types:
            self._types[name] = self._again(lambda: self._client.server_types.get_by_name(name))
        return self._types[name]

    def _demand_type(self, region: str, name: str) -> Any:
        found = self._type(name)
        if found is None:
            raise CloudError(
                f"Hetzner has no server type {name}",
                where=f"hetzner {region}",
                hint="Is the type's name right? `hcloud server-type list` shows them: cx33, ccx23.",
            )
        return found

    def _find_image(self, region: str, machine_type: Any) -> Any:
        architecture, images = machine_type.architecture, self._client.images
        if architecture in self._images:
            return self._images[architecture]
        if self._image.isdigit():
            found = images.get_by_id(int(self._image))
        else:
            found = images.get_by_name_and_architecture(self._image, architecture)
        if found is None:
            own = [
                one
                for one in images.get_all(type=["snapshot"], architecture=[architecture])
                if one.description == self._image
            ]
            found = max(own, key=lambda one: one.created, default=None)
        if found is None:
            raise CloudError(
                f"there is no image called {self._image!r} for {architecture}",
                where=f"hetzner {region}",
                hint="Name another: Hetzner(..., image='ubuntu-24.04'), or a snapshot's id or description.",
            )
        self._images[architecture] = found
        return found

    def _check_disk(self, request: MachineRequest) -> None:
        there = getattr(self._type(request.type), "disk", None)
        if request.disk and there is not None and request.disk > there:
            raise CloudError(
                f"a {request.type} has {there} GB of disk, and {request.disk} were asked for",
                where=f"hetzner {request.shared.region}",
                hint="At Hetzner the type says how large the disk is: take a larger one; no disk=.",
            )

    def _rules(self, peers: Iterable[str]) -> list[Any]:
        """Return what may come in: ssh from where the user said, everything from the cluster's machines."""
        from hcloud.firewalls import FirewallRule

        others = sorted(f"{one}/32" for one in peers)
        rules = [("22", self._reached_from)]
        rules += [("any", tuple(others[at : at + _SOURCES])) for at in range(0, len(others), _SOURCES)]
        return [
            FirewallRule(direction="in", protocol="tcp", port=port, source_ips=list(sources))
            for port, sources in rules
        ]

    def _let_each_other_in(self, shared: Shared, cluster: str, machine: Machine) -> None:
        """Have the firewall let a new machine reach the others: once for all that were made meanwhile."""
        from hcloud.firewalls import Firewall

        with self._letting_in:
            if machine.public_address in self._let_in.get(shared.group, ()):
                return
            there = {one.public_address for one in self.describe(shared.region, cluster)}
            there = {one for one in there | {machine.public_address} if one}
            rules = self._rules(there)
            self._again(lambda: self._client.firewalls.set_rules(Firewall(id=int(shared.group)), rules))
            self._let_in[shared.group] = there

    def _gone(self, one: Any) -> bool:
        """Delete something; whether it is gone, or still in use."""
        try:
            self._again(one.delete)
        except Exception as error:
            if code_of(error) == "resource_in_use":
                return False
            if code_of(error) != "not_found":
                raise
        return True

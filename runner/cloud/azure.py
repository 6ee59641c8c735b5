"""Azure, through its SDK, which is imported in `azure_account` and in `azure_errors` alone.

All that a cluster has in a region lies in one resource group, which goes with it. A machine, its interface,
its address and its disk are made in one call, and go together. Whether something is made yet is asked of
itself: Azure would have us wait for 10 s and more for what takes two.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from envsync.errors import CapacityError, CloudError
from envsync.runner.cloud import azure_found, azure_messages, azure_prices
from envsync.runner.cloud.azure_account import Account
from envsync.runner.cloud.azure_errors import OperationFailed, gone, taken, translated
from envsync.runner.cloud.azure_found import is_ending, read_tags
from envsync.runner.cloud.azure_messages import CREATED, FIREWALL, MACHINES, NETWORK, group_of, region_name
from envsync.runner.cloud.azure_schedules import Schedules
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envsync.runner.cloud.provider import Market

__all__ = ["AzureProvider"]

_PRICES = "https://prices.azure.com/api/retail/prices"
_LOOK = 1.0  # seconds between two looks at what is being made or removed
_PATIENT = 3  # times that, once it has been looked at as often
_MADE = 300.0  # seconds that it may take to be made
_GONE = 60.0  # seconds that a resource group is waited for; who asks again waits again
_IMAGE = 30  # GiB, of Ubuntu's


class AzureProvider(Provider):
    """A subscription of Azure, with the credentials that Azure's own library finds.

    Parameters
    ----------
    regions : sequence of str
        Where machines may be made, the first choice first, such as ``"westeurope"``.
    zones : sequence of str
        Only in these zones, ``"westeurope-1"`` or ``"1"``, in this order.
    subscription : str
        The subscription's id; that of ``AZURE_SUBSCRIPTION_ID``, or the one that `az` is set to, if empty.
    image : str
        ``"publisher:offer:sku:version"``, or an id; Ubuntu 24.04 if empty.
    subnet : str
        The id of a subnet; each cluster has a network of its own if empty.
    identity : str
        The id of a managed identity for machines that use Azure themselves; none otherwise.
    public : bool
        Whether machines have public addresses.
    reached_from : sequence of str
        Networks that may reach the machines' sshd.
    """

    name = "azure"
    gone_on_shutdown = False
    left_on_shutdown = (
        "Azure keeps a machine that has shut itself down, and bills it as one that runs until it is "
        "deallocated or deleted. Should this computer lose its power or the network, a schedule of Azure's "
        "deallocates the machines some hours later; `envsync reap` deletes them, from anywhere"
    )
    renews = 300.0

    def __init__(
        self,
        regions: Sequence[str],
        *,
        zones: Sequence[str] = (),
        subscription: str = "",
        image: str = "",
        subnet: str = "",
        identity: str = "",
        public: bool = True,
        reached_from: Sequence[str] = ("0.0.0.0/0",),
    ) -> None:
        given = tuple(filter(None, regions)) or (os.environ.get("AZURE_DEFAULTS_LOCATION", ""),)
        self.regions = tuple(filter(None, map(region_name, given)))
        azure_messages.check_arguments(self.regions, image, subnet, identity, public=public)
        self._account = Account(subscription)
        self._schedules = Schedules(self._account)
        self.subscription = self._account.subscription
        self._zones = tuple(zones)
        self._image = image
        self._subnet = subnet
        self._identity = identity
        self._public = public
        self._reached_from = tuple(reached_from)
        self._skus: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, str] = {}  # of machines, by their names
        self._running: set[str] = set()
        self._addresses: dict[str, tuple[str, str]] = {}

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the zones that have a type. See `Provider.zones`."""
        with translated(region):
            sku = self._sku(region, machine_type)
        there = azure_found.zones_of(sku, region) if sku else ()
        wanted = [zone if "-" in zone else f"{region}-{zone}" for zone in self._zones]
        return tuple(zone for zone in wanted if zone in there) if wanted else there

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:
        """Make the resource group, and in it what machines share. See `Provider.open`."""
        group, given = group_of(tags.cluster, region), azure_messages.as_azure_tags(tags)
        network = self._account.network
        with translated(region, machine_type):
            sku = self._sku(region, machine_type)
            if not sku:
                raise CloudError(
                    f"{region} has no machine type {machine_type}",
                    where=f"azure {region}",
                    hint="Are the names right? `az vm list-skus -l REGION` shows them: Standard_D4s_v5.",
                )
            image = self._image or azure_found.image_of(sku, machine_type, region)
            self._make_group(group, region, tags.cluster, given)
            machines, begin = {"location": region, "tags": given}, self._account.begin
            if not self._subnet:
                begin(network.virtual_networks, group, NETWORK, azure_messages.network(region, given))
            begin(network.application_security_groups, group, MACHINES, machines)
            made = self._made(network.application_security_groups, group, MACHINES)
            rules = azure_messages.firewall(region, given, made["id"], self._reached_from)
            begin(network.network_security_groups, group, FIREWALL, rules)
            self._made(network.network_security_groups, group, FIREWALL)
            if not self._subnet:
                self._made(network.virtual_networks, group, NETWORK)
        return Shared(region=region, key=public_key, group=group, image=image)

    def create(self, request: MachineRequest) -> Machine:
        """Make one machine, and wait until Azure has found room for it. See `Provider.create`."""
        region, group = request.shared.region, request.shared.group
        with translated(region):
            sku = self._sku(region, request.type)
        if request.market == "spot" and not azure_found.may_be_spot(sku):
            raise CapacityError(
                f"Azure has no spot machines of {request.type}",
                where=f"azure {region}",
                hint="Take another type, or spot='prefer'.",
                scope="region",
            )
        request = replace(request, type=sku.get("name", request.type))  # by small and capital letters
        name = azure_messages.machine_name(request.tags.cluster, request.token)
        path = f"/subscriptions/{self.subscription}/resourceGroups/{group}/providers"
        network = f"{path}/Microsoft.Network/virtualNetworks/{NETWORK}"
        body = azure_messages.machine_to_make(
            request,
            path=path,
            subnet=self._subnet or f"{network}/subnets/{MACHINES}",
            identity=self._identity,
            public=self._public,
        )
        machines = self._account.compute.virtual_machines
        with translated(request.zone or region, request.type):
            with taken():
                self._account.begin(machines, group, name, body, once=True)
            self._groups[name] = group
            self._schedules.begin(region, group, name, request.tags, request.lease)
            try:
                made = self._made(machines, group, name, expand="instanceView")
            except BaseException:
                # what could not be made, or not be seen, is there all the same, and would have to be ended
                with contextlib.suppress(Exception):
                    self._delete(group, name)
                raise
        if read_tags(made).get(CLUSTER) != request.tags.cluster:
            raise CloudError(f"somebody else has a machine called {name}", where=f"azure {group}")
        self._running.add(name)
        return azure_found.machine_of(made, region, azure_found.power_of(made))

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return a cluster's machines. See `Provider.describe`."""
        group = group_of(cluster, region)
        with translated(region):
            listed, powers = self._listed(group, cluster)
            if any(one["name"] not in self._addresses for one in listed):
                network = self._account.network
                with gone():
                    outer = self._account.listed(network.public_ip_addresses.list, group)
                    inner = self._account.listed(network.network_interfaces.list, group)
                    self._addresses |= azure_found.addresses_of(inner, outer, public=self._public)
        return tuple(
            azure_found.machine_of(
                one, region, powers.get(one["name"], ""), self._addresses.get(one["name"], ("", ""))
            )
            for one in listed
        )

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Delete machines, with what is theirs. See `Provider.terminate`."""
        with translated(region):
            for one in ids:
                group = self._group_of_machine(one)
                if group:
                    with gone():
                        self._delete(group, one)

    def renew(self, region: str, ids: Sequence[str], tags: Tags, lease: float) -> None:
        """Move on the schedules that deallocate machines. See `Provider.renew`."""
        with translated(region):
            groups = {one: group for one in ids if (group := self._group_of_machine(one))}
        self._schedules.move_on(region, groups, tags, lease)

    def console(self, region: str, identity: str) -> str:
        """Return what boot diagnostics have of the serial port. See `Provider.console`."""
        link = ""
        with translated(region):
            group = self._group_of_machine(identity)
            if group:
                ask = self._account.compute.virtual_machines.retrieve_boot_diagnostics_data
                with gone(409):  # or it is not that far yet
                    told = self._account.call(ask, group, identity, sas_uri_expiration_time_in_minutes=5)
                    link = told.serial_console_log_blob_uri or ""
        said = self._account.fetch(link) if link else None
        return (said or b"").decode(errors="replace")

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Delete the resource group, if no machine is in it any more. See `Provider.close`."""
        group, resources = group_of(cluster, region), self._account.resources
        with translated(region):
            found = self._group(group)
            if found is None or read_tags(found).get(CLUSTER) != cluster:
                return ()
            if self._listed(group, cluster)[0]:
                return (group,)
            if not is_ending(found):
                with gone():
                    listed = self._account.listed(resources.resources.list_by_resource_group, group)
                    if others := azure_found.strangers(listed, cluster):
                        raise CloudError(
                            f"the resource group {group} is not deleted, as there are things in it that "
                            f"envsync has not made: {', '.join(others)}",
                            where=f"azure {region}",
                            hint="Move them, or delete the group yourself. No machine of it is left.",
                        )
                    self._account.call(resources.resource_groups.begin_delete, group, polling=False)
            deadline = time.monotonic() + _GONE
            while self._group(group) is not None:
                if time.monotonic() > deadline:
                    return (group,)
                time.sleep(_LOOK)
        return ()

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:  # noqa: ARG002
        """Return the retail price, None if the list is silent or cannot be asked. See `Provider.price`."""
        # the list knows it by small and capital letters, as the Resource Manager does not
        known = self._skus.get(region, {}).get(machine_type.lower(), {}).get("name", machine_type)
        return azure_prices.machine(self._prices(azure_prices.machine_query(region, known)), market)

    def disk_price(self, shared: Shared, size: int) -> Price | None:
        """Return the retail price of a standard SSD. See `Provider.disk_price`."""
        size = size or (0 if self._image else _IMAGE)
        query = azure_prices.disk_query(shared.region, size) if size else ""
        return azure_prices.disk(self._prices(query), size) if query else None

    def expected(self, region: str, machine_type: str) -> Expected | None:
        """Return what the plain image makes of a machine; None for another. See `Provider.expected`."""
        if self._image:
            return None
        with translated(region):
            sku = self._sku(region, machine_type)
        return azure_found.expected_of(sku, azure_found.image_of(sku, machine_type, region)) if sku else None

    def everywhere(self) -> tuple[str, ...]:
        """Return the regions that have virtual machines. See `Provider.everywhere`."""
        with translated("account"):
            found = self._account.call(self._account.resources.providers.get, "Microsoft.Compute").as_dict()
        kinds = [one for one in found["resourceTypes"] if one["resourceType"].lower() == "virtualmachines"]
        return tuple(sorted({region_name(place) for one in kinds for place in one["locations"]}))

    def found(self, region: str) -> tuple[Found, ...]:
        """Return machines, and resource groups with all else. See `Provider.found`."""
        found = []
        ours = f"tagName eq '{CLUSTER}'"
        with translated(region):
            for group in self._account.listed(self._account.resources.resource_groups.list, filter=ours):
                tags, name = read_tags(group), str(group["name"])
                cluster, there = tags.get(CLUSTER, ""), region_name(group.get("location", ""))
                # a tag may be copied to what is somebody else's, and a group goes with all that is in it
                if there != region or name.lower() != group_of(cluster, region):
                    continue
                listed, powers = self._listed(name, cluster)
                for one in listed:
                    state = azure_found.state_of(one, powers.get(one["name"], ""))
                    created = one.get("properties", {}).get("timeCreated", "")
                    found.append(azure_found.found_as("machine", one, created, state))
                stands = "ending" if is_ending(group) else ""
                found.append(azure_found.found_as("group", group, tags.get(CREATED, ""), stands))
        return tuple(found)

    def remove(self, region: str, found: Found) -> bool:
        """Delete a machine or a resource group. See `Provider.remove`."""
        if found.kind == "machine":
            self.terminate(region, [found.id])
            return True
        return not self.close(region, found.cluster)

    # -- inner

    def _make_group(self, name: str, region: str, cluster: str, tags: dict[str, str]) -> None:
        found = self._group(name)
        if found is None:
            now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = {"location": region, "tags": {**tags, CREATED: now}}
            self._account.call(self._account.resources.resource_groups.create_or_update, name, body)
        elif read_tags(found).get(CLUSTER) != cluster:
            raise CloudError(
                f"somebody else has a resource group called {name}",
                where=f"azure {region}",
                hint="Give the cluster another name.",
            )

    def _group(self, name: str) -> dict[str, Any] | None:
        with gone():
            found: dict[str, Any] = self._account.call(
                self._account.resources.resource_groups.get, name
            ).as_dict()
            return found
        return None

    def _made(self, kind: Any, group: str, name: str, **asked: Any) -> dict[str, Any]:
        """Wait until something is made; a machine, until it is switched on: it boots on by itself."""
        deadline, looks = time.monotonic() + _MADE, 0
        while True:
            found: dict[str, Any] = self._account.call(kind.get, group, name, **asked).as_dict()
            state = found.get("properties", {}).get("provisioningState", "")
            if state == "Succeeded" or azure_found.power_of(found) == "running":
                return found
            if state in ("Failed", "Canceled"):
                raise OperationFailed(*azure_found.failure_of(found))
            if time.monotonic() > deadline:
                raise OperationFailed("Timeout", f"{name} was not made within {_MADE:g} s: it is {state}")
            looks = min(looks + 1, _PATIENT)  # many machines are looked at at once
            time.sleep(looks * _LOOK)

    def _delete(self, group: str, name: str) -> None:
        self._running.discard(name)
        self._schedules.forget(group, name)
        delete = self._account.compute.virtual_machines.begin_delete
        # it need not shut down in good order: nothing on it is wanted any more
        self._account.call(delete, group, name, force_deletion=True, polling=False)

    def _listed(self, group: str, cluster: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Return the machines in a resource group, and how they stand; none if there is no such group."""
        machines, listed = self._account.compute.virtual_machines, []
        with gone():
            listed = self._account.listed(machines.list, group)
        listed = [one for one in listed if read_tags(one).get(CLUSTER) == cluster]
        self._groups.update({one["name"]: group for one in listed})
        powers: dict[str, str] = {}
        if listed:  # one call says it of all machines of the subscription, and none of those of a group
            for one in self._account.listed(machines.list_all, status_only="true"):
                where, name = azure_found.place_of(one.get("id", ""))
                if where == group.lower():
                    powers[name] = azure_found.power_of(one)
        for name in self._running.intersection(one["name"] for one in listed):
            if powers.get(name, "") in ("", "starting"):  # it was seen running: this view is older
                powers[name] = "running"
        return listed, powers

    def _group_of_machine(self, name: str) -> str:
        """Return the resource group that a machine of envsync's is in; empty if there is no such machine."""
        if name not in self._groups:
            for one in self._account.listed(self._account.compute.virtual_machines.list_all):
                if CLUSTER in read_tags(one):
                    self._groups[one["name"]] = azure_found.place_of(one["id"])[0]
        return self._groups.get(name, "")

    def _sku(self, region: str, machine_type: str) -> dict[str, Any]:
        if region not in self._skus:
            skus = self._account.compute.resource_skus
            listed = self._account.listed(skus.list, filter=f"location eq '{region}'")
            machines = [one for one in listed if one.get("resourceType") == "virtualMachines"]
            self._skus[region] = {one["name"].lower(): one for one in machines}
        found: dict[str, Any] = self._skus[region].get(machine_type.lower(), {})
        return found

    def _prices(self, query: str) -> list[dict[str, Any]]:
        """Ask the public list of prices, which needs no account; nothing if it does not answer."""
        address = os.environ.get("AZURE_RETAIL_PRICES_ENDPOINT", _PRICES)
        try:
            said = self._account.fetch(f"{address}?$filter={quote(query)}", patient=False)
            return list(json.loads(said or b"{}").get("Items") or ())
        except (CloudError, ValueError, AttributeError):
            return []

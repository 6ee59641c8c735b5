"""Amazon EC2, through boto3, which is imported nowhere else but in `ec2_errors`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import stamina

from envsync.errors import CloudError
from envsync.runner.cloud import ec2_found, ec2_images, ec2_prices
from envsync.runner.cloud.ec2_errors import (
    any_error,
    but_for,
    client_error,
    code_of,
    translated,
    unreachable,
    worth_another_try,
)
from envsync.runner.cloud.given import zones_of
from envsync.runner.cloud.provider import CLUSTER, Machine, MachineRequest, Provider, Shared, Tags
from envsync.stores.answering import give_up_soon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envsync.runner.cloud.provider import Expected, Found, Market, Price, State

__all__ = ["EC2Provider"]

_STATES: dict[str, State] = {
    "pending": "pending",
    "running": "running",
    "stopping": "stopped",
    "stopped": "stopped",
    "shutting-down": "ending",
    "terminated": "ended",
}
_ATTEMPTS = 8  # how often a call is made that is throttled or whose answer is lost
_AT_ONCE = 32  # calls of one cluster; botocore's own limit is ten
_CONNECT = 5.0  # seconds for a connection, in which its first packet goes out three times


class EC2Provider(Provider):
    """EC2, with the account that boto3 finds.

    Parameters
    ----------
    regions : sequence of str
        Where machines may be made, the first choice first.
    zones : sequence of str
        Only in these zones, such as ``"eu-west-1b"``, in this order.
    image : str
        An image's id, or a name pattern of images whose newest is taken; if empty Debian's own, or for
        NVIDIA GPUs Amazon's with their driver.
    image_owner : str
        Whose images a name pattern is about: an account, ``"self"`` or ``"amazon"``.
    subnets : sequence of str
        Subnets instead of each zone's default one.
    instance_profile : str
        The name of a profile whose role the machines have.
    placement_group : str
        The name of a placement group for them.
    reached_from : sequence of str
        Networks that may reach the machines' sshd, as ``"203.0.113.0/24"``.
    profile : str, optional
        A profile of the user's AWS configuration.
    """

    name = "ec2"

    def __init__(
        self,
        regions: Sequence[str],
        *,
        zones: Sequence[str] = (),
        image: str = "",
        image_owner: str = "",
        subnets: Sequence[str] = (),
        instance_profile: str = "",
        placement_group: str = "",
        reached_from: Sequence[str] = ("0.0.0.0/0",),
        profile: str | None = None,
    ) -> None:
        boto3 = _boto3()
        with translated("account"):
            self._session = boto3.Session(profile_name=profile)
            chosen = tuple(regions) or tuple(filter(None, [self._session.region_name]))
        if not chosen:
            raise CloudError(
                "no region is given, and boto3's configuration has none",
                where="ec2",
                hint="Name one: EC2(..., region='eu-west-1'), --region eu-west-1, or set AWS_DEFAULT_REGION.",
            )
        self.regions = chosen
        self._zones = zones_of(zones, chosen, "ec2")
        self._image = image
        self._image_owner = image_owner
        self._subnets = tuple(subnets)
        self._instance_profile = instance_profile
        self._placement_group = placement_group
        self._reached_from = tuple(reached_from)
        self._clients: dict[tuple[str, str, int], Any] = {}

    def zones(self, region: str, machine_type: str) -> tuple[str, ...]:
        """Return the zones, or subnets, in which EC2 offers a type. See `Provider.zones`."""
        client = self._client(region)
        with translated(region):
            if self._subnets:
                found = client.describe_subnets(SubnetIds=list(self._subnets))["Subnets"]
                _demand_one_network(found, region)
                at = {one["SubnetId"]: one["AvailabilityZone"] for one in found}
                return tuple(f"{at[subnet]}/{subnet}" for subnet in self._subnets if subnet in at)
            offered = client.describe_instance_type_offerings(
                LocationType="availability-zone",
                Filters=[{"Name": "instance-type", "Values": [machine_type]}],
            )["InstanceTypeOfferings"]
        there = sorted(one["Location"] for one in offered)
        wanted = tuple(zone for zone in self._zones if zone.startswith(region))
        return tuple(zone for zone in wanted if zone in there) if wanted else tuple(there)

    def open(self, region: str, machine_type: str, tags: Tags, public_key: str) -> Shared:
        """Import the key, make the security group, look the image up. See `Provider.open`."""
        client = self._client(region)
        name = f"envsync-{tags.cluster}"
        with translated(region):
            image = self._image
            if not image.startswith("ami-"):
                image = self.expected(region, machine_type).image
            with but_for("InvalidKeyPair.Duplicate"):
                client.import_key_pair(
                    KeyName=name,
                    PublicKeyMaterial=public_key.encode(),
                    TagSpecifications=[_tagged("key-pair", tags)],
                )
            return Shared(region=region, key=name, group=self._make_group(client, name, tags), image=image)

    def create(self, request: MachineRequest) -> Machine:
        """Run one instance. See `Provider.create`."""
        kinds = ["instance", "volume", "network-interface"]
        zone, _, subnet = request.zone.partition("/")
        asked: dict[str, Any] = {
            "ImageId": request.shared.image,
            "InstanceType": request.type,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": request.token,
            "KeyName": request.shared.key,
            "SecurityGroupIds": [request.shared.group],
            "UserData": request.user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        }
        placement = {"AvailabilityZone": zone if not subnet else "", "GroupName": self._placement_group}
        if any(placement.values()):
            asked["Placement"] = {key: value for key, value in placement.items() if value}
        if subnet:
            asked["SubnetId"] = subnet
        if self._instance_profile:
            asked["IamInstanceProfile"] = {"Name": self._instance_profile}
        if request.market == "spot":
            kinds.append("spot-instances-request")
            asked["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            }
        # EC2 says "no capacity" as a server's error: boto3 would ask the same zone again, time after time
        client = self._client(request.shared.region, attempts=1)
        with translated(request.shared.region, request.type, zone):
            if request.disk:
                asked["BlockDeviceMappings"] = [
                    {
                        "DeviceName": self._root_device(request.shared.region, request.shared.image),
                        "Ebs": {"VolumeSize": request.disk, "VolumeType": "gp3", "DeleteOnTermination": True},
                    }
                ]
            asked["TagSpecifications"] = [_tagged(kind, request.tags) for kind in kinds]
            caller = stamina.RetryingCaller(
                attempts=_ATTEMPTS, timeout=180.0, wait_initial=0.5, wait_max=20.0
            )
            (made,) = caller.on(worth_another_try)(client.run_instances, **asked)["Instances"]
        return _machine(made, request.shared.region)

    def describe(self, region: str, cluster: str) -> tuple[Machine, ...]:
        """Return a cluster's instances. See `Provider.describe`."""
        with translated(region):
            pages = (
                self._client(region)
                .get_paginator("describe_instances")
                .paginate(Filters=[{"Name": f"tag:{CLUSTER}", "Values": [cluster]}])
            )
            return tuple(
                _machine(instance, region)
                for page in pages
                for reservation in page["Reservations"]
                for instance in reservation["Instances"]
            )

    def terminate(self, region: str, ids: Sequence[str]) -> None:
        """Terminate instances. See `Provider.terminate`."""
        if not ids:
            return
        client = self._client(region)
        with translated(region):
            try:
                client.terminate_instances(InstanceIds=list(ids))
            except client_error() as error:
                if not code_of(error).startswith("InvalidInstanceID"):
                    raise
                if len(ids) > 1:  # one that is unknown keeps EC2 from ending any
                    for one in ids:
                        self.terminate(region, [one])

    def console(self, region: str, identity: str) -> str:
        """Return the console's output as it is now. See `Provider.console`."""
        client = self._client(region)
        with translated(region):
            try:
                answer = client.get_console_output(InstanceId=identity, Latest=True)
            except client_error() as error:
                if code_of(error).startswith("InvalidInstanceID"):
                    return ""
                if code_of(error) not in ("UnsupportedOperation", "InvalidParameterCombination"):
                    raise
                answer = client.get_console_output(
                    InstanceId=identity
                )  # types before Nitro: as of some minutes ago
        return str(answer.get("Output", ""))

    def close(self, region: str, cluster: str) -> tuple[str, ...]:
        """Delete a cluster's keys and security groups. See `Provider.close`."""
        client = self._client(region)
        ours = [{"Name": f"tag:{CLUSTER}", "Values": [cluster]}]
        left = []
        with translated(region):
            for key in client.describe_key_pairs(Filters=ours)["KeyPairs"]:
                client.delete_key_pair(KeyName=key["KeyName"])
            for group in client.describe_security_groups(Filters=ours)["SecurityGroups"]:
                try:
                    with but_for("InvalidGroup.NotFound"):
                        client.delete_security_group(GroupId=group["GroupId"])
                except client_error() as error:  # noqa: PERF203 - of few
                    if code_of(error) not in ("DependencyViolation", "InvalidGroup.InUse"):
                        raise
                    left.append(group["GroupId"])
        return tuple(left)

    def price(self, region: str, machine_type: str, market: Market, zone: str = "") -> Price | None:
        """Return the price now: of spot machines, or of the price list. See `Provider.price`."""
        try:
            if market == "on-demand":
                return ec2_prices.machine(self._pricing(), region, machine_type)
            return ec2_prices.spot(self._client(region), machine_type, zone.partition("/")[0])
        except CloudError:
            raise
        except Exception as error:
            if isinstance(error, any_error()):
                return None
            raise

    @functools.lru_cache(maxsize=16)  # noqa: B019 - a provider lives as long as its cluster
    def expected(self, region: str, machine_type: str) -> Expected:
        """Return the image, and what is known of machines from it. See `Provider.expected`."""
        with translated(region, machine_type):
            return ec2_images.expected(
                self._client(region), region, machine_type, image=self._image, owner=self._image_owner
            )

    def disk_price(self, shared: Shared, size: int) -> Price | None:
        """Return what the price list says of its volume. See `Provider.disk_price`."""
        kind = "gp3"
        try:
            if not size:
                size, kind = self._root_volume(shared.region, shared.image)
            return ec2_prices.volume(self._pricing(), shared.region, kind, size) if size else None
        except Exception as error:
            if isinstance(error, any_error()):
                return None
            raise

    def everywhere(self) -> tuple[str, ...]:
        """Return the regions that the account has switched on. See `Provider.everywhere`."""
        with translated(self.regions[0]):
            found = self._client(self.regions[0]).describe_regions()["Regions"]
        return tuple(sorted(one["RegionName"] for one in found))

    def found(self, region: str) -> tuple[Found, ...]:
        """Return what has our tag. See `Provider.found`."""
        with translated(region):
            return ec2_found.found(self._client(region))

    def remove(self, region: str, found: Found) -> bool:
        """End it. See `Provider.remove`."""
        if found.kind == "machine":
            self.terminate(region, [found.id])
            return True
        with translated(region):
            return ec2_found.remove(self._client(region), found)

    # -- inner

    def _client(self, region: str, service: str = "ec2", attempts: int = _ATTEMPTS) -> Any:
        key = (region, service, attempts)
        if key not in self._clients:
            from botocore.config import Config

            # "standard": throttling, lost connections and 5xx are tried again, with growing waits
            retries = {"mode": "standard", "total_max_attempts": attempts}
            config = Config(
                retries=retries, max_pool_connections=_AT_ONCE, connect_timeout=_CONNECT, read_timeout=60
            )
            with translated(region):
                client = self._session.client(service, region_name=region, config=config)
            give_up_soon(client, unreachable())
            self._clients[key] = client
        return self._clients[key]

    def _pricing(self) -> Any:
        return self._client("us-east-1", "pricing", attempts=2)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - a provider lives as long as its cluster
    def _described(self, region: str, image: str) -> Any:
        (found,) = self._client(region).describe_images(ImageIds=[image])["Images"]
        return found

    def _root_device(self, region: str, image: str) -> str:
        return str(self._described(region, image)["RootDeviceName"])

    def _root_volume(self, region: str, image: str) -> tuple[int, str]:
        """Return the size (GiB) and the kind of the root volume that an image asks for."""
        device = self._root_device(region, image)
        for one in self._described(region, image).get("BlockDeviceMappings", ()):
            if one.get("DeviceName") == device and "Ebs" in one:
                return int(one["Ebs"].get("VolumeSize", 0)), str(one["Ebs"].get("VolumeType", "gp2"))
        return 0, ""

    def _make_group(self, client: Any, name: str, tags: Tags) -> str:
        """Make the security group: sshd from where the user said, everything among the machines."""
        network = self._network(client)
        here = [
            {"Name": "group-name", "Values": [name]},
            {"Name": "vpc-id", "Values": [network]},
            {"Name": f"tag:{CLUSTER}", "Values": [tags.cluster]},  # one that is not ours is never opened
        ]
        found = client.describe_security_groups(Filters=here)["SecurityGroups"]
        if found:
            group = str(found[0]["GroupId"])
        else:
            group = str(
                client.create_security_group(
                    GroupName=name,
                    Description=f"envsync cluster {tags.cluster}",
                    VpcId=network,
                    TagSpecifications=[_tagged("security-group", tags)],
                )["GroupId"]
            )
        ssh: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        ssh["IpRanges"] = [{"CidrIp": one} for one in self._reached_from if ":" not in one]
        ssh["Ipv6Ranges"] = [{"CidrIpv6": one} for one in self._reached_from if ":" in one]
        ssh = {key: value for key, value in ssh.items() if value != []}
        among = {
            "IpProtocol": "tcp",
            "FromPort": 0,
            "ToPort": 65535,
            "UserIdGroupPairs": [{"GroupId": group}],
        }
        for rule in (ssh, among):
            with but_for("InvalidPermission.Duplicate"):
                client.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        return group

    def _network(self, client: Any) -> str:
        if self._subnets:
            return str(client.describe_subnets(SubnetIds=[self._subnets[0]])["Subnets"][0]["VpcId"])
        found = client.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not found:
            raise CloudError(
                "the account has no default network there",
                where=client.meta.region_name,
                hint="Name subnets: EC2(..., subnets=['subnet-...']).",
            )
        return str(found[0]["VpcId"])


def _demand_one_network(subnets: Sequence[Mapping[str, Any]], region: str) -> None:
    """Refuse subnets of two networks: machines and their security group have to be in one."""
    networks = {one["VpcId"]: one["SubnetId"] for one in subnets}
    if len(networks) > 1:
        said = ", ".join(f"{subnet} is of {network}" for network, subnet in sorted(networks.items()))
        raise CloudError(
            f"the subnets are of {len(networks)} networks: {said}",
            where=f"ec2 {region}",
            hint="Name subnets of one VPC.",
        )


def _tagged(kind: str, tags: Tags) -> dict[str, Any]:
    return {
        "ResourceType": kind,
        "Tags": [{"Key": key, "Value": value} for key, value in tags.to_dict().items()],
    }


def _machine(found: Mapping[str, Any], region: str) -> Machine:
    return Machine(
        id=found["InstanceId"],
        region=region,
        zone=found.get("Placement", {}).get("AvailabilityZone", ""),
        type=found["InstanceType"],
        state=_STATES.get(found["State"]["Name"], "pending"),
        market="spot" if found.get("InstanceLifecycle") == "spot" else "on-demand",
        public_address=found.get("PublicIpAddress") or "",
        private_address=found.get("PrivateIpAddress") or "",
        reason=found.get("StateReason", {}).get("Message") or found.get("StateTransitionReason") or "",
        called_off=found.get("StateReason", {}).get("Code") == "Client.UserInitiatedShutdown",
        tags={one["Key"]: one["Value"] for one in found.get("Tags", ())},
    )


def _boto3() -> Any:
    try:
        import boto3
    except ImportError as error:
        raise CloudError(
            "EC2 needs boto3, which is not installed",
            where="ec2",
            hint="Install it: pip install 'dask-envsync[ec2]'",
        ) from error
    return boto3

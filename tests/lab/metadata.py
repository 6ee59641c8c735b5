"""The metadata service of one machine, version 2 where that is required: what cloud-init and SDKs ask."""

from __future__ import annotations

import base64
import ctypes
import http.server
import json
import os
import secrets
import socket
import threading
from typing import Any

ADDRESS = "169.254.169.254"
_NEW_NET = 0x40000000  # CLONE_NEWNET


class Metadata:
    """Answers in a machine's network, from this process; `close` ends it.

    Parameters
    ----------
    pid : int
        A process in that network; `ADDRESS` is one of its own there.
    instance : object
        moto's.
    """

    def __init__(self, pid: int, instance: Any) -> None:
        self.instance = instance
        self.notice: dict[str, str] | None = None
        self.tokens: set[str] = set()
        listener = _listen_in(pid)
        service = self

        class Handler(_Handler):
            metadata = service

        self._server = http.server.ThreadingHTTPServer((ADDRESS, 80), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def tree(self) -> dict[str, Any]:
        """Return what there is below ``meta-data``."""
        it = self.instance
        data = {
            "ami-id": it.image_id,
            "ami-launch-index": "0",
            "instance-id": it.id,
            "instance-type": it.instance_type,
            "instance-life-cycle": it.lifecycle or "on-demand",
            "local-ipv4": it.private_ip,
            "public-ipv4": it.public_ip or "",
            "hostname": it.private_dns_name,
            "local-hostname": it.private_dns_name,
            "placement": {"availability-zone": it.placement.zone, "region": it.region_name},
            "reservation-id": "r-1",
            "security-groups": "\n".join(group.name for group in it.security_groups),
        }
        for key in it.ec2_backend.key_pairs.values():
            if it.key_name == key.key_name:
                data["public-keys"] = {"0": {"openssh-key": key.material_public.decode()}}
        if self.notice is not None:
            data["spot"] = {
                "instance-action": json.dumps(self.notice),
                "termination-time": self.notice["time"],
            }
        return data

    def dynamic(self) -> dict[str, Any]:
        """Return what there is below ``dynamic``."""
        it = self.instance
        document = {
            "instanceId": it.id,
            "region": it.region_name,
            "availabilityZone": it.placement.zone,
            "accountId": it.owner_id,
            "instanceType": it.instance_type,
            "architecture": it.architecture,
        }
        return {"instance-identity": {"document": json.dumps(document)}}

    def user_data(self) -> bytes:
        """Return what the machine was given to run."""
        data = self.instance.user_data
        return base64.b64decode(data.as_bytes()) if data else b""


class _Handler(http.server.BaseHTTPRequestHandler):
    metadata: Metadata
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        if not self.path.startswith("/latest/api/token"):
            self._say(404)
            return
        token = secrets.token_urlsafe(32)
        self.metadata.tokens.add(token)
        self._say(200, token.encode())

    def do_GET(self) -> None:
        service = self.metadata
        required = service.instance.metadata_options.http_tokens == "required"
        if required and self.headers.get("X-aws-ec2-metadata-token") not in service.tokens:
            self._say(401)
            return
        version, _, path = self.path.split("?")[0].strip("/").partition("/")
        if not version:
            self._say(200, b"latest\n2021-03-23\n")
            return
        if path == "user-data":
            data = service.user_data()
            self._say(200 if data else 404, data)
            return
        kind, *rest = path.split("/")
        node: Any = {"meta-data": service.tree(), "dynamic": service.dynamic()}
        node = node.get(kind) if kind else node
        for part in rest:
            if part:
                node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            self._say(404)
        elif not isinstance(node, dict):
            self._say(200, str(node).encode())
        elif rest and [part for part in rest if part][-1:] == ["public-keys"]:
            self._say(200, "\n".join(f"{number}=key" for number in node).encode())
        else:
            names = (f"{name}/" if isinstance(value, dict) else name for name, value in node.items())
            self._say(200, "\n".join(names).encode())

    def _say(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _listen_in(pid: int) -> socket.socket:
    """Return a socket that listens in the network of another process: sockets stay where they were made."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def there() -> None:  # in a thread of its own, which does not come back
        handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _NEW_NET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server((ADDRESS, 80), backlog=64))
        except OSError as error:
            failed.append(error)
        finally:
            os.close(handle)

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]

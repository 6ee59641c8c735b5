"""Run by nova's own Python: nova's interface, scheduler, conductor and a compute service in one process.

All of that is nova's, from its own functional tests: its database is SQLite in memory, its hypervisor is the
fake one, and its image and volume services are stubs. Of neutron's stub two things are replaced: security
groups are those of the neutron that the tests imitate, and ports are made and deleted there as well.

The arguments are that neutron's address, a token, and how many servers the quota allows. The address of nova
is written to stdout, a line of JSON; it ends when its stdin does.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
import urllib.parse
import urllib.request
import wsgiref.simple_server
from typing import Any

import nova.tests.functional  # noqa: F401 - patches what has to be patched before all else
import testtools
from nova import exception
from nova.tests.functional import integrated_helpers

NEUTRON, TOKEN, INSTANCES = sys.argv[1:]


def ask(method: str, path: str, body: Any = None, **query: Any) -> Any:
    words = f"?{urllib.parse.urlencode(query, doseq=True)}" if query else ""
    asked = urllib.request.Request(
        f"{NEUTRON}/v2.0/{path}{words}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"X-Auth-Token": TOKEN},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.loads(answer.read() or b"{}")


class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *rest: Any) -> None:
        pass


class Nova(integrated_helpers._IntegratedTestBase):  # type: ignore[misc]
    microversion = "latest"
    CAST_AS_CALL = False  # what takes a while takes it beside, as it does elsewhere

    def setUp(self) -> None:
        super().setUp()
        self.flags(instances=int(INSTANCES), group="quota")
        made, deleted = self.neutron.create_port, self.neutron.delete_port

        def groups(retrieve_all: Any = True, **query: Any) -> Any:
            query.pop("fields", None)
            return ask("GET", "security-groups", **query)

        def make(body: Any = None) -> Any:
            port = made(body)
            asked = {key: body["port"].get(key) for key in ("device_id", "security_groups")}
            ask("POST", "ports", {"port": {"id": port["port"]["id"], **asked}})
            return port

        def delete(port_id: str, **query: Any) -> None:
            deleted(port_id, **query)
            ask("DELETE", f"ports/{port_id}")

        def validate(context: Any, name: str) -> Any:
            for key in ("id", "name"):
                for found in groups(**{key: name})["security_groups"]:
                    return found["id"]
            raise exception.SecurityGroupNotFound(security_group_id=name)

        # as nova asks through neutron's client, of which the stub has no part
        self.stub_out("nova.network.security_group_api.validate_name", validate)
        self.neutron.list_security_groups = groups
        self.neutron.create_port, self.neutron.delete_port = make, delete

    def runTest(self) -> None:  # noqa: N802 - unittest's name
        app, project = self.api_fixture.app(), self.api_fixture.project_id

        def answer(environment: dict[str, Any], start: Any) -> Any:
            who = {"USER": "admin", "PROJECT_ID": project}  # keystone's middleware says so otherwise
            environment.update({f"HTTP_X_AUTH_{key}": value for key, value in who.items()})
            return app({**environment, "HTTP_X_ROLES": "reader,member"}, start)

        server = wsgiref.simple_server.make_server("127.0.0.1", 0, answer, Server, Quiet)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        said = {"url": f"http://127.0.0.1:{server.server_port}", "project": project}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        sys.stdin.read()
        server.shutdown()


result = testtools.TextTestResult(sys.stderr)
result.startTestRun()
Nova("runTest").run(result)
result.stopTestRun()
sys.exit(not result.wasSuccessful())

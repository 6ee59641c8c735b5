"""Hosts: machines where commands run and files go."""

from __future__ import annotations

from envsync.runner.hosts.base import Channel, Completed, Host, parse_host
from envsync.runner.hosts.local import Local
from envsync.runner.hosts.options import SSHOptions

__all__ = ["Channel", "Completed", "Host", "Local", "SSHOptions", "parse_host"]

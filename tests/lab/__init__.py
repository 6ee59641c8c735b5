"""The lab: real SSH hosts in network namespaces."""

"""The agent: the one program that envsync puts on a host. Standard library only, Python 3.8 and newer."""

"""Hosts: machines where commands run and files go."""

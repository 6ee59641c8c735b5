"""Real machines for the tests: own network, processes, files and sshd each, in namespaces.

``install.py`` brings the Debian packages, ``roots.py`` builds the machines' root file systems once, and
``machines.py`` starts, cuts, shapes and ends the machines. ``slurm.py``, ``sge.py``, ``oar.py`` and
``condor.py`` make batch systems of them, ``cloud.py`` an EC2 whose instances boot; ``nova.py`` is a nova
without machines. Tests ask for the fixture ``lab`` or ``machine``, or for the system by its name.
"""

"""Where an environment runs: hosts, backends, clusters."""

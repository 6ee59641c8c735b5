"""What runs inside a cluster's processes: standard library and distributed only."""

"""Container images of an environment, made without an engine."""

"""Break the running service on purpose, and check what DESIGN.md promises: `make chaos`."""

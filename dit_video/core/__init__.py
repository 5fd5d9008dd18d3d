"""The ground: errors, configuration, logging, shapes, mesh and sharding rules. Imports nothing of the package."""

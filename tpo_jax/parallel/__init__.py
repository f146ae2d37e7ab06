"""Mesh, sharding rules, attention back ends."""

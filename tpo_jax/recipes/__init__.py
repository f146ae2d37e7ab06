"""Experiments that go through several rooms."""

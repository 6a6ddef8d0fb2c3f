"""Thin adapters between jobs and the cores: one module a family, found by `registry`."""

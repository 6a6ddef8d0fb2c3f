"""Shared vocabulary of the two programs: pydantic and the standard library only."""

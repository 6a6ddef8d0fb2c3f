"""Checkpoints behind an OpenAI-compatible server: asked over HTTP, never loaded."""

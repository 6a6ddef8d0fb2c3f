"""The embedded default: starts and supervises Postgres, Valkey, web, dispatcher and workers."""

"""CORE 1: production logs in, conversations out. No database, no queue: paths in, values out."""

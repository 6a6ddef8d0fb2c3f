"""teacher_cache."""

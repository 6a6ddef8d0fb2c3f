"""Claim a job, run its body in a child process, finish: load → compute → apply."""

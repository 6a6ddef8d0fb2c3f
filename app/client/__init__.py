"""The REST API from outside: requests with one error style, resumable uploads, waiting for jobs."""

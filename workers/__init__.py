"""The machines' work: two cores (ingest, distill), the tasks that feed them, the job runner."""

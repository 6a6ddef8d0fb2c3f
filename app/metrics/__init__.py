"""The one place that turns scores into sentences: for pages, command line, API and reports."""

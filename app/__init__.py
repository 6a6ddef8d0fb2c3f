"""The web program: what people see. It never loads torch."""

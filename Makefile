PYTHON ?= .venv/bin/python

.PHONY: mutants
mutants: ## Break the source in small ways; the tests must notice each
	$(PYTHON) -m bench.mutants

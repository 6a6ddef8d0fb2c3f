"""One file a format: a module here with a `FORMAT` is known to the importer, nothing else is."""

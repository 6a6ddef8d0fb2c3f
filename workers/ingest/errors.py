"""Named failures of an import: the thing, the place, the mend."""


class IngestError(Exception):
    """Base of every named failure of the importer; its text is shown to people as it is."""


class UnknownFormat(IngestError):
    """The records look like none of the formats; the text says what was seen."""


class EmptyUpload(IngestError):
    """There is no record in the files."""


class BrokenCompression(IngestError):
    """A compressed file cannot be unpacked."""


class UnpackedTooLarge(IngestError):
    """A compressed file unpacks to more than is allowed."""


class ImportStopped(IngestError):
    """The import was asked to stop."""

"""Named failures of an import: the thing, the place, the mend. None is worth a retry."""


class IngestError(Exception):
    """Base of every named failure of the importer; its text is shown to people as it is."""


class EmptyUpload(IngestError):
    """The files hold no record at all."""


class UnknownFormat(IngestError):
    """The records look like no known format, or the format asked for does not exist."""


class MixedFormats(IngestError):
    """Files of different formats were given to one import."""


class DamagedArchive(IngestError):
    """A compressed file from which nothing could be unpacked."""


class DecompressionBomb(IngestError):
    """A compressed file that unpacks to more than an honest log would."""


class ImportStopped(IngestError):
    """The import was asked to stop; nothing was written."""

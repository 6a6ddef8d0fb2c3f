"""Named failures of the distillation core: the thing, the place, the mend. None is retried."""


class DistillError(Exception):
    """Base of every named failure of the core; its text is shown on the run page as it is."""


class TokenizerError(DistillError):
    """A folder holds no tokenizer that can be loaded safely."""


class TemplateError(DistillError):
    """A chat template cannot be rendered, or not with exact borders."""


class RewrittenTemplateError(TemplateError):
    """A chat template writes earlier turns differently once a conversation goes on."""


class NothingToTrainError(DistillError):
    """A conversation (or a whole set) has no target left; `reason` is what funnels count."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class HeadError(DistillError):
    """The output head does more than one matrix product, so the fused loss would be wrong."""


class CorruptShardError(DistillError):
    """A teacher shard's bytes are not what was written; `shard` is its SHA-256 where known."""

    def __init__(self, message: str, shard: str | None = None) -> None:
        super().__init__(message)
        self.shard = shard


class RowCountError(DistillError):
    """Teacher rows do not belong to the ids: an entry of L tokens has exactly L − 1 rows."""


class TemperatureError(DistillError):
    """A temperature outside the grid that the teacher cache was captured with."""


class UnfaithfulCacheError(DistillError):
    """Stored teacher rows are not what the live teacher says."""


class MissingRowsError(DistillError):
    """The teacher cache holds no rows for conversations that need them."""


class CheckpointError(DistillError):
    """A folder or file is no usable checkpoint."""


class HubUnavailableError(DistillError):
    """A model hub cannot be reached or refuses."""


class EndpointError(DistillError):
    """A server of a checkpoint gives no usable answer; `passing` where asking again may help."""

    passing = False


class EndpointRefusedError(EndpointError):
    """The server's address may not be asked, or it sends elsewhere."""


class EndpointUnreachableError(EndpointError):
    """Nothing answers at the server's address, or the connection was lost."""

    passing = True


class EndpointTimeoutError(EndpointError):
    """The server took too long."""

    passing = True


class EndpointBusyError(EndpointError):
    """The server has too much to do, or failed inside (429, 5xx)."""

    passing = True
    retry_after: float | None = None
    """Seconds it asks to wait."""


class EndpointKeyError(EndpointError):
    """The server wants an API key, or refuses the one it got."""


class EndpointModelError(EndpointError):
    """The server does not serve the model of this name."""


class EndpointContextError(EndpointError):
    """A text is longer than the served model reads."""


class EndpointLogprobsError(EndpointError):
    """The server gives no log-probabilities of a prompt, or fewer a token than asked for."""


class EndpointAnswerError(EndpointError):
    """The server's answer is not what the interface says, or was refused for another reason."""


class EndpointTokenizerError(EndpointError):
    """The served model's ids are not those of the tokenizer that was named for it."""


class SnapshotError(DistillError):
    """No snapshot can be resumed from: each is incomplete, altered, or of another spec."""


class NonFiniteLossError(DistillError):
    """The loss or gradient is nan or infinite at a step."""


class OutOfMemoryError(DistillError):
    """Not even one conversation's step fits into memory."""


class DiskFullError(DistillError):
    """A disk has no room for what is to be written."""


class ContextLengthError(DistillError):
    """A conversation is longer than the checkpoint can read."""


class PackingError(DistillError):
    """A type of checkpoint cannot keep packed documents apart exactly."""


class RankLostError(DistillError):
    """One of the processes that share a training ended before it."""


class PruneError(DistillError):
    """A prune spec that the teacher cannot satisfy."""


class EvaluationError(DistillError):
    """An evaluation has nothing to compare."""

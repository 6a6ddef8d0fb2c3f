"""The import funnel while it fills: every record is counted exactly once."""

from collections import Counter

from app.specs.conversation import Conversation, ImportFunnel, Reject
from workers.ingest.values import LoggedCall


class FunnelCounts:
    """Counts records as they come and conversations as they leave."""

    def __init__(self) -> None:
        self.records = 0
        self.calls = 0
        self.duplicates = 0
        self._rejected: dict[str, Counter[str]] = {"skipped": Counter(), "quarantined": Counter()}
        self._flagged: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._conversations = 0
        self._targets = 0
        self._references = 0
        self._referenced: Counter[str] = Counter()

    def reject(self, reject: Reject) -> None:
        self.records += 1
        self._rejected[reject.kind][reject.reason] += 1

    def call(self, call: LoggedCall, *, new: bool) -> None:
        self.records += 1
        if not new:
            self.duplicates += 1
            return
        self.calls += 1
        self._flagged.update(call.flags)
        if call.model is not None:
            self._models[call.model] += 1

    def conversation(self, conversation: Conversation) -> None:
        self._conversations += 1
        self._splits[conversation.split] += 1
        self._referenced[conversation.split] += conversation.has_reference
        for message in conversation.messages:
            self._targets += message.is_target
            self._references += message.is_target and message.reference is not None

    def funnel(self, format_name: str, folded: int) -> ImportFunnel:
        """Return the counts; raises ValueError if they did not add up."""
        return ImportFunnel(
            format=format_name,
            records=self.records,
            calls=self.calls,
            duplicates=self.duplicates,
            skipped=dict(sorted(self._rejected["skipped"].items())),
            quarantined=dict(sorted(self._rejected["quarantined"].items())),
            folded=folded,
            conversations=self._conversations,
            targets=self._targets,
            flagged=dict(sorted(self._flagged.items())),
            references=self._references,
            models=dict(sorted(self._models.items())),
            splits=dict(sorted(self._splits.items())),
            referenced=dict(sorted(self._referenced.items())),
        )

"""The only place text becomes ids: chat templates, exact target masks, and the cut rule."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.specs.conversation import Conversation, Message
from app.specs.preview import PreviewPiece
from app.specs.training import RenderSpec
from workers.distill.chat_templates import ChatTemplate
from workers.distill.errors import NothingToTrainError, RewrittenTemplateError, TemplateError
from workers.distill.values import RenderedConversation

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class RenderedSet:
    """Rendered conversations of a set, and what was left out: counted, never silent."""

    rendered: tuple[RenderedConversation, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    """Conversations by reason: no_target, no_reference, too_long, template; `part_too_long` counts
    parts of conversations of which others are here."""
    first_error: str | None = None
    in_parts: int = 0
    """Conversations that are here in several parts, as `Renderer.parts` tells."""

    @property
    def cut_messages(self) -> int:
        return sum(r.cut_messages for r in self.rendered)

    @property
    def cut_conversations(self) -> int:
        return sum(r.cut_messages > 0 for r in self.rendered)


def entry_of(input_ids: NDArray[np.int32]) -> str:
    """Return the teacher cache's key of rendered ids: SHA-256 over little-endian int32."""
    return hashlib.sha256(np.ascontiguousarray(input_ids, dtype="<i4").tobytes()).hexdigest()


class Renderer:
    """Renders conversations under one tokenizer, its chat template, and one RenderSpec.

    Borders of a turn come from the template's `{% generation %}` marks where it has them, else from
    rendering ever longer beginnings. Either way every border is verified: the text before it,
    encoded alone, must be the beginning of the whole, token for token. So what trains is exactly
    what generation will see, and pieces re-joined equal the whole.
    """

    def __init__(self, tokenizer: Any, spec: RenderSpec) -> None:
        template = getattr(tokenizer, "chat_template", None)
        if not isinstance(template, str) or not template:
            raise TemplateError(
                "The tokenizer has no chat template. Add chat_template.jinja to the checkpoint."
            )
        self.tokenizer = tokenizer
        self.spec = spec
        self._template = ChatTemplate(template, tokenizer.special_tokens_map)
        self._closing: str | None = None
        self._marked = bool(_GENERATION_MARK.search(template))
        self._special = set(tokenizer.all_special_ids)
        added = tokenizer.added_tokens_decoder
        self._special.update(number for number, token in added.items() if token.special)

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Return ids [L] and target mask [L] of a conversation after the cut.

        Errors: NothingToTrainError (no target, no reference, too long), TemplateError.
        """
        return self._rendered(conversation, *self._view(conversation))

    def parts(self, conversation: Conversation) -> tuple[list[RenderedConversation], int]:
        """Return a conversation as it is trained on, and how many parts of it were too long.

        It is one text where the template leaves earlier turns as they were. Some rewrite them (a
        thought is written only until the next question): then every answer is rendered after what
        generation saw before it, one text for the answers to each question, or for each answer.
        No answer is in two of them. Errors: as `render`.
        """
        messages, targets = self._view(conversation)
        try:
            return [self._rendered(conversation, messages, targets)], 0
        except RewrittenTemplateError:
            if len(targets) == 1:
                raise
        groups: dict[int, set[int]] = {}
        for turn in sorted(targets):
            groups.setdefault(_question(messages, turn), set()).add(turn)
        found: list[RenderedConversation] = []
        error: NothingToTrainError | None = None
        left_out = 0
        waiting = list(groups.values())
        while waiting:
            turns = waiting.pop(0)
            try:
                found.append(self._rendered(conversation, messages[: max(turns) + 1], turns))
            except RewrittenTemplateError:
                if len(turns) == 1:
                    raise
                waiting[:0] = [{turn} for turn in sorted(turns)]
            except NothingToTrainError as too_long:
                error, left_out = too_long, left_out + 1
        if error is not None and not found:
            raise error
        return found, left_out

    def _rendered(
        self, conversation: Conversation, messages: list[Message], targets: set[int]
    ) -> RenderedConversation:
        cut, text, ids = self._fit(messages, conversation.tools, last=max(targets))
        kept = messages[: _systems(messages)] + messages[cut:] if cut else messages
        shift = cut - _systems(messages) if cut else 0
        turns = [t - shift for t in sorted(targets) if t >= cut]
        mask = self._mask(kept, conversation.tools, turns, text, ids)
        array = np.asarray(ids, dtype=np.int32)
        return RenderedConversation(
            conversation_id=conversation.id,
            group=conversation.group,
            input_ids=array,
            target_mask=mask,
            entry=entry_of(array),
            cut_messages=shift,
        )

    def render_all(self, conversations: Iterable[Conversation]) -> RenderedSet:
        """Render a set, in parts where needed. What cannot be is counted by reason and left out.

        Errors: NothingToTrainError where none is left.
        """
        rendered: list[RenderedConversation] = []
        skipped: Counter[str] = Counter()
        first_error: str | None = None
        in_parts = 0
        for conversation in conversations:
            try:
                parts, left_out = self.parts(conversation)
                rendered += parts
                in_parts += len(parts) + left_out > 1
                if left_out:
                    skipped["part_too_long"] += left_out
            except NothingToTrainError as error:
                skipped[error.reason] += 1
                first_error = first_error or str(error)
            except TemplateError as error:
                skipped["template"] += 1
                first_error = first_error or str(error)
        if not rendered:
            raise NothingToTrainError(
                f"None of {sum(skipped.values())} conversations can be trained on. "
                f"First reason: {first_error or 'the set is empty.'}",
                reason="empty_set",
            )
        return RenderedSet(tuple(rendered), dict(sorted(skipped.items())), first_error, in_parts)

    def render_prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> NDArray[np.int32]:
        """Return the ids [L] that an answer continues, cut by the same rule to `max_tokens`."""
        kept = list(messages)
        _, _, ids = self._fit(kept, tools, last=len(kept) - 1, generate=True)
        return np.asarray(ids, dtype=np.int32)

    def length(self, conversation: Conversation) -> int:
        """Return the tokens of a whole conversation, uncut. Errors: TemplateError."""
        return len(self.encode(self._text(list(conversation.messages), conversation.tools)))

    def encode(self, text: str) -> list[int]:
        """Return the ids of rendered text; special tokens are those the template wrote."""
        try:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except (TypeError, UnicodeEncodeError) as error:
            raise TemplateError(
                "The conversation is no valid Unicode text (half a surrogate pair?). "
                "Clean it where it was logged."
            ) from error

    def preview(self, rendered: RenderedConversation) -> tuple[PreviewPiece, ...]:
        """Return a rendered conversation as pieces, each learned or not, for people."""
        mask = rendered.target_mask
        borders = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
        return tuple(
            PreviewPiece(
                text=self.tokenizer.decode(rendered.input_ids[start:end].tolist()),
                learned=bool(mask[start]),
                tokens=end - start,
            )
            for start, end in itertools.pairwise(borders)
        )

    def _view(self, conversation: Conversation) -> tuple[list[Message], set[int]]:
        """Return the messages up to the last target, and which of them are targets."""
        messages = list(conversation.messages)
        targets = {i for i, m in enumerate(messages) if m.is_target and m.role == "assistant"}
        if not targets:
            raise NothingToTrainError("The conversation has no target turn.", reason="no_target")
        if self.spec.answer == "reference":
            known = {i for i in targets if messages[i].reference is not None}
            if not known:
                raise NothingToTrainError(
                    "The conversation has no reference answer.", reason="no_reference"
                )
            # What follows a replaced answer replied to the logged one: the last one ends the view.
            targets = {max(known)}
            turn = messages[max(known)]
            changes = {"content": turn.reference, "tool_calls": (), "reasoning": None}
            messages[max(known)] = turn.model_copy(update=changes)
        elif self.spec.targets == "last_turn":
            targets = {max(targets)}
        elif self.spec.targets == "completion":
            prompt = _question(messages, max(targets))
            targets = {t for t in targets if t > prompt}
        return messages[: max(targets) + 1], targets

    def _fit(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]],
        *,
        last: int,
        generate: bool = False,
    ) -> tuple[int, str, list[int]]:
        """Return (first message kept after the system or 0, text, ids) within `max_tokens`."""
        systems = _systems(messages)
        users = [i for i in range(systems + 1, last + 1) if messages[i].role == "user"]

        def attempt(cut: int) -> tuple[int, str, list[int]] | None:
            kept = messages[:systems] + messages[cut:] if cut else messages
            text = self._text(kept, tools, generate=generate)
            ids = self.encode(text)
            return (cut, text, ids) if len(ids) <= self.spec.max_tokens else None

        best = attempt(0)
        low, high = 0, len(users) if best is None else 0
        while low < high:  # the fewest turns go: lengths fall with every turn cut
            middle = (low + high) // 2
            found = attempt(users[middle])
            best = found or best
            low, high = (low, middle) if found else (middle + 1, high)
        if best is None:
            raise NothingToTrainError(
                f"Its last turn alone is longer than {self.spec.max_tokens} tokens. "
                "Raise max_tokens.",
                reason="too_long",
            )
        return best

    def _mask(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]],
        turns: list[int],
        text: str,
        ids: list[int],
    ) -> NDArray[np.bool_]:
        mask = np.zeros(len(ids), dtype=np.bool_)
        spans = self._marked_spans(messages, tools, text) if self._marked else {}
        for turn in turns:
            start, end = self._span(messages, tools, turn, text, spans.get(turn))
            self._check_written(messages[turn], text[start:end], turn)
            first, stop = self._border(text, ids, start), self._border(text, ids, end)
            first, stop = self._end_of_turn(ids, first, stop)
            if stop <= first:
                raise TemplateError(f"The chat template writes nothing for message {turn + 1}.")
            mask[first:stop] = True
        mask[0] = False
        return mask

    def _marked_spans(
        self, messages: list[Message], tools: Sequence[dict[str, Any]], text: str
    ) -> dict[int, tuple[int, int]]:
        rendered, spans = self._template.render([template_message(m) for m in messages], tools)
        assistants = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if rendered != text or len(spans) != len(assistants):
            raise TemplateError(
                f"The chat template marks {len(spans)} generations for {len(assistants)} assistant "
                "messages. Put one {% generation %} block around each assistant message."
            )
        return dict(zip(assistants, spans, strict=True))

    def _span(
        self,
        messages: list[Message],
        tools: Sequence[dict[str, Any]],
        turn: int,
        text: str,
        marked: tuple[int, int] | None,
    ) -> tuple[int, int]:
        """Return [start, end) of a turn in the text: from where generation starts to its end."""
        if turn == 0:
            raise TemplateError("A conversation cannot begin with a target: no prompt precedes it.")
        before = self._text(messages[:turn], tools, generate=True)
        alone = text if turn == len(messages) - 1 else self._text(messages[: turn + 1], tools)
        alone = alone.removesuffix(self._closed_by(messages[:turn], tools, before))
        thought = (messages[turn].reasoning or "").strip()
        start, end = marked or (len(before), len(alone))
        dropped = thought in alone[len(before) :] and thought not in text[start:end]
        if text.startswith(before) and (marked or text.startswith(alone)) and not dropped:
            return max(start, len(before)), end
        if turn < len(messages) - 1:
            raise RewrittenTemplateError(
                f"The chat template writes the beginning of a conversation differently once it goes"
                f" on (message {turn + 1}), so no one text shows what each answer was given to. "
                "Take targets: last_turn, or a template that leaves earlier turns as they were."
            )
        raise TemplateError(
            f"The chat template asks for the answer of message {turn + 1} with other words than it "
            "writes before it, so generation would start from ids that training never saw. Mend "
            "add_generation_prompt in chat_template.jinja, or fill in the reasoning it begins."
        )

    def _closed_by(self, prompt: list[Message], tools: Sequence[dict[str, Any]], asked: str) -> str:
        """Return what the template writes after a whole conversation (an EOS); often nothing.

        It is what a prompt ends in where no answer is asked for, so it belongs to no turn.
        """
        if self._closing is None:
            closed = self._text(prompt, tools)
            found = self.tokenizer(closed, add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(found["input_ids"], self.encode(asked), strict=False)
            same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            places = found["offset_mapping"]
            self._closing = closed[places[same][0] :] if same < len(places) else ""
        return self._closing

    def _border(self, text: str, ids: list[int], position: int) -> int:
        """Return how many tokens precede a character, having checked that none straddles it."""
        before = self.encode(text[:position])
        if ids[: len(before)] != before:
            around = text[max(0, position - 12) : position + 12]
            raise TemplateError(
                f"A token reaches across the border of an answer ({around!r}), so generation would "
                "see other ids than training. End the prompt in a special token or a line break."
            )
        return len(before)

    def _end_of_turn(self, ids: list[int], first: int, stop: int) -> tuple[int, int]:
        """Make the end-of-turn token the last target: take it in, leave the blanks after it out."""
        end = stop
        while end > first and ids[end - 1] not in self._special and self._blank(ids[end - 1]):
            end -= 1
        if end > first and ids[end - 1] in self._special:
            return first, end
        if stop < len(ids) and ids[stop] in self._special:
            return first, stop + 1
        return first, stop

    def _blank(self, number: int) -> bool:
        return not str(self.tokenizer.decode([number])).strip()

    def _check_written(self, message: Message, written: str, turn: int) -> None:
        """Refuse a target that the template drops or rewrites: another text would be trained."""
        missing = [call.name for call in message.tool_calls if call.name not in written]
        if missing:
            raise TemplateError(
                f"The chat template does not write the tool call {missing[0]!r} of message "
                f"{turn + 1}. Take a checkpoint whose template knows tools."
            )
        if message.content.strip() not in written:
            raise TemplateError(
                f"The chat template does not write the answer of message {turn + 1} as it is, so "
                "another text would be trained. Take targets: last_turn, or another template."
            )

    def _text(
        self, messages: list[Message], tools: Sequence[dict[str, Any]], *, generate: bool = False
    ) -> str:
        plain = [template_message(m) for m in messages]
        return self._template.render(plain, tools, generate=generate)[0]


def template_message(message: Message) -> dict[str, Any]:
    """Return a message as chat templates read it; arguments are an object where they parse."""
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    named = {
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning,
        "thinking": message.reasoning,  # gpt-oss reads that name
    }
    out.update({key: value for key, value in named.items() if value is not None})
    return out


def _arguments(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _systems(messages: Sequence[Message]) -> int:
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    return count


def _question(messages: Sequence[Message], turn: int) -> int:
    """Return the place of the last user message before a turn; −1 where there is none."""
    return next((i for i in range(turn - 1, -1, -1) if messages[i].role == "user"), -1)

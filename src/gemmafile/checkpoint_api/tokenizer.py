"""AutoTokenizer: texts and chats to token ids and back, with the names and arguments of transformers.

As there, control tokens spelled in a text are read as such: the card's prompts are built so. `apply_chat_template`
with `tokenize=True` is the safe way for texts of others: nothing in a message becomes a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from gemmafile.checkpoint_api.arrays import BatchEncoding, make_array, torch_if_loaded
from gemmafile.checkpoint_api.sources import find_path
from gemmafile.checkpoint_api.weights import save_tokenizer
from gemmafile.errors import BadSettings, nearest
from gemmafile.files.open import open_model
from gemmafile.text.chat import ChatTemplate
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from gemmafile.text.vocabulary import BYTE, CONTROL, UNKNOWN, USER_DEFINED

SIDES = ("left", "right")
_NOT_HERE = ("text_pair", "is_split_into_words", "return_offsets_mapping", "return_special_tokens_mask",
             "return_overflowing_tokens", "return_length")  # fmt: skip
"""Arguments that would change what comes out: they are refused, where others are ignored."""


def _special(name: str) -> Any:
    """A special token's text, by the attribute that is its id. Set to text that is no token: BadSettings."""

    def read(self: CardTokenizer) -> str | None:
        return self._text_of(getattr(self, name))

    def write(self: CardTokenizer, text: str | None) -> None:
        setattr(self, name, None if text is None else self._id_of(str(text)))

    return property(read, write)


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained(name)` makes a CardTokenizer."""

    @classmethod
    def from_pretrained(
        cls, name: str | PathLike[str], *, revision: str | None = None, padding_side: str = "left", **ignored: Any
    ) -> CardTokenizer:
        """The tokenizer of a folder, a GGUF, a llamafile or a name of the hub's. Raises BadFile and others.

        Other arguments of transformers (use_fast, trust_remote_code, ...) change nothing here.
        """
        path = find_path(name, revision)
        with open_model(path) as file:
            architecture = str(file.metadata.get("general.architecture", ""))
            tokenizer = load_tokenizer(file.metadata, file.path)
            context = file.metadata.get(f"{architecture}.context_length")
        found = CardTokenizer(tokenizer, architecture, padding_side, context if isinstance(context, int) else None)
        found.name_or_path, found._source = str(name), path
        return found


class CardTokenizer:
    """A tokenizer in the shape of transformers'. `padding_side`  "left" (for generation) or "right" """

    model_input_names = ("input_ids", "attention_mask")
    is_fast = True

    def __init__(
        self, tokenizer: Tokenizer, architecture: str = "", padding_side: str = "left", context: int | None = None
    ):
        if padding_side not in SIDES:
            raise BadSettings(f"padding_side is {padding_side!r}, expected left or right")
        self.tokenizer, self.architecture, self.padding_side = tokenizer, architecture, padding_side
        self.model_max_length = context or 10**30
        self.chat_template: str | None = tokenizer.vocabulary.chat_template
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
        self.unk_token_id, self.pad_token_id = tokenizer.unk_id, tokenizer.pad_id
        self.name_or_path = (tokenizer.vocabulary.path and str(tokenizer.vocabulary.path)) or ""
        self._source: Path | str | None = None
        self._templates: dict[tuple[str | None, str], ChatTemplate] = {}

    # --- special tokens ------------------------------------------------------------------------------------------

    bos_token, eos_token = _special("bos_token_id"), _special("eos_token_id")
    unk_token, pad_token = _special("unk_token_id"), _special("pad_token_id")

    @property
    def all_special_ids(self) -> list[int]:
        return [i for i in range(len(self)) if self.tokenizer.is_control(i)]

    @property
    def all_special_tokens(self) -> list[str]:
        return [self.tokenizer.token_text(i) for i in self.all_special_ids]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.n_tokens

    def __len__(self) -> int:
        return self.tokenizer.n_tokens

    @property
    def special_tokens_map(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        return {name: text for name in names if (text := getattr(self, name)) is not None}

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    def get_vocab(self) -> dict[str, int]:
        """Token -> id."""
        return {token: i for i, token in enumerate(self.tokenizer.vocabulary.tokens)}

    def get_added_vocab(self) -> dict[str, int]:
        """Control tokens and those that the model's makers put in: token -> id."""
        vocabulary = self.tokenizer.vocabulary
        kinds = (UNKNOWN, CONTROL, USER_DEFINED)
        return {vocabulary.tokens[i]: i for i in range(len(self)) if vocabulary.types[i] in kinds}

    def add_special_tokens(self, special_tokens_dict: Mapping[str, str], **ignored: Any) -> int:
        """Names such as pad_token given to tokens that there are. Returns 0: none is new. Raises BadSettings."""
        for name, text in special_tokens_dict.items():
            if name not in ("bos_token", "eos_token", "unk_token", "pad_token"):
                raise BadSettings(f"there is no {name!r} here: bos_token, eos_token, unk_token, pad_token")
            setattr(self, name, text)
        return 0

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return len(self._encode("", True))

    def save_pretrained(self, save_directory: str | PathLike[str], **ignored: Any) -> tuple[str, ...]:
        """The tokenizer's files, with what was changed here; the paths written. Raises BadSettings, BadFile."""
        if self._source is None:
            raise BadSettings("the tokenizer came from no file, and cannot be saved")
        return save_tokenizer(self, self._source, Path(save_directory))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The ids of tokens, the unknown token's for those there are not."""
        return self._id_or_unknown(tokens) if isinstance(tokens, str) else [self._id_or_unknown(t) for t in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        checked = self._checked([ids] if _is_number(ids) else ids)
        if _is_number(ids):
            return self.tokenizer.vocabulary.tokens[checked[0]]
        kept = [i for i in checked if not (skip_special_tokens and self.tokenizer.is_control(i))]
        return [self.tokenizer.vocabulary.tokens[i] for i in kept]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        text: str = self.decode(self.convert_tokens_to_ids(tokens))
        return text

    def _id_or_unknown(self, text: str) -> int | None:
        found = self._find(text)
        return self.unk_token_id if found is None else found

    def _id_of(self, text: str) -> int:
        found = self._find(text)
        if found is None:
            raise BadSettings(f"there is no token {text!r}{nearest(text, self.all_special_tokens)}")
        return found

    def _find(self, text: str) -> int | None:
        try:
            return self.tokenizer.vocabulary.tokens.index(text)
        except ValueError:
            return None

    def _text_of(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokenizer.token_text(token_id)

    # --- text to ids ---------------------------------------------------------------------------------------------

    def __call__(
        self, text: str | Sequence[str], text_pair: Any = None, *, return_tensors: str | None = None,
        padding: bool | str = False, truncation: bool = False, max_length: int | None = None,
        add_special_tokens: bool = True, return_attention_mask: bool = True, padding_side: str | None = None,
        **ignored: Any,
    ) -> BatchEncoding:  # fmt: skip
        """Ids and attention mask of a text, or of several: lists, or arrays [B, T] for `return_tensors`.

        padding     True: to the longest · "max_length": to `max_length`
        truncation  cut to `max_length`, at the side that is not padded
        Raises BadSettings.
        """
        for name in _NOT_HERE:
            if (ignored | {"text_pair": text_pair}).get(name):
                raise BadSettings(f"{name} is not here: give texts, and expect ids and their mask")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, Iterable) or not all(isinstance(item, str) for item in texts):
            raise BadSettings(f"the text is {text!r:.60}, expected text or a list of texts")
        rows = [self._encode(item, add_special_tokens) for item in texts]
        batch = self._finish(rows, return_tensors, padding, truncation, max_length, padding_side)
        if not return_attention_mask:
            del batch["attention_mask"]
        if isinstance(text, str) and return_tensors is None:
            return BatchEncoding({name: value[0] for name, value in batch.items()})
        return batch

    def encode(self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None, **o: Any) -> Any:
        """Ids of one text: a list, or an array [1, T]."""
        return self(text, add_special_tokens=add_special_tokens, return_tensors=return_tensors, **o)["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False, **ignored: Any) -> list[str]:
        tokens: list[str] = self.convert_ids_to_tokens(self._encode(text, add_special_tokens))
        return tokens

    def pad(
        self, encoded: Mapping[str, Any] | Sequence[Mapping[str, Any]], padding: bool | str = True,
        max_length: int | None = None, return_tensors: str | None = None, **ignored: Any,
    ) -> BatchEncoding:  # fmt: skip
        """Rows of ids, or a list of encoded texts, brought to one length; masks that they have are kept."""
        if isinstance(encoded, Sequence):
            names = encoded[0].keys() if encoded else ("input_ids",)
            encoded = {name: [one[name] for one in encoded] for name in names}
        rows = [list(map(int, row)) for row in encoded["input_ids"]]
        masks = [list(map(int, row)) for row in encoded.get("attention_mask", [])]
        return self._finish(rows, return_tensors, padding, False, max_length, None, masks or None)

    def _encode(self, text: str, add_special: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special=add_special, parse_special=True)

    def _finish(
        self, rows: list[list[int]], kind: str | None, padding: bool | str, truncation: bool, max_length: int | None,
        side: str | None, masks: list[list[int]] | None = None,
    ) -> BatchEncoding:  # fmt: skip
        left = (side or self.padding_side) == "left"
        is_used = max_length is not None and (truncation or padding == "max_length")
        if is_used and (not _is_number(max_length) or int(max_length or 0) < 1):
            raise BadSettings(f"max_length is {max_length!r:.60}, expected a whole number, 1 or more")
        if truncation and max_length is not None:
            rows = [row[:max_length] for row in rows]
        masks = [[1] * len(row) for row in rows] if masks is None else masks
        if padding and padding != "do_not_pad":
            if self.pad_token_id is None:
                raise BadSettings("the model has no padding token: set tokenizer.pad_token = tokenizer.eos_token")
            longest = max(map(len, rows), default=0)
            width = max_length if padding == "max_length" and max_length is not None else longest
            fill = [[self.pad_token_id] * max(0, width - len(row)) for row in rows]
            pairs = list(zip(rows, masks, fill, strict=True))
            masks = [[0] * len(f) + m if left else m + [0] * len(f) for _, m, f in pairs]
            rows = [f + row if left else row + f for row, _, f in pairs]
        return BatchEncoding({"input_ids": make_array(rows, kind), "attention_mask": make_array(masks, kind)})

    # --- ids to text ---------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **ignored: Any) -> Any:
        """Text of a row of ids; of several rows, a list of texts."""
        ids = _to_lists(token_ids)
        if ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens) for row in ids]
        checked = self._checked(ids)
        if self.tokenizer.vocabulary.model == "llama":
            return self._decode_pieces(checked, skip_special_tokens)
        return self.tokenizer.decode(checked, special=not skip_special_tokens)

    def _decode_pieces(self, ids: list[int], skip_special: bool) -> str:
        """As the decoders of a tokenizer.json do it: bytes that are no character become one U+FFFD each."""
        types, texts, pending = self.tokenizer.vocabulary.types, [], bytearray()
        for token_id in ids:
            if types[token_id] == BYTE:
                pending += self.tokenizer.piece_bytes(token_id, False)
                continue
            texts.append(_decode_bytes(pending))
            pending.clear()
            texts.append(self.tokenizer.piece_bytes(token_id, not skip_special).decode(errors="replace"))
        text = "".join([*texts, _decode_bytes(pending)])
        return text.removeprefix(" ") if self.tokenizer.adds_space_prefix else text

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **ignored: Any) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def _checked(self, ids: Any) -> list[int]:
        try:
            found = [int(i) for i in ids]
        except (TypeError, ValueError):
            raise BadSettings(f"expected token ids, not {ids!r:.60}") from None
        wrong = next((i for i in found if not 0 <= i < len(self)), None)
        if wrong is not None:
            raise BadSettings(f"token id {wrong} is not in the vocabulary of {len(self)}")
        return found

    # --- chats ---------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self, conversation: Sequence[Any], *, tokenize: bool = True, add_generation_prompt: bool = False,
        return_tensors: str | None = None, return_dict: bool = True, chat_template: str | None = None,
        system_policy: str = "merge", tools: Any = None, padding: bool | str = False, truncation: bool = False,
        max_length: int | None = None, continue_final_message: bool = False, **variables: Any,
    ) -> Any:  # fmt: skip
        """A chat, or several, by the model's template: the text, or its ids.

        tokenize       True: ids, in which no message's text is a control token · False: the text
        return_dict    with ids: a BatchEncoding, else the ids alone
        continue_final_message  the text ends with the last message, whose turn stays open (not with ids)
        system_policy  of a system message where the template refuses one: "merge" into the first message, "error"
                       (as transformers), "user-turn", "system-turn"
        Raises BadSettings for messages that the template refuses.
        """
        template = self._template(chat_template, system_policy)
        if not isinstance(conversation, Sequence) or isinstance(conversation, str):
            raise BadSettings(f"the chat is {conversation!r:.60}, expected a list of messages")
        several = bool(conversation) and isinstance(conversation[0], Sequence)
        chats = list(conversation) if several else [conversation]
        if continue_final_message and (tokenize or add_generation_prompt):
            raise BadSettings("continue_final_message goes with tokenize=False, and without add_generation_prompt")
        given = variables | ({"tools": tools} if tools is not None else {})
        if not tokenize:
            texts = [template.render(chat, add_generation_prompt, **given) for chat in chats]
            if continue_final_message:
                texts = [_open_end(text, chat) for text, chat in zip(texts, chats, strict=True)]
            return texts if several else texts[0]
        rows = [template.encode(chat, add_generation_prompt, **given) for chat in chats]
        batch = self._finish(rows, return_tensors, padding, truncation, max_length, None)
        if not several and return_tensors is None:
            batch = BatchEncoding({name: value[0] for name, value in batch.items()})
        return batch if return_dict else batch["input_ids"]

    def _template(self, source: str | None, policy: str) -> ChatTemplate:
        own = self.tokenizer.vocabulary.chat_template
        source = source if source is not None else (self.chat_template if self.chat_template != own else None)
        key = (source, policy)
        if key not in self._templates:
            self._templates[key] = ChatTemplate(source, self.architecture, self.tokenizer, policy)
        return self._templates[key]

    def __repr__(self) -> str:
        return f"<CardTokenizer of {self.vocab_size} tokens>"


def _open_end(text: str, chat: Sequence[Any]) -> str:
    """The text of a chat up to the end of its last message. Raises BadSettings where the message is not in it."""
    last = chat[-1].get("content") if chat and isinstance(chat[-1], Mapping) else None
    words = last.strip() if isinstance(last, str) else ""
    at = text.rfind(words) if words else -1
    if at < 0:
        raise BadSettings("continue_final_message: the last message has no text that the template writes")
    kept = last if isinstance(last, str) and text.startswith(last, at) else words  # a template may cut spaces off
    return text[: at + len(kept)]


def _decode_bytes(raw: bytearray) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(raw)


def _is_number(value: Any) -> bool:
    return hasattr(value, "__index__") and not hasattr(value, "__len__")


def _to_lists(value: Any) -> list[Any]:
    """A row of ids, or rows, whatever array they come in; a lone id is a row of one."""
    torch = torch_if_loaded()
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if _is_number(value):
        return [value]
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise BadSettings(f"expected token ids, not {value!r:.60}")
    return [_to_lists(item) if hasattr(item, "__len__") else item for item in value]

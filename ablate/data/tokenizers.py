"""Tokenizers: text to integers. Trained on the training split only; the library ones by `tokenizers`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.unigram import train_unigram
from ablate.errors import SpecError, UserError
from ablate.registry import register

EOS, UNK = "<eos>", "<unk>"
LARGEST = 10_000_000  # ids of a vocabulary


class Specials:
    """Ids behind a tokenizer's own, which tasks give a meaning; the same in all, so that a model that was trained on
    one can go on with another."""

    def __init__(self, tokenizer_vocab: int):
        self.pad, self.mask, self.separator, self.start = range(tokenizer_vocab, tokenizer_vocab + 4)
        self.vocab = tokenizer_vocab + 4

    def sentinel(self, index: int) -> int:
        """The id that stands for the span number `index` that was taken out; behind all others."""
        return self.vocab + index


class Tokenizer:
    """A vocabulary of `vocab` ids; `eos` ends a document (None: documents just follow each other)."""

    vocab: int
    eos: int | None = None
    unk: int | None = None

    def train(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the texts of the training split."""

    def encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        raise NotImplementedError

    def unknown_pieces(self, text: str) -> list[str]:
        """The parts of a text that `encode` makes `unk` of, a piece for each."""
        if self.unk is None:
            return []
        raise NotImplementedError

    def state(self) -> Any:
        """What `restore` needs, as plain JSON."""
        return None

    def restore(self, state: Any) -> None:
        """Take back what `state` gave."""


@register("tokenizer", "bytes", paper="Xue et al. 2022 (ByT5), arXiv:2105.13626")
class ByteTokenizer(Tokenizer):
    """The 256 byte values of UTF-8. Byte 0, which text does not use, ends a document."""

    vocab = 256
    eos = 0

    def encode(self, text: str) -> np.ndarray:
        ids = np.frombuffer(text.encode(), dtype=np.uint8)
        if not ids.all():
            raise SpecError(
                [], "the text holds a zero byte, which tokenizer 'bytes' keeps for the end of a document: use another"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(each for each in ids if each).decode("utf-8", errors="replace")


@register("tokenizer", "characters", paper="Sutskever, Martens and Hinton 2011 (character models)")
class CharacterTokenizer(Tokenizer):
    """One id for each character of the training split, in code point order, after <eos> and <unk>."""

    eos, unk = 0, 1

    def train(self, texts: Iterable[str]) -> None:
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        self.restore("".join(sorted(seen)))

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        place = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
        return np.where(self._points[place] == points, place + 2, self.unk)

    def unknown_pieces(self, text: str) -> list[str]:
        return [text[place] for place in np.flatnonzero(self.encode(text) == self.unk)]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._characters[each - 2] if each >= 2 else "�" * (each == self.unk) for each in ids)

    def state(self) -> str:
        return self._characters

    def restore(self, state: str) -> None:
        self._characters = state
        self._points = np.frombuffer(state.encode("utf-32-le"), dtype=np.uint32)
        self.vocab = len(state) + 2


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library."""

    _inner: Any

    def encode(self, text: str) -> np.ndarray:
        try:
            parts = [self._inner.encode(part, add_special_tokens=False).ids for part in _pieces(text)]
        except Exception as error:  # the library raises bare Exception: a word level without an unknown token
            raise SpecError([], f"the tokenizer does not fit the text: {error}") from None
        return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in parts])

    def unknown_pieces(self, text: str) -> list[str]:
        found: list[str] = []
        for part in _pieces(text) if self.unk is not None else ():
            encoded = self._inner.encode(part, add_special_tokens=False)
            places = zip(encoded.ids, encoded.offsets, strict=True)
            found += [part[start:end] for each, (start, end) in places if each == self.unk]
        return found

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def state(self) -> str:
        return self._inner.to_str()

    def restore(self, state: str) -> None:
        from tokenizers import Tokenizer as Library

        self._adopt(Library.from_str(state))

    def _adopt(self, inner: Any) -> None:
        self._inner = inner
        self.vocab = max(inner.get_vocab().values(), default=0) + 1  # a saved one may have gaps
        for name in ("eos", "unk"):
            words = {"eos": (EOS, "<|endoftext|>", "</s>", "[SEP]"), "unk": (UNK, "[UNK]")}[name]
            found = [inner.token_to_id(word) for word in words if inner.token_to_id(word) is not None]
            setattr(self, name, found[0] if found else None)


@register("tokenizer", "words", paper="Mikolov et al. 2010 (word models with a closed vocabulary)")
class WordTokenizer(LibraryTokenizer):
    """The `vocab` most frequent words and punctuation runs of the training split; others are <unk>.

    Spaces are not tokens and are not recovered: bits per byte count the raw text's bytes all the same.
    """

    def __init__(self, *, vocab: int = 10000):
        if not 3 <= vocab <= LARGEST:
            raise SpecError(["vocab"], f"{vocab} must be from 3 (a word, {EOS} and {UNK}) to {LARGEST:,}")
        self.size = vocab

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Tokenizer as Library
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Whitespace
        from tokenizers.trainers import WordLevelTrainer

        inner = Library(WordLevel(unk_token=UNK))
        inner.pre_tokenizer = Whitespace()
        trainer = WordLevelTrainer(vocab_size=self.size, special_tokens=[EOS, UNK], show_progress=False)
        inner.train_from_iterator(_pieces_of(texts), trainer)
        self._adopt(inner)


@register("tokenizer", "bpe", paper="Sennrich, Haddow and Birch 2016, arXiv:1508.07909; bytes as in GPT-2", version=2)
class BPETokenizer(LibraryTokenizer):
    """Byte-pair encoding over bytes, `vocab` ids including the 256 bytes and <eos>; nothing is unknown."""

    def __init__(self, *, vocab: int = 4096):
        if not 257 <= vocab <= LARGEST:
            raise SpecError(["vocab"], f"{vocab} must be from 257 (256 bytes and {EOS}) to {LARGEST:,}")
        self.size = vocab

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Tokenizer as Library
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        inner = Library(BPE())
        inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
        inner.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=self.size,
            special_tokens=[EOS],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(_pieces_of(texts), trainer)
        self._adopt(inner)

    def _adopt(self, inner: Any) -> None:
        super()._adopt(inner)
        inner.encode_special_tokens = True  # a text that says <eos> does not end there


@register("tokenizer", "wordpiece", paper="Schuster and Nakajima 2012; Wu et al. 2016, arXiv:1609.08144; BERT's form")
class WordPieceTokenizer(LibraryTokenizer):
    """The longest known piece of a word from its beginning, then of the rest, where pieces begin with ##.

    `vocab` ids, <eos> and [UNK] the first; a word with a character that the training split does not have is [UNK] as
    a whole. Words are split at spaces, which are not recovered, and at punctuation. `lower` writes the text in small
    letters first: a model is then not asked for capitals, though bits per byte count the raw text's bytes all the
    same. Differs from the paper: pieces are merged by frequency, as in BPE, which is how the library trains.
    """

    def __init__(self, *, vocab: int = 4096, lower: bool = False):
        if not 3 <= vocab <= LARGEST:
            raise SpecError(["vocab"], f"{vocab} must be from 3 (a piece, {EOS} and [UNK]) to {LARGEST:,}")
        self.size, self.lower = vocab, lower

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers.models import WordPiece
        from tokenizers.trainers import WordPieceTrainer

        texts = list(texts)
        first = self._library(WordPiece(unk_token="[UNK]"))
        first.train_from_iterator(_pieces_of(texts), WordPieceTrainer(vocab_size=1, show_progress=False))
        # the library numbers ## letters as its hash table has them, and settles ties by number: as the first special
        # tokens they get the same numbers every time
        letters = sorted(first.get_vocab(), key=lambda piece: (len(piece), piece))
        trainer = WordPieceTrainer(vocab_size=self.size, special_tokens=[EOS, "[UNK]", *letters], show_progress=False)
        trained = self._library(WordPiece(unk_token="[UNK]"))
        trained.train_from_iterator(_pieces_of(texts), trainer)
        inner = self._library(WordPiece(trained.get_vocab(), unk_token="[UNK]"))
        inner.add_special_tokens([EOS, "[UNK]"])
        self._adopt(inner)

    def _library(self, model: Any) -> Any:
        from tokenizers import Tokenizer as Library
        from tokenizers.decoders import WordPiece as WordPieceDecoder
        from tokenizers.normalizers import Lowercase
        from tokenizers.pre_tokenizers import BertPreTokenizer

        inner = Library(model)
        if self.lower:
            inner.normalizer = Lowercase()
        inner.pre_tokenizer = BertPreTokenizer()
        inner.decoder = WordPieceDecoder(cleanup=False)
        return inner


@register("tokenizer", "unigram", paper="Kudo 2018, arXiv:1804.10959, section 3.2; spaces as in SentencePiece")
class UnigramTokenizer(LibraryTokenizer):
    """The segmentation with the largest product of piece probabilities: see `train_unigram`.

    Spaces are ▁ at the beginning of a piece, line ends are pieces of their own. `vocab` ids, <eos> and <unk> the
    first, or fewer where the text has fewer pieces; characters that the training split does not have are unknown.
    """

    def __init__(self, *, vocab: int = 4096):
        if not 3 <= vocab <= LARGEST:
            raise SpecError(["vocab"], f"{vocab} must be from 3 (a piece, {EOS} and {UNK}) to {LARGEST:,}")
        self.size = vocab

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Regex
        from tokenizers import Tokenizer as Library
        from tokenizers.decoders import Metaspace as MetaspaceDecoder
        from tokenizers.models import Unigram
        from tokenizers.pre_tokenizers import Metaspace, Sequence, Split

        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(re.findall("\n+|▁[^▁\n]*|[^▁\n]+", text.replace(" ", "▁")))
        pieces = train_unigram(counts, self.size - 2)
        inner = Library(Unigram([(EOS, 0.0), (UNK, 0.0), *pieces], unk_id=1))
        inner.pre_tokenizer = Sequence([Split(Regex("\n+"), "isolated"), Metaspace(prepend_scheme="never")])
        inner.decoder = MetaspaceDecoder(prepend_scheme="never")
        inner.add_special_tokens([EOS, UNK])
        self._adopt(inner)


@register("tokenizer", "file", paper="the format of the `tokenizers` library; GPT-2's encoder.json and vocab.bpe")
class SavedTokenizer(LibraryTokenizer):
    """A saved tokenizer: a `tokenizers` JSON file, or a folder with GPT-2's vocabulary and merges."""

    def __init__(self, *, path: str = ""):
        if not path:
            raise SpecError(["path"], "tokenizer 'file' needs the path of a saved tokenizer")
        self.path = Path(path)

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import ByteLevelBPETokenizer
        from tokenizers import Tokenizer as Library

        try:
            if self.path.is_dir():
                vocab, merges = _gpt2_files(self.path)
                self._adopt(Library.from_str(ByteLevelBPETokenizer(vocab, merges).to_str()))
            else:
                self._adopt(Library.from_file(str(self.path)))
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise SpecError(["path"], f"{self.path}: not a saved tokenizer: {error}") from None


def _gpt2_files(folder: Path) -> tuple[str, str]:
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (folder / vocab).is_file() and (folder / merges).is_file():
            json.loads((folder / vocab).read_text())
            return str(folder / vocab), str(folder / merges)
    raise SpecError(["path"], f"{folder}: holds neither encoder.json and vocab.bpe nor vocab.json and merges.txt")


PIECE = 1 << 20


def _pieces(text: str) -> Iterator[str]:
    """A long text in parts of about a million characters, cut after a line end: the library's memory stays small."""
    start = 0
    while len(text) - start > PIECE:
        cut = text.rfind("\n", start, start + PIECE) + 1
        found = re.compile(r"\s").search(text, start + PIECE) if cut <= start else None
        cut = cut if cut > start else (found.end() if found else len(text))
        yield text[start:cut]
        start = cut
    yield text[start:]


def _pieces_of(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _pieces(text)

"""The merges of a SentencePiece vocabulary. GGUF files hold pieces and scores; the merges follow from them.

Neighbours are merged to the piece of the highest score first, so every cut of a piece into two others is a merge, and
the scores give their order.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence

import numpy as np

MAX_PIECE = 512
"""Characters of a piece: the most that SentencePiece lets anybody train."""
MERGES_PER_PIECE, SOME_MERGES = 8, 1_000
"""How many merges there may be. Vocabularies have two for each piece (Llama 2: 1.9, Gemma: 2.3): one that made it, and
chance. Where every run of a letter is a piece there are as many as cuts."""
MAX_CUTS = 2**24
"""How many cuts are tried; Gemma's 262,144 pieces have 2 million."""


class TooManyMerges(ValueError):
    """The pieces are not those of a vocabulary that was trained; the text says why."""


def piece_merges(
    pieces: Sequence[str], scores: Sequence[float], ids: Mapping[str, int], merged: Collection[int]
) -> list[tuple[str, str]]:
    """The pairs of pieces that merge, the first one first.

    Args:
        pieces: the texts, by id.
        scores: of each piece, as many; the highest is merged first. Equal ones go by the ids of the two parts.
        ids: of each piece.
        merged: ids of those that take part; others are matched as a whole, or stand for bytes.

    Raises:
        TooManyMerges: a limit is reached, so that neither time nor memory grow faster than the file.
    """
    takes_part = bytearray(len(pieces))
    for number in merged:
        takes_part[number] = True
    most = SOME_MERGES + MERGES_PER_PIECE * len(pieces)
    lefts, rights, made = array("q"), array("q"), array("q")
    cuts = 0
    for number in merged:
        piece = pieces[number]
        if len(piece) > MAX_PIECE:
            raise TooManyMerges(f"The piece {number:,} has {len(piece):,} characters, our limit is {MAX_PIECE}.")
        cuts += len(piece)
        if cuts > MAX_CUTS:
            raise TooManyMerges(f"The pieces have over {MAX_CUTS:,} characters, our limit.")
        for cut in range(1, len(piece)):
            left = ids.get(piece[:cut])
            if left is None or not takes_part[left]:
                continue
            right = ids.get(piece[cut:])
            if right is not None and takes_part[right]:
                lefts.append(left)
                rights.append(right)
                made.append(number)
        if len(made) > most:
            raise TooManyMerges(f"The {len(pieces):,} pieces have over {most:,} merges, our limit for so many.")
    score = np.asarray(scores, np.float64)[np.array(made, np.int64)]
    order = np.lexsort((np.array(rights), np.array(lefts), -score))
    return [(pieces[lefts[place]], pieces[rights[place]]) for place in order.tolist()]

"""What remains of a job's records where those that its method can't encode are left out (data.on_error=skip).

All that follows is counted, examined, trained and compared over these: as if the files didn't have the others. So an
eval set is carved anew.
"""

from __future__ import annotations

import numpy as np

from raytune_llm.data.config import SPLITS
from raytune_llm.data.encoding.block import Encode, Refused
from raytune_llm.data.encoding.encode import EncodedSplits, encode_each, encode_splits
from raytune_llm.data.files import NONE_LEFT, Carving, Splits
from raytune_llm.data.reading.problems import Problems, check_skipped
from raytune_llm.data.tables.record_table import Serialiser
from raytune_llm.data.tokenizing.tokens import Tokens


def encode_usable(splits: Splits, tokens: Tokens, encode: Encode) -> tuple[Splits, EncodedSplits]:
    """The splits without the records that can't be encoded, which are added to the rejects, and all others encoded.

    Raises:
        DataError: more than half of the lines can't be used, none of a split can, or too few remain to carve from.
    """
    encoded, refused = encode_each(splits, tokens, encode)
    if not any(refused.values()):
        return splits, encoded
    carving = splits.carving
    whole = splits if carving is None else carving.whole
    found = refused if carving is None else {**refused, "train": _of_whole(carving, refused), "eval": []}
    problems = Problems()
    for name in SPLITS:
        records = getattr(whole, name)
        for index, why in found[name]:
            splits.rejects.add(*whole.origin(name, index), why, repr(records[index]))
        if found[name] and len(found[name]) == len(records):
            problems.add(f"data.{name}", None, NONE_LEFT)
    check_skipped(splits.rejects, splits.num_lines, problems)
    if problems.total:
        raise problems.error()
    remaining = whole.without({name: [index for index, _ in places] for name, places in found.items()})
    remaining = remaining if carving is None else carving.again(remaining)
    return remaining, encode_splits(remaining, tokens, encode)


def _of_whole(carving: Carving, refused: dict[str, Refused]) -> Refused:
    """The same records by their indices in train before it was carved; with those that are equal to one of eval, which
    carving left out."""
    of_train, of_eval = (
        [(int(indices[place]), why) for place, why in refused[name]]
        for name, indices in (("train", carving.train), ("eval", carving.eval))
    )
    records, dumps = carving.whole.train, Serialiser()
    reasons = {dumps(records[index]): why for index, why in of_eval}
    left = np.setdiff1d(np.arange(len(records)), np.concatenate([carving.train, carving.eval])) if reasons else ()
    copies = [(int(index), reasons[data]) for index in left if (data := dumps(records[int(index)])) in reasons]
    return sorted([*of_train, *of_eval, *copies])

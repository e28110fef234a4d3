"""The golden texts: what a candidate must score as the torch module did.

They are ours, so that no one's data travels in a bundle, and chosen for what
implementations get wrong: punctuation, quotes, markup, letters that change their
length in lower case, other scripts, nothing at all, and a lot.
"""

import torch
from torch import nn
from torchtext.data.utils import get_tokenizer, ngrams_iterator

from functions.predict.bundle import GoldenText

TEXTS = (
    "very cool restaurant!",
    "very good cafe",
    "This was the worst meal I have had in years, and I eat at airports.",
    "Not bad at all: the staff were friendly and the room was clean.",
    "Not good. Not good at all; we won't be back.",
    "I can't say enough good things about this place!!!",
    "The food was great but the service was terrible...",
    "Overpriced, overcooked and over by nine.",
    "Would I recommend it? Yes (and I have).",
    "Would I recommend it? No (never again).",
    'They call it "fresh". It was "fresh" last week.',
    "It's the b\"est\" dentist's office I've been to.",
    "Line one<br />line two<br/>line three<BR />line four",
    "WAITED 45 MINUTES. RUDE MANAGER. NO REFUND.",
    "$4.50 for a 12oz coffee at 7:30; worth it, 10/10",
    "  spaces \t tabs \n newlines \u00a0 and \u2028 others  ",
    "İstanbul'da yemek çok güzeldi",
    "Ο ΚΑΦΕΣ ΗΤΑΝ ΚΑΛΟΣ",
    "このレストランはとても美味しかったです。",
    "Очень вкусно, обязательно вернёмся!",
    "المطعم ممتاز والخدمة سريعة",
    "😀👍🏽 loved it 🍕🍕",
    "cafe\u0301 and café are two spellings",
    "",
    "!",
    "xyzzy plugh qwrtz",
    "ok",
    "the food was good and the wait was long and " * 100,
)


def golden_texts(model: nn.Module, index: dict[str, int], order: int) -> list[GoldenText]:
    """Return the golden texts with the scores of the torch module in float64.

    Tokens and n-grams are torchtext's own here, not those that serving uses: a
    candidate that reproduces these scores agrees with the reference.

    Args:
        model: the trained module, called with (indices, offsets).
        index: n-gram -> row of the embedding; others are row 0.
        order: longest n-gram.
    """
    tokenize = get_tokenizer("basic_english")
    bags = [
        [index.get(term, 0) for term in ngrams_iterator(tokenize(text), order)] for text in TEXTS
    ]
    lengths = torch.tensor([len(bag) for bag in bags])
    indices = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
    with torch.no_grad():
        scores = model.double()(indices, torch.cumsum(lengths, 0) - lengths)
    return [GoldenText(text, float(score)) for text, score in zip(TEXTS, scores, strict=True)]

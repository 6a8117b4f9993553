"""How much several texts differ: Div-n-gram and Div-BLEU, each of eight responses to a question."""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU

from .statistics import distinct_n

SIZES = (1, 2, 3, 4)  # of the n-grams, those of BLEU


def div_ngram(texts: Sequence[str]) -> float:
    """Mean over n = 1 to 4 of different n-grams over all n-grams of the texts' words, 1 where none comes twice.

    Sizes that no text is long enough for are left out; 0 for texts without words.
    """
    words = [text.split() for text in texts]
    longest = max(map(len, words), default=0)
    shares = [distinct_n(words, size) for size in SIZES if size <= longest]
    return sum(shares) / len(shares) if shares else 0.0


def div_bleu(texts: Sequence[str]) -> float:
    """1 - mean BLEU of a text against all others: 0 where each comes twice, 1 where no two share a word.

    sacrebleu's sentence BLEU, of the orders that the text is long enough for, with its exponential smoothing; two texts
    without words are the same. ValueError for fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} texts: expected two or more, to compare each with the others")
    bleu = BLEU(effective_order=True, smooth_method="exp")
    scores = []
    for place, text in enumerate(texts):
        others = [*texts[:place], *texts[place + 1 :]]
        if any(text.split() == other.split() for other in others):
            scores.append(1.0)
        elif not text.split():
            scores.append(0.0)
        else:
            scores.append(float(bleu.sentence_score(text, others).score) / 100)
    return 1.0 - sum(scores) / len(scores)

"""What is reached by counting words, without a model of the order they stand in. By scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ablate.errors import UserError

Texts = Sequence[tuple[str, ...]]

MOST_ROWS = 50_000  # of the training split that a baseline is fitted to
WORD = r"(?u)\w+|[^\w\s]+"  # and runs of punctuation


def majority(labels: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The accuracy of the training split's most frequent class, on validation and test data."""
    often = np.bincount(labels["train"]).argmax()
    return [
        _told("majority class", "accuracy", split, (labels[split] == often).mean()) for split in ("valid", "test")
    ]


def bags_of_words(texts: dict[str, Texts], labels: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The accuracy of a logistic regression on the tf-idf of words (of two texts, on those of both and on their
    cosine); of one text, also that of naive Bayes on which words and pairs of neighbours occur."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    fits = [
        ("bag of words (tf-idf, logistic regression)", LogisticRegression(C=10.0, max_iter=1000), _weighted(texts))
    ]
    if len(texts["train"][0]) == 1:
        counts = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=WORD)
        fits.append(("words and pairs of words (naive Bayes)", MultinomialNB(alpha=0.5), _features(counts, texts)))
    rows = []
    for name, model, features in fits:
        model.fit(features["train"], labels["train"][:MOST_ROWS])
        for split in ("valid", "test"):
            share = (model.predict(features[split]) == labels[split]).mean()
            rows.append(_told(_named(name, texts), "accuracy", split, share))
    return rows


def ridge(texts: dict[str, Texts], values: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The correlation with the values of a ridge regression on the same features, and the error of their mean."""
    from sklearn.linear_model import Ridge

    from ablate.metrics_labels import value_metrics

    features = _weighted(texts)
    model = Ridge(alpha=1.0)
    model.fit(features["train"], values["train"][:MOST_ROWS])
    name = _named("bag of words (tf-idf, ridge regression)", texts)
    rows = []
    for split in ("valid", "test"):
        mean = np.full(len(values[split]), values["train"].mean())
        rows.append(_told("mean of the training split", "rmse", split, value_metrics(values[split], mean)["rmse"]))
        found = value_metrics(values[split], model.predict(features[split]))["pearson"]
        rows.append(_told(name, "pearson", split, found))
    return rows


def _weighted(texts: dict[str, Texts]) -> dict[str, Any]:
    """The tf-idf of words, each row of a text of length 1, tf = 1 + ln count."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = _features(TfidfVectorizer(sublinear_tf=True, token_pattern=WORD), texts)
    if len(texts["train"][0]) == 1:
        return found
    for split, both in found.items():
        width = both.shape[1] // 2
        found[split] = hstack([both, csr_matrix(both[:, :width].multiply(both[:, width:]).sum(1))]).tocsr()
    return found


def _features(vectorizer: Any, texts: dict[str, Texts]) -> dict[str, Any]:
    """A matrix with a row for each row of a split, the columns of two texts side by side."""
    from scipy.sparse import hstack

    texts = {**texts, "train": texts["train"][:MOST_ROWS]}
    try:
        vectorizer.fit(text for row in texts["train"] for text in row)
    except ValueError:
        raise UserError("the training split has no words") from None
    sides = range(len(texts["train"][0]))
    return {
        split: hstack([vectorizer.transform([row[side] for row in rows]) for side in sides]).tocsr()
        for split, rows in texts.items()
    }


def _named(name: str, texts: dict[str, Texts]) -> str:
    cut = len(texts["train"]) > MOST_ROWS
    return f"{name}, fitted to {MOST_ROWS:,} rows" if cut else name


def _told(name: str, metric: str, split: str, value: float) -> dict[str, Any]:
    """A baseline is on validation data unless its name says otherwise."""
    return {"name": name, "split": split, "metric": metric, "value": float(value)}

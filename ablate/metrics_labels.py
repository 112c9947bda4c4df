"""How well labels are told: of classes, and of real values. By scikit-learn and scipy."""

from __future__ import annotations

import numpy as np


def class_metrics(labels: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """accuracy, the share told right; f1_macro, the mean over the classes that occur of 2 P R / (P + R);
    matthews, the correlation of labels and told classes (Matthews 1975; of many classes Gorodkin 2004), 0 where one
    of the two is constant."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    constant = len(np.unique(labels)) < 2 or len(np.unique(told)) < 2
    return {
        "accuracy": float((labels == told).mean()),
        "f1_macro": float(f1_score(labels, told, average="macro", zero_division=0.0)),
        "matthews": 0.0 if constant else float(matthews_corrcoef(labels, told)),
    }


def value_metrics(values: np.ndarray, told: np.ndarray) -> dict[str, float]:
    """rmse, the root of the mean squared error; the correlations of Pearson and of Spearman, 0 where one of the two
    is constant."""
    from scipy.stats import pearsonr, spearmanr

    constant = len(values) < 2 or np.ptp(values) == 0 or np.ptp(told) == 0
    return {
        "rmse": float(np.sqrt(np.square(values - told).mean())),
        "pearson": 0.0 if constant else float(pearsonr(values, told).statistic),
        "spearman": 0.0 if constant else float(spearmanr(values, told).statistic),
    }

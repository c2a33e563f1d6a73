"""skipway and gradient boosting of scikit-learn on tables, both with default settings.

    python benchmarks/tables.py [REPEATS]

The data sets are bundled with scikit-learn. Repeated 5-fold cross-validation (5 repeats by default) uses the same folds
for both. The results are the mean and the standard deviation of the accuracy, or of R2 for diabetes, over the folds.
The network uses 1 thread. The results are in benchmarks/results/2026-11-21-tables.md.
"""

import sys
import time

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import RepeatedKFold, RepeatedStratifiedKFold, cross_val_score

from skipway.estimators import SkipClassifier, SkipRegressor

TABLES = {"wine": load_wine, "breast_cancer": load_breast_cancer, "diabetes": load_diabetes}


def main(repeats: int) -> None:
    for name, load in TABLES.items():
        X, y = load(return_X_y=True)
        numbers = name == "diabetes"
        folds = (RepeatedKFold if numbers else RepeatedStratifiedKFold)(n_splits=5, n_repeats=repeats, random_state=0)
        ours = (SkipRegressor if numbers else SkipClassifier)(random_state=0)
        theirs = (HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier)(random_state=0)
        scores = {}
        for who, model in (("skipway", ours), ("gradient boosting", theirs)):
            begin = time.monotonic()
            scores[who] = cross_val_score(model, X, y, cv=folds)
            seconds = (time.monotonic() - begin) / len(scores[who])
            text = f"{scores[who].mean():.4f} +- {scores[who].std():.4f}  {seconds:.2f} s a fit"
            print(f"{name:<14} {who:<18} {text}", flush=True)
        better = scores["skipway"] - scores["gradient boosting"]
        print(
            f"{name:<14} {'difference':<18} {better.mean():+.4f} +- {better.std():.4f}, >= 0 in "
            f"{int(np.sum(better >= 0))} of {len(better)} folds",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)

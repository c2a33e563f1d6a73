"""skipway, alone and blended with boosting, and seven other methods on real tables, 5-fold cross-validation.

    python benchmarks/tables.py run METHOD [TABLE ...]    one method, on all tables by default
    python benchmarks/tables.py page                      the page of all results so far, to standard output

Methods: skipway; skipway-boosting, blended with boosting; boosting, forest and linear (scikit-learn); catboost;
lightgbm; realmlp and tabm (pytabkit). It needs the packages of table_sets.py, and those of the methods. Numbers are
passed as they are, texts as categories. For all but skipway, dates become their time, year, month, weekday, hour and
day of the year. Every method uses one thread, and its seconds are CPU seconds, in which other programs hardly count.
Results are added to tables.json in the folder of the results.
"""

import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from table_sets import SETS, TableSet

METHODS = ("skipway", "skipway-boosting", "boosting", "forest", "linear", "catboost", "lightgbm", "realmlp", "tabm")
BEFORE = "skipway-before"  # results of an earlier version, which this script cannot run
RESULTS = Path(os.environ.get("TABLES_JSON", Path(__file__).parent / "results" / "tables.json"))
_FOLDS = 5
_MOST_CATEGORIES = 250  # a column with more is left out for the methods of scikit-learn


def run(method: str, names: list[str]) -> None:
    """Cross-validate a method on tables that it has no results of, and store each table's results."""
    for name in names or list(SETS):
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if name in results.get(method, {}):
            continue
        scores = cross_validate(method, SETS[name])
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results.setdefault(method, {})[name] = scores
        RESULTS.write_text(json.dumps(results, indent=0, sort_keys=True))
        print(method, name, *(f"{value:.4f}" for value in np.mean(scores, axis=0)), flush=True)


def cross_validate(method: str, table: TableSet) -> list[list[float]]:
    """Return for each fold R2 or accuracy, MAE or log loss, and the seconds of `fit`."""
    from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score
    from sklearn.model_selection import KFold, StratifiedKFold

    X, y = table.load()
    kind = KFold if table.numbers else StratifiedKFold
    scores = []
    for train, test in kind(_FOLDS, shuffle=True, random_state=0).split(X, y):
        parts = [X.iloc[train].reset_index(drop=True), X.iloc[test].reset_index(drop=True)]
        truth, rest = y.iloc[test], y.iloc[train].reset_index(drop=True)
        model = _model(method, table.numbers, parts)
        begin = time.process_time()
        model.fit(parts[0], rest)
        seconds = time.process_time() - begin
        if table.numbers:
            predicted = np.asarray(model.predict(parts[1])).ravel()
            scores.append([r2_score(truth, predicted), mean_absolute_error(truth, predicted), seconds])
        else:
            shares = np.asarray(model.predict_proba(parts[1]), dtype=float)
            classes = [str(c) for c in model.classes_]
            order = np.argsort(classes)
            shares, names = shares[:, order], np.array(classes)[order]
            accuracy = accuracy_score(truth, names[shares.argmax(1)])
            scores.append([accuracy, log_loss(truth, shares / shares.sum(1, keepdims=True), labels=names), seconds])
    return [[float(value) for value in row] for row in scores]


def _model(method: str, numbers: bool, parts: list[pd.DataFrame]) -> Any:
    """Return an unfitted model, and convert the inputs in `parts` (training, test) to what it reads."""
    if method in ("skipway", "skipway-boosting"):
        from skipway.estimators import SkipClassifier, SkipRegressor

        partner = "boosting" if method == "skipway-boosting" else None
        return (SkipRegressor if numbers else SkipClassifier)(random_state=0, ensemble_with=partner)
    joined = _with_date_parts(pd.concat(parts, ignore_index=True))
    texts = [name for name in joined if joined[name].dtype == object]
    if method in ("boosting", "forest", "linear"):
        joined = joined.drop(columns=[name for name in texts if joined[name].nunique() > _MOST_CATEGORIES])
        texts = [name for name in texts if name in joined]
    if method in ("catboost", "realmlp", "tabm"):
        joined[texts] = joined[texts].fillna("missing")
    if method in ("realmlp", "tabm"):  # they accept no missing numbers
        median = joined.iloc[: len(parts[0])].drop(columns=texts).median()
        joined = joined.fillna(median.to_dict())
    if method != "catboost":
        joined = joined.astype({name: "category" for name in texts})
    parts[:] = [joined.iloc[: len(parts[0])], joined.iloc[len(parts[0]) :]]
    return _SCIKIT_LEARN[method](numbers, texts) if method in _SCIKIT_LEARN else _other(method, numbers, texts)


def _boosting(numbers: bool, texts: list[str]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if numbers else HistGradientBoostingClassifier
    return kind(random_state=0, categorical_features="from_dtype")


def _forest(numbers: bool, texts: list[str]) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    return _one_hot((RandomForestRegressor if numbers else RandomForestClassifier)(random_state=0, n_jobs=1), texts)


def _linear(numbers: bool, texts: list[str]) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeCV

    return _one_hot(RidgeCV(np.logspace(-3, 3, 13)) if numbers else LogisticRegression(max_iter=2000), texts)


def _one_hot(model: Any, texts: list[str]) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    encoder = OneHotEncoder(handle_unknown="ignore", min_frequency=2)
    categories = make_pipeline(SimpleImputer(strategy="most_frequent"), encoder)
    others = make_pipeline(SimpleImputer(), StandardScaler())
    return make_pipeline(make_column_transformer((categories, texts), remainder=others), model)


_SCIKIT_LEARN = {"boosting": _boosting, "forest": _forest, "linear": _linear}


def _other(method: str, numbers: bool, texts: list[str]) -> Any:
    if method == "catboost":
        import catboost

        kind = catboost.CatBoostRegressor if numbers else catboost.CatBoostClassifier
        return kind(random_seed=0, verbose=0, thread_count=1, cat_features=texts, allow_writing_files=False)
    if method == "lightgbm":
        import lightgbm

        return (lightgbm.LGBMRegressor if numbers else lightgbm.LGBMClassifier)(random_state=0, verbose=-1, n_jobs=1)
    import pytabkit

    name = {"realmlp": "RealMLP_TD", "tabm": "TabM_D"}[method] + ("_Regressor" if numbers else "_Classifier")
    return getattr(pytabkit, name)(random_state=0, n_threads=1, device="cpu")


def _with_date_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Replace each column of dates by numbers."""
    for name in [name for name in frame if frame[name].dtype.kind == "M"]:
        dates = frame.pop(name)
        parts = {
            "time": dates.astype("datetime64[s]").astype("int64"),
            "year": dates.dt.year,
            "month": dates.dt.month,
            "weekday": dates.dt.weekday,
            "hour": dates.dt.hour,
            "day": dates.dt.dayofyear,
        }
        frame = frame.assign(**{f"{name} {part}": values for part, values in parts.items()})
    return frame


def page() -> str:
    """Return the tables of all results in Markdown."""
    results: dict[str, dict[str, list[list[float]]]] = json.loads(RESULTS.read_text())
    lines = []
    for held, title in ((True, "Tables that chose nothing"), (False, "Tables that chose the defaults")):
        names = [name for name, table in SETS.items() if table.held == held]
        methods = [m for m in (*METHODS, BEFORE) if any(name in results.get(m, {}) for name in names)]
        lines += [f"## {title}", "", *_summary(results, methods, names), "", *_details(results, methods, names), ""]
    return "\n".join(lines)


def _summary(results: dict[str, Any], methods: list[str], names: list[str]) -> list[str]:
    """Return a table of mean ranks and ratios, with one line for each method.

    Methods that lack results of a table are not ranked. Their ratios are over the tables that they have.
    """
    lines = [
        "| method | mean rank: R2 or accuracy | mean rank: MAE or log loss | error to that of boosting | "
        "lower than boosting | seconds of a fit, to those of boosting |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    means = {m: {n: np.mean(results[m][n], axis=0) for n in names if n in results[m]} for m in methods}
    ranked = [m for m in methods if len(means[m]) == len(names)]
    for method, own in means.items():
        ranks = [
            statistics.mean(_rank([sign * means[m][n][column] for m in ranked], ranked.index(method)) for n in names)
            for column, sign in ((0, -1), (1, 1))
            if method in ranked
        ]
        errors = [own[n][1] / means["boosting"][n][1] for n in own]
        seconds = [own[n][2] / means["boosting"][n][2] for n in own]
        lower = sum(error < 1 for error in errors)
        cells = [f"{rank:.2f}" for rank in ranks] or ["", ""]
        cells += [f"{statistics.geometric_mean(errors):.3f}", f"{lower} of {len(own)}"]
        lines.append(f"| {method} | {' | '.join(cells)} | {statistics.median(seconds):.1f} |")
    return lines


def _rank(values: list[float], index: int) -> float:
    """Return the rank of a value from 1 on, the mean of equal ones."""
    return 1 + sum(v < values[index] for v in values) + 0.5 * (sum(v == values[index] for v in values) - 1)


def _details(results: dict[str, Any], methods: list[str], names: list[str]) -> list[str]:
    """Return a table with one line for each set: R2 or accuracy, then MAE or log loss, means over the folds."""
    lines = [f"| table | rows | | {' | '.join(methods)} |", f"| --- | ---: | --- |{' ---: |' * len(methods)}"]
    for name in names:
        rows = len(SETS[name].load()[1])
        measures = ("R2", "MAE") if SETS[name].numbers else ("accuracy", "log loss")
        for column, measure in enumerate(measures):
            scores = [results[m].get(name) for m in methods]
            cells = [f"{np.mean(score, axis=0)[column]:.4g}" if score else "" for score in scores]
            head = f"| {name} | {rows:,} |" if column == 0 else "| | |"
            lines.append(f"{head} {measure} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if len(sys.argv) > 2 and sys.argv[1] == "run" and sys.argv[2] in METHODS:
        run(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:] == ["page"]:
        print(page())
    else:
        sys.exit(__doc__)

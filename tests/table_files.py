"""Tables for tests: homes with numbers, holes, categories, booleans, dates, and two targets."""

import numpy as np
import pandas as pd


def homes(count=80, seed=0):
    """A price that follows size, city and garden; `dear` says whether it is above the median."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(50, 20, count).round(2),
            "city": rng.choice(["Bonn", "Köln", "Ulm"], count),
            "garden": rng.choice(["yes", "no"], count),
            "built": [f"19{year:02}-0{month}-15" for year, month in rng.integers([10, 1], [99, 9], (count, 2))],
        }
    )
    price = frame["size"] * 3 + (frame["city"] == "Bonn") * 80 + (frame["garden"] == "yes") * 30
    frame["price"] = (price + rng.normal(0, 5, count)).round(1)
    frame["dear"] = np.where(price > price.median(), "dear", "cheap")
    frame.loc[rng.random(count) < 0.1, "size"] = np.nan
    frame.loc[rng.random(count) < 0.1, "city"] = None
    return frame


def written(path, frame, **options):
    """The frame as a CSV file at `path`."""
    frame.to_csv(path, index=False, **options)
    return path


def lines(path, *rows):
    """A file of these lines."""
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path

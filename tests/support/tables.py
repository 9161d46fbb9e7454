"""Tables of two known competitions' shapes, with made-up cells: Titanic (few words) and house prices (none)."""

from pathlib import Path

import numpy as np
from competitions import table

SURNAMES = ("Braund", "Cumings", "Heikkinen", "Futrelle", "Allen", "Moran", "McCarthy", "Palsson")
ZONES = ("RL", "RM", "C (all)", "FV")


def titanic(folder: Path) -> None:
    """PassengerId, Survived, Pclass, Name, Sex, Age, SibSp, Parch, Ticket, Fare, Cabin, Embarked; gender_submission.csv."""
    random = np.random.default_rng(0)
    rows = []
    for n in range(1, 501):
        sex = ("male", "female")[n % 2]
        name = f"{random.choice(SURNAMES)}, {'Mr' if sex == 'male' else 'Mrs'}. Person {n}"
        age, cabin = ("" if n % 5 == 0 else n % 70), ("" if n % 4 else f"C{random.integers(20, 150)}")
        ticket = f"A/5 {1000 + random.integers(90)}" if n % 3 else str(random.integers(100_000, 400_000))
        rows.append(
            (n, n % 2, n % 3 + 1, name, sex, age, n % 4, 0, ticket, f"{random.gamma(2, 16):.4f}", cabin, "SCQ"[n % 3])
        )
    header = (
        "PassengerId",
        "Survived",
        "Pclass",
        "Name",
        "Sex",
        "Age",
        "SibSp",
        "Parch",
        "Ticket",
        "Fare",
        "Cabin",
        "Embarked",
    )
    table(folder / "train.csv", header, rows[:350])
    table(folder / "test.csv", (header[0], *header[2:]), [(row[0], *row[2:]) for row in rows[350:]])
    table(folder / "gender_submission.csv", header[:2], [(row[0], 0) for row in rows[350:]])


def house_prices(folder: Path) -> None:
    """Id, 40 columns of numbers and categories, SalePrice; a sample with decimals."""
    random = np.random.default_rng(1)
    numbers, kinds = [f"Area{n}" for n in range(20)], [f"Zone{n}" for n in range(20)]
    rows = [
        (n, *random.integers(0, 9000, 20), *random.choice(ZONES, 20), int(random.gamma(8, 22_000)))
        for n in range(1, 401)
    ]
    table(folder / "train.csv", ("Id", *numbers, *kinds, "SalePrice"), rows[:300])
    table(folder / "test.csv", ("Id", *numbers, *kinds), [row[:-1] for row in rows[300:]])
    table(folder / "sample_submission.csv", ("Id", "SalePrice"), [(row[0], 169277.0525) for row in rows[300:]])

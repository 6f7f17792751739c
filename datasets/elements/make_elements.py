"""The table of elements that crystal encoders read: nine public quantities of each.

    pip install mendeleev==1.3.0 pymatgen
    python datasets/elements/make_elements.py        writes lrpot/properties/elements.csv

From mendeleev: group, period, block, Pauling's electronegativity, the single-bond covalent radius of Pyykkö and Atsumi
(Chem. Eur. J. 2009), valence electrons, first ionization energy, electron affinity. From pymatgen: the molar volume,
of gases in their condensed form. Kept as a file, so that features do not change under a model when a data base is
revised.
"""

from __future__ import annotations

import csv
from pathlib import Path

from mendeleev import element
from pymatgen.core import Element

OUT = Path(__file__).resolve().parents[2] / "lrpot" / "properties" / "elements.csv"
COLUMNS = (
    "number",
    "symbol",
    "group",
    "period",
    "block",
    "electronegativity",
    "covalent_radius_pm",
    "valence_electrons",
    "ionization_energy_eV",
    "electron_affinity_eV",
    "molar_volume_cm3",
)


def row(number: int) -> list[object]:
    found = element(number)
    values = (
        number,
        found.symbol,
        found.group_id,
        found.period,
        found.block,
        found.en_pauling,
        found.covalent_radius_pyykko,
        found.nvalence(),
        found.ionenergies.get(1),
        found.electron_affinity,
        float(volume) if (volume := Element(found.symbol).molar_volume) else None,
    )
    return ["" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in values]


if __name__ == "__main__":
    with open(OUT, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row(number) for number in range(1, 119))
    print("wrote", OUT)

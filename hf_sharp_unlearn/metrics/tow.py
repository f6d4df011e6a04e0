"""Tug-of-War: how close an unlearned model comes to a retrained one on retain, forget and test data.

absolute   prod over D in {R, F, T} of (1 - |a_D - a_D,rt|)              Zhao et al., NeurIPS 2024 (RUM)
signed     (1 - (a_R,rt - a_R)) (1 - (a_F - a_F,rt)) (1 - (a_T,rt - a_T))    the code released with Sharp MinMax

a_D: accuracy of the unlearned model on D, a_D,rt: of the retrained one. Higher is better in both. The absolute
value lies in [0, 1]; the signed one rewards forgetting more than the retrained model and may exceed 1.
"""

import math
from collections.abc import Mapping

SPLITS = ("retain", "forget", "test")


def tug_of_war(unlearned: Mapping[str, float], retrained: Mapping[str, float], signed: bool = False) -> float:
    """Return the Tug-of-War score.

    unlearned, retrained: accuracy in [0, 1] by split, for exactly the splits "retain", "forget" and "test".

    Raises ValueError for other splits or values outside [0, 1].
    """
    for name, accuracies in (("unlearned", unlearned), ("retrained", retrained)):
        if set(accuracies) != set(SPLITS):
            raise ValueError(f"{name} has the splits {sorted(accuracies)}: give accuracies for exactly {SPLITS}.")
        for split, value in accuracies.items():
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(
                    f"{name}[{split!r}]={value!r}: accuracies are fractions in [0, 1]; divide percentages by 100."
                )
    gaps = {split: float(unlearned[split]) - float(retrained[split]) for split in SPLITS}
    if signed:
        return (1 + gaps["retain"]) * (1 - gaps["forget"]) * (1 + gaps["test"])
    return math.prod(1 - abs(gap) for gap in gaps.values())


def tug_of_war_mia(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """ToW-MIA: (1 - |dMIA|) (1 - |da_R|) (1 - |da_T|), in [0, 1], higher is better (Zhao et al., NeurIPS 2024, RUM).

    unlearned, retrained: {"mia", "retain", "test"}: forget efficacy of the SVC attack on the confidence (`mia`), and
    accuracies; fractions in [0, 1]. Raises ValueError for other keys or values outside [0, 1].
    """
    return tug_of_war(*({"forget" if key == "mia" else key: v for key, v in m.items()} for m in (unlearned, retrained)))


def average_gap(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Mean of |difference to the retrained model| over all keys, in [0, 1]; lower is better (Fan et al., arXiv
    2310.12508, "Avg. Gap": unlearning, retain and test accuracy and MIA efficacy).

    Raises ValueError for different or no keys.
    """
    if set(unlearned) != set(retrained) or not unlearned:
        raise ValueError(f"unlearned has {sorted(unlearned)}, retrained {sorted(retrained)}: need the same keys.")
    return math.fsum(abs(unlearned[key] - retrained[key]) for key in unlearned) / len(unlearned)

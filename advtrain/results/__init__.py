"""What experiments found: results files, the tables made from them, and differences paired by seed.

`load_results` reads files that `advtrain reproduce` wrote. They hold every run, and where it came from.
"""

from .compare import compare
from .paired import Difference, t_p_value, t_quantile
from .read import load_results
from .recorded import recorded
from .results import Results
from .significance import PairedTest, PairedTests, holm, mcnemar, sign_flip
from .table import Summary
from .trial import Trial

__all__ = [
    "Difference", "PairedTest", "PairedTests", "Results", "Summary", "Trial", "compare", "holm", "load_results",
    "mcnemar", "recorded", "sign_flip", "t_p_value", "t_quantile",
]  # fmt: skip

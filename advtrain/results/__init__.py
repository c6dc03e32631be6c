"""What experiments found: results files, the tables made from them, and differences paired by seed.

`load_results` reads files that `advtrain reproduce` wrote. They hold every run, and where it came from.
"""

from .paired import Difference, t_quantile
from .read import load_results
from .results import Results
from .table import Summary
from .trial import Trial

__all__ = ["Difference", "Results", "Summary", "Trial", "load_results", "t_quantile"]

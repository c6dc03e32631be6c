"""What experiments found: results files, the tables made from them, and differences paired by seed.

`load_results` reads a file that `advtrain reproduce` wrote. It holds every run, and where it came from.
"""

from .paired import Difference, t_quantile
from .results import Results, Trial, load_results
from .table import Summary

__all__ = ["Difference", "Results", "Summary", "Trial", "load_results", "t_quantile"]

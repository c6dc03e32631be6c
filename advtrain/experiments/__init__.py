"""Experiments as small files: what is trained, how it is judged, over which seeds, which comparison is meant, and why.

`advtrain reproduce NAME` makes the results of a file that comes with the package, or of one of your own. A file in TOML
has these parts; `val`, options, `[fit]`, `[judge]` and `[[compare]]` may be left out::

    title = "Single-step methods on the digits"
    about = "Which of them withstand PGD?"
    seeds = [0, 1, 2]

    [data]                      # name and val, as in load_data
    name = "digits"
    [model]                     # name and options, as in build_model
    name = "small-cnn"
    [threat]                    # norm and eps; "8/255" is a number, too
    norm = "linf"
    eps = 0.3
    [fit]                       # arguments of fit, for all methods
    epochs = 30
    [judge]                     # split = "test" or "val", protocol, limit, batch_size
    protocol = "strict"         # a name in PROTOCOLS, or { steps = 20, restarts = 1 }

    [[method]]                  # as often as you like: each is a row of the table
    name = "pgd-2"
    defense = "pgd"
    options = { steps = 2, rel_step = 0.5 }     # fields of the defense
    fit = { lr = 0.05 }                         # what differs from the common [fit]
    threat = { eps = 0.2 }                      # trained against another one; judged under the common one

    [[compare]]                 # differences paired by seed
    a = "pgd"
    b = "pgd-2"
    metric = "pgd"              # or "clean", "fgsm", and, shown where the runs were judged by it, "autoattack"
    why = "Do more steps help?"

`"none"` stands for None. With `base = "other"` a file takes over all of another: its own keys replace those of the
base, in `[data]`, `[model]`, `[threat]`, `[fit]` and `[judge]` key by key.
"""

from ..files import digest_of
from ..results.paired import METRICS
from .confirm import Check, check_results_file
from .read import load, names
from .reproduce import reproduce
from .spec import Comparison, Experiment, Method, Plan

__all__ = [
    "METRICS", "Check", "Comparison", "Experiment", "Method", "Plan", "check_results_file", "digest_of", "load",
    "names", "reproduce",
]  # fmt: skip

"""Adaptive attacks: made against one defense, from what that defense is trained for.

An attack of general use may look in the wrong direction, and then it flatters. Tramèr et al. (2020), arXiv 2002.08347,
broke thirteen defenses by asking of each what it hopes the attacker does, and doing something else. The same question,
asked of two papers of this book:

Robustness-via-Synthesis (Baytaş and Deb, 2023, arXiv 2108.09713) trains against images that move a batch of features
far away, and judges by attacks on the cross-entropy. `feature_attack` and `transport_attack` move the features
themselves, then go on from there with the margin.

The SAT regularizers (Vivek and Babu, 2020, arXiv 2002.00614) make single-step images, from the image or from a random
step beside it, agree with iterated ones. `r_fgsm_pgd` iterates from where their own single-step attack ends.

These are further attacks, not better ones: on the digits they break about as many images as PGD on the margin does.
Judge by PGD and AutoAttack, and by these beside them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import bad, is_real, one_of
from ..rng import Rng
from ..threat import Threat
from .feature_space import feature_attack, transport_attack
from .gradient import check_steps
from .losses import objective
from .pursuit import Passes
from .single import Loss, r_fgsm
from .stages import begin, over_restarts, run_pgd


def r_fgsm_pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    alphas: Sequence[float] | None = None,
    losses: Sequence[Loss] = ("ce", "cw"),
    steps: int = 50,
    step_size: float | None = None,
    restarts: int = 10,
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """PGD that begins where R-FGSM ends: for defenses that learn from such images, or from those of FGSM.

    SAT-R2 and SAT-R3 (Vivek and Babu, 2020, arXiv 2002.00614) train on images of R-FGSM, with a full second step. If
    their regularizers work, the end of R-FGSM is nearly the worst point, and the steps from there gain little.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        alphas: lengths α of the random step of R-FGSM, in (0, eps), which the restarts take in turns. If not given
            ε/30, ε/4 and ε/2: the authors' for MNIST and for CIFAR-10, and that of Tramèr et al. (2018).
        losses: what PGD ascends, in turns as well: all lengths with the first loss, then all with the second. Each is
            `"ce"`, `"cw"`, `"dlr"`, or a function of (logits, y) with one value per image.
        steps: ascent steps of each restart, after the two of R-FGSM.
        step_size: in pixel units (ℓ∞) or units of length (ℓ2); ε/4 if not given.
        restarts: independent runs; each image keeps its worst one.
        rng: names the random steps: an `Rng` or a seed. Start r is the same whatever the number of restarts.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified if any iterate was, else the one of largest margin among the
        ends of the restarts.

    Raises:
        ArgumentError: options out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    check_steps(steps, step_size, threat)
    alphas = (threat.eps / 30, threat.eps / 4, threat.eps / 2) if alphas is None else alphas
    several = isinstance(alphas, Sequence) and len(alphas) > 0
    if not several or not all(is_real(alpha) and 0 < alpha < threat.eps for alpha in alphas):
        bad("alphas", alphas, f"lengths in (0, eps={threat.eps:g})", "such as (eps / 4, eps / 2)")
    if isinstance(losses, str) or not isinstance(losses, Sequence) or not losses:
        bad("losses", losses, "a sequence of losses", 'write losses=("ce", "cw")')
    ascents = [objective(loss, targeted=False) for loss in losses]
    x, y, rng = begin(model, x, y, threat, restarts, rng, check, step_size)
    step_size = threat.eps / 4 if step_size is None else step_size
    passes = Passes(model)

    def run(restart: int, left: Tensor) -> Tensor:
        turn, place = divmod(restart, len(alphas))
        stream = rng.child("restart", restart)
        start = r_fgsm(model, x, y, threat, alpha=alphas[place], rng=stream, check=False)[left]
        ascent = ascents[turn % len(ascents)]
        return run_pgd(passes, x[left], y[left], threat, ascent, start, steps=steps, step_size=step_size).x_adv

    return over_restarts(passes, x, y, restarts, run)


SAT = {"r-fgsm-pgd": r_fgsm_pgd}
ADAPTIVE: dict[str, dict[str, Callable[..., Tensor]]] = {
    "rvs": {
        "feature": feature_attack,
        "feature-guided": functools.partial(feature_attack, guided=True),
        "transport": transport_attack,
    },
    "sat-r1": SAT,
    "sat-r2": SAT,
    "sat-r3": SAT,
}
"""Adaptive attacks by name, for each defense that has any."""


def adaptive(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    defense: Any,
    *,
    steps: int = 50,
    restarts: int = 10,
    rng: Rng | int | None = None,
    check: bool = True,
) -> Tensor:
    """All adaptive attacks that there are against a defense, one after the other, each on the images that still stand.

    Args:
        model: returns logits (B, K).
        x: (B, C, H, W) float32 or float64 in the threat's pixel box.
        y: (B,) int64, the true labels.
        threat: the ball and the box that the attack may use.
        defense: a name in `ADAPTIVE`; or the defense itself, such as `run.defense`, whose layer of features, transport
            and length of the random step the attacks then take over.
        steps: ascent steps of each restart.
        restarts: of each attack.
        rng: names the random starts: an `Rng` or a seed.
        check: False skips the checks of the inputs, for callers that have made them.

    Returns:
        x_adv, like x, inside the threat; misclassified if any iterate of any attack was, else the one of largest margin
        among their results.

    Raises:
        ArgumentError: a defense without adaptive attacks, or options out of range.
        DataError, ModelError: inputs that would make the result meaningless.
    """
    name: Any = defense if isinstance(defense, type) else getattr(defense, "name", defense)
    one_of("defense", name, ADAPTIVE)
    x, y, rng = begin(model, x, y, threat, restarts, rng, check)
    attacks, own = list(ADAPTIVE[name].items()), _own_options(defense, threat)

    def run(number: int, left: Tensor) -> Tensor:
        kind, attack = attacks[number]
        options = {"steps": steps, "restarts": restarts, "rng": rng.child(kind), "check": False, **own.get(kind, {})}
        if kind == "feature-guided":
            options["guides"] = x  # also of the images that have fallen
        return attack(model, x[left], y[left], threat, **options)

    return over_restarts(Passes(model), x, y, len(attacks), run)


def _own_options(defense: Any, threat: Threat) -> dict[str, dict[str, Any]]:
    """What the attacks take over from a defense's own options; nothing of a name."""
    if isinstance(defense, str):
        return {}
    layer = {"features": getattr(defense, "features", None)}
    names = ("sinkhorn_eps", "sinkhorn_iterations", "debiased")
    transport = {name: getattr(defense, name) for name in names if hasattr(defense, name)}
    alpha = getattr(defense, "rel_alpha", 0) * threat.eps
    steps = {"alphas": (alpha, threat.eps / 4, threat.eps / 2)} if 0 < alpha < threat.eps else {}
    return {"feature": layer, "feature-guided": layer, "transport": {**layer, **transport}, "r-fgsm-pgd": steps}


__all__ = ["ADAPTIVE", "adaptive", "feature_attack", "r_fgsm_pgd", "transport_attack"]

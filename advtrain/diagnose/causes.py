"""What can be wrong with a model that looks robust: a fixed vocabulary, and where each word comes from."""

from __future__ import annotations

from typing import NamedTuple


class Cause(NamedTuple):
    """A reason for which attacks fail although the model can be fooled.

    Args:
        name: the field's term for it, as in `Diagnosis.causes`.
        meaning: what happens, in a sentence.
        advice: what to do next, in a sentence.
    """

    name: str
    meaning: str
    advice: str


TRAINING_MODE = Cause(
    "training mode",
    "Layers of batch normalisation or dropout are in training mode, so an answer depends on the other images of the "
    "batch or on chance. All other figures here are for evaluation mode.",
    "Call model.eval() before judging the model, and look for a forward pass that switches the mode by itself.",
)
NAN = Cause(
    "undefined gradients (NaN)",
    "The input gradient is NaN or infinite, so a gradient step goes nowhere.",
    "Look for a square root, norm, logarithm or division at zero, and add a small constant inside it.",
)
RANDOMNESS = Cause(
    "randomness",
    "The same image gets another answer each time, so one gradient says little and one answer counts for nothing.",
    "Attack the expectation: average the gradient over many passes (eot=20 in advtrain.attacks.apgd) and judge by the "
    "mean answer.",
)
BATCH = Cause(
    "batch dependence",
    "The answer to an image depends on the other images of its batch, which an attacker chooses.",
    "Give batch normalisation running statistics, and judge every image alone.",
)
CONSTANT = Cause(
    "constant predictor",
    "Every image gets the same class. Such a model has nothing to lose under attack, and knows nothing.",
    "Train again with a smaller radius, a lower learning rate or a warm-up of the radius.",
)
RANGE = Cause(
    "input range",
    "The model is more accurate when the pixels are shifted and scaled: it expects other inputs than the [0, 1] it is "
    "given, so neither its accuracy nor its ε mean what they seem to.",
    "Make normalisation the first layer of the model, once, and pass plain pixels in [0, 1].",
)
QUANTISATION = Cause(
    "non-differentiable operation (quantisation)",
    "The output is a staircase: flat almost everywhere, with jumps. Its gradient is zero and says nothing.",
    "Replace the step by the identity in the backward pass (BPDA, Athalye et al. 2018) and attack again.",
)
CUT = Cause(
    "non-differentiable operation (cut gradient)",
    "The output changes smoothly with the image, but autograd reports no gradient: something detaches it, runs outside "
    "autograd, or has a backward pass that returns zero.",
    "Let the gradient through, or replace the operation by a differentiable one in the backward pass (BPDA, Athalye et "
    "al. 2018).",
)
PROBABILITIES = Cause(
    "probabilities instead of logits",
    "The model returns probabilities. Cross-entropy applies its own softmax, and through two of them gradients vanish.",
    "Remove the last softmax. All other figures here are for the logarithm of the probabilities.",
)
SATURATION = Cause(
    "saturation (vanishing gradients)",
    "Units are saturated: the function still changes within the ball, but its gradient is zero or next to nothing.",
    "Attack the values before the saturated units, or scale them down for the attack.",
)
SHATTERED = Cause(
    "shattered gradients",
    "The gradient is there, but does not say how the function changes over a small step: it belongs to a fine ripple, "
    "or its backward pass is wrong.",
    "Replace the offending operation by a smooth one in the backward pass (BPDA), average the gradient over noise, or "
    "attack without gradients.",
)
DYNAMIC = Cause(
    "optimisation in the forward pass (dynamic defense)",
    "The model runs an optimisation of its own on every input, which the attack does not see through.",
    "Differentiate through the optimisation, or attack the network behind it and pass the result on.",
)
SCALING = Cause(
    "logit scaling",
    "The logits are so large that the softmax is saturated: the cross-entropy has no gradient left, while the logits "
    "themselves have an honest one.",
    'Attack a margin: loss="cw" or "dlr" in advtrain.attacks.apgd, or divide the logits by a constant.',
)
SINGLE_STEP = Cause(
    "single-step masking (catastrophic overfitting)",
    "The model withstands its own gradient step and almost nothing else. Its FGSM accuracy says nothing.",
    "Judge by many steps only. Train with several steps, or with a method made against it, such as "
    "N-FGSM or GradAlign.",
)
UNKNOWN = Cause(
    "gradient masking of unknown cause",
    "Attacks that know less than the white-box attack do better than it. So its gradient misleads, for a reason that "
    "none of the checks names.",
    "Write an attack for this very defense, as Tramèr et al. (2020, arXiv 2002.08347) show.",
)

CAUSES = (
    TRAINING_MODE, RANDOMNESS, BATCH, RANGE, CONSTANT, NAN, DYNAMIC, QUANTISATION, CUT, SATURATION, PROBABILITIES,
    SHATTERED, SCALING, SINGLE_STEP, UNKNOWN,
)  # fmt: skip
"""All causes, those that explain others first: this is the order of `Diagnosis.causes`."""

ATHALYE = "Athalye, Carlini and Wagner (2018), arXiv 1802.00420"
CARLINI = "Carlini et al. (2019), arXiv 1902.06705"
CW = "Carlini and Wagner (2017), arXiv 1608.04644"
CROCE = "Croce and Hein (2020), arXiv 2003.01690"
TRAMER = "Tramèr, Carlini, Brendel and Madry (2020), arXiv 2002.08347"
WONG = "Wong, Rice and Kolter (2020), arXiv 2001.03994"
GRADALIGN = "Andriushchenko and Flammarion (2020), arXiv 2007.02617"
VIVEK = "Vivek and Babu (2020), arXiv 2002.00614"
PINTOR = "Pintor et al. (2022), arXiv 2106.09947"
ADAPTIVE = "Croce et al. (2022), arXiv 2202.13711"

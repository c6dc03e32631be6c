"""Wrong options of attacks, defenses, training and judging are refused by name, and leave nothing behind.

As in `test_bad_input.py`: the wrong call, the kind of error, and the whole message.
"""

import dataclasses
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from wrong_calls import (
    ATTACKS,
    CALLS,
    DEFENSES,
    HALF,
    INF,
    NAN,
    THREAT,
    Made,
    data,
    each,
    images,
    labels,
    net,
    pixels,
    refused,
    uncovered,
    wrong,
)  # fmt: skip

import advtrain as at
from advtrain.errors import ArgumentError, DataError, FileError, ModelError


@dataclasses.dataclass
class Holding(at.defenses.Standard):
    thing: Any = None


def everywhere(names, kind, *rows):
    """The same mistakes in all functions of these names that can make them."""
    return [row for given, says in rows for row in wrong(each(names, **given), kind, (given, says))]


def partly(network):
    """A network of which a part is compiled."""
    return nn.Sequential(torch.compile(network))


def in_place(network):
    """The network, compiled without another module around it."""
    network.compile()
    return network


def late(step, total):
    """A schedule that does not take what it is given."""
    return at.schedules.Rate(step / total)


def rate(*values):
    """A schedule that always says this."""
    return Made(lambda: lambda step, total, per_epoch: at.schedules.Rate(*values))


# fmt: off
ATTACK = [
    *everywhere(
        ATTACKS, ArgumentError,
        ({"model": "small-cnn"},
         "model='small-cnn' is not a Module: the model comes first: at.build_model(name, data) makes one"),
        ({"y": THREAT, "threat": Made(lambda: labels()[:2])},
         'threat=an object of type Tensor is not a Threat: write Threat("linf", eps=8/255)'),
        ({"threat": 0.3}, 'threat=0.3 is not a Threat: write Threat("linf", eps=8/255)'),
        ({"loss": "CE"}, "loss='CE' is not one of ce, cw, dlr: did you mean 'ce'?"),
        ({"loss": nn.CrossEntropyLoss},
         "loss=the class CrossEntropyLoss is not made yet: it is a class: write CrossEntropyLoss(reduction='none')"),
        ({"loss": Made(nn.CrossEntropyLoss)},
         "loss='shape ()' is not one value per image, … leave out its mean or sum: reduction='none'"),
        ({"rng": Made(torch.Generator)},
         "rng=an object of type Generator is not an Rng or a seed: write rng=0, or at.Rng(0, 'name')"),
        ({"rng": -1}, "rng=-1 is not an integer of at least 0"),
        ({"bn": "frozen"}, "bn='frozen' is not one of eval, train, batch"),
        ({"steps": 0}, "steps=0 is not an integer of at least 1"),
        ({"steps": "10"}, "steps='10' is not an integer of at least 1: write it without quotes"),
        ({"step_size": 0}, "step_size=0 is not above 0: it is in pixel units; ε/4 is 0.075 here"),
        ({"step_size": "2/255"}, "step_size='2/255' is not above 0: write it without quotes"),
        ({"step_size": 8},
         "step_size=8 is not at most 1, the width of the pixel box: pixels are in [0, 1], did you mean 8/255?"),
        ({"step_size": 9, "threat": at.Threat("l2", 1.0)},
         "step_size=9 is not at most 8, the diagonal of the pixel box of images of 1x8x8: pixels are in [0, 1], did "
         "you mean 9/255?"),
        ({"threat": at.Threat("l2", 128)},
         "eps=128 is not at most 8, the diagonal of the pixel box of images of 1x8x8: pixels are in [0, 1], did you "
         "mean 128/255?"),
        ({"restarts": 0}, "restarts=0 is not an integer of at least 1"),
        ({"restarts": 1.5}, "restarts=1.5 is not an integer of at least 1: write 2"),
    ),
    *everywhere(
        ATTACKS, DataError,
        ({"x": Made(lambda: pixels(NAN)[:2])},
         "x has NaN or infinite pixels in 1 image(s), the first at x[0]; pixels are in [0, 1]: leave these out, "
         "or find the division by zero"),
        ({"x": Made(lambda: (images()[:2] * 255).to(torch.uint8))},
         "x.dtype=torch.uint8 is not float32 or float64: attacks work on pixels in [0, 1]: x / 255"),
        ({"x": Made(lambda: images()[:2].half())},
         "x.dtype=torch.float16 is not float32 or float64: smaller types cannot hold an ε-ball; keep the images "
         "float32 and run the model under torch.autocast"),
        ({"y": Made(lambda: labels()[:3])}, "len(y)=3 is not 2, the number of images: one label for each image"),
        ({"y": Made(lambda: labels()[:2] + 10)},
         "y='12 to 15' is not inside 0..9, for 10 classes: labels are class numbers, counted from 0"),
        ({"threat": HALF},
         "x='0 to 1' is not inside the threat's pixel box [0.2, 0.4]: leave out low and high unless the images "
         "are inside"),
        ({"target": 3}, "target=3 is not a torch.Tensor: torch.as_tensor(labels) makes one"),
        ({"target": Made(lambda: labels()[:2] + 10)},
         "target='12 to 15' is not inside 0..9, for 10 classes: labels are class numbers, counted from 0"),
    ),
    *everywhere(
        ("feature_attack", "transport_attack"), ArgumentError,
        ({"features": "nowhere"},
         "features='nowhere' is not the name of a layer of the model, such as head: its input is the feature vector"),
        ({"margin_steps": 51}, "margin_steps=51 is not at most steps=50: they are the last of them"),
        ({"margin_steps": -1}, "margin_steps=-1 is not an integer of at least 0"),
    ),
    *wrong(
        "r_fgsm", ArgumentError,
        ({"alpha": 0.3}, "alpha=0.3 is not in (0, eps=0.3): the random step must leave room for the gradient step"),
        ({"alpha": "0.1"}, "alpha='0.1' is not in (0, eps=0.3): write it without quotes"),
    ),
    *wrong(
        "mi_fgsm", ArgumentError,
        ({"decay": -1}, "decay=-1 is not at least 0 and finite: 1 is the paper's μ"),
        ({"decay": "1"}, "decay='1' is not at least 0 and finite: write it without quotes"),
    ),
    *wrong(
        "pgd", ArgumentError,
        ({"random_start": "no"},
         "random_start='no' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"random_start": False, "restarts": 2},
         "restarts=2 is not 1 without a random start: every restart would be the same; set random_start=True"),
        ({"keep": "best"}, "keep='best' is not one of any, last: did you mean 'last'?"),
        ({"early_stop": "yes"},
         "early_stop='yes' is not True, False or None: None stands for stopping where nothing changes by it"),
        ({"early_stop": True, "keep": "last"},
         'early_stop=True is not possible with keep="last", bn="eval": dropping images changes which iterate is '
         'kept, and batch statistics; use keep="any", bn="eval"'),
    ),
    *wrong(
        "apgd", ArgumentError,
        ({"eot": 0}, "eot=0 is not an integer of at least 1"),
        ({"rho": 0}, "rho=0 is not in (0, 1]: 0.75 in the paper"),
    ),
    *wrong(
        "square", ArgumentError,
        ({"queries": 0}, "queries=0 is not an integer of at least 1"),
        ({"p_init": 1.5}, "p_init=1.5 is not in (0, 1]: a share of the pixels; 0.8 in AutoAttack"),
    ),
    *wrong(
        "r_fgsm_pgd", ArgumentError,
        ({"alphas": 0.1}, "alphas=0.1 is not lengths in (0, eps=0.3): such as (eps / 4, eps / 2)"),
        ({"alphas": (0.1, 0.5)}, "alphas=(0.1, 0.5) is not lengths in (0, eps=0.3): such as (eps / 4, eps / 2)"),
        ({"losses": "ce"}, "losses='ce' is not a sequence of losses: write losses=(\"ce\", \"cw\")"),
        ({"losses": ("ce", "mse")}, "loss='mse' is not one of ce, cw, dlr"),
    ),
    *wrong(
        "feature_attack", ArgumentError,
        ({"guided": "yes"},
         "guided='yes' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"guides": Made(images)},
         "guides='given' is not of use without guided=True: say guided=True, or leave out the guides"),
    ),
    *wrong(
        "feature_attack", DataError,
        ({"guided": True, "guides": Made(lambda: images()[:, :, :4])},
         "guides='(1, 4, 8), torch.float32 on cpu' is not like x: (1, 8, 8), torch.float32 on cpu: they pass "
         "through the same model"),
    ),
    *wrong(
        "transport_attack", ArgumentError,
        ({"group": 0}, "group=0 is not an integer of at least 1"),
        ({"sinkhorn_eps": 0}, "sinkhorn_eps=0 is not a number above 0: 0.01 is the authors' entropy"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations=0 is not an integer of at least 1"),
        ({"debiased": "yes"},
         "debiased='yes' is not True or False: write it without quotes: of text even 'no' would count as true"),
    ),
    *wrong(
        "adaptive", ArgumentError,
        ({"defense": "pgd"}, "defense='pgd' is not one of rvs, sat-r1, sat-r2, sat-r3"),
        ({"defense": at.defenses.RvS},
         "defense=the class RvS is not one of rvs, sat-r1, sat-r2, sat-r3: write its name in quotes"),
        ({"defense": Made(lambda: at.defenses.PGD(THREAT))}, "defense='pgd' is not one of rvs, sat-r1, sat-r2, sat-r3"),
    ),
    *wrong(
        "Rng", ArgumentError,
        ({"key": 0.5}, "key=(0.5,) is not made of integers and strings: such as at.Rng(0, 'init')"),
    ),
]
DEFENSE = [
    *wrong(
        "Defense", ArgumentError,
        ({},
         "defense='Defense' is not a loss yet: take one of at.defenses, or write its __call__(self, model, "
         "batch, progress)"),
    ),
    *everywhere(
        DEFENSES, ArgumentError,
        ({"threat": 0.3}, 'threat=0.3 is not a Threat: write Threat("linf", eps=8/255)'),
        ({"label_smoothing": "0.1"}, "label_smoothing='0.1' is not in [0, 1): write it without quotes"),
        ({"bn": "Train"}, "bn='Train' is not one of eval, train, batch: did you mean 'train'?"),
        ({"steps": 0}, "steps=0 is not an integer of at least 1"),
        ({"steps": 2.0}, "steps=2.0 is not an integer of at least 1"),
        ({"rel_step": 0}, "rel_step=0 is not above 0: it is …"),
        ({"rel_step": "1.25"}, "rel_step='1.25' is not above 0: write it without quotes"),
        ({"lam": -1}, "lam=-1 is not above …"),
        ({"lam": NAN}, "lam=nan is not above … look where it was computed: it is no finite number"),
    ),
    *wrong(
        "Standard", ArgumentError,
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is not in [0, 1)"),
    ),
    *wrong(
        "GradAlign NuAT FastBAT RvS NFGSM", ArgumentError,
        ({"threat": at.Threat("l2", 1.0)}, "threat.norm='l2' is not linf: … is not defined for it"),
    ),
    *wrong(
        "NFGSM", ArgumentError,
        ({"rel_noise": -2}, "rel_noise=-2 is not above 0: it is k, noise divided by ε; the paper uses 2"),
        ({"rel_clip": 0}, "rel_clip=0 is not above 0 or None: in units of ε; 1 projects onto the threat's own ball"),
    ),
    *wrong(
        "Free", ArgumentError,
        ({"replays": 0}, "replays=0 is not an integer of at least 1"),
    ),
    *wrong(
        "GradAlign", ArgumentError,
        ({"random_start": "no"}, "random_start='no' is not True or False"),
        ({"code": "grad-align"}, "code='grad-align' is not one of gradalign, fast-bat: did you mean 'gradalign'?"),
    ),
    *wrong(
        "TRADES", ArgumentError,
        ({"beta": 0}, "beta=0 is not above 0: it is β; without the divergence it is 'standard'"),
        ({"start": 0}, "start=0 is not above 0: in pixels; at the image itself the gradient is zero"),
    ),
    *wrong(
        "NuAT", ArgumentError,
        ({"rel_noise": 2}, "rel_noise=2 is not in (0, 1]: it is the noise divided by ε; 0.5 is usual"),
        ({"ramp": 1}, "ramp=1 is not True or False"),
    ),
    *wrong(
        "SATR1", ArgumentError,
        ({"samples": 0}, "samples=0 is not an integer of at least 1"),
    ),
    *wrong(
        "SATR2", ArgumentError,
        ({"rel_alpha": 2}, "rel_alpha=2 is not in (0, 1]: it is α/ε; 0.25 is 2/255 at ε = 8/255"),
    ),
    *wrong(
        "SATR3", ArgumentError,
        ({"tau": 1.5}, "tau=1.5 is not in (0, 1]: it is τ, the share of the strong loss; 0.6 is usual"),
        ({"rel_eps_low": 1},
         "rel_eps_low=1 is not in (0, 1): it is ε_low/ε, and the weak perturbation must be weaker than the "
         "strong one; 0.25 is usual"),
        ({"rel_alpha": 0}, "rel_alpha=0 is not in (0, 1]: it is α/ε; 0.25 is 2/255 at ε = 8/255"),
    ),
    *wrong(
        "FastBAT", ArgumentError,
        ({"step_size": 0},
         "step_size=0 is not above 0 or None: the step is not signed: 5000/255 at ε = 8/255 is the authors' choice"),
        ({"implicit": "yes"}, "implicit='yes' is not True or False"),
    ),
    *wrong(
        "RvS", ArgumentError,
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 is not 0: rvs smooths in its own way: set `smoothing`"),
        ({"smoothing": 1}, "smoothing=1 is not in [0, 1)"),
        ({"ot_weight": -1}, "ot_weight=-1 is not at least 0"),
        ({"sinkhorn_eps": 0}, "sinkhorn_eps=0 is not above 0"),
        ({"sinkhorn_iterations": 1.5}, "sinkhorn_iterations=1.5 is not an integer of at least 1"),
        ({"debiased": "yes"}, "debiased='yes' is not True or False"),
        ({"noise_dim": 0}, "noise_dim=0 is not an integer of at least 1"),
        ({"generator_lr": 0}, "generator_lr=0 is not above 0"),
        ({"generator_momentum": 1}, "generator_momentum=1 is not in [0, 1)"),
        ({"clip": 8}, "clip=8 is not in (0, 1], pixels being in [0, 1]"),
        ({"kernel_decay": -1}, "kernel_decay=-1 is not at least 0"),
        ({"features": 3}, "features=3 is not the name of a layer"),
    ),
    *wrong(
        "from_config", ArgumentError,
        ({"config": None}, "config=None is not a dict: it is what a defense's own .config gives"),
        ({"config": {"name": "fgsmm"}}, "defense='fgsmm' is not one of standard, …: did you mean 'fgsm'?"),
        ({"config": {"name": "fgsm", "threat": {"norm": "linf", "eps": 0.3}, "rel_stpe": 1}},
         "config={'name': 'fgsm', 'threat': {'norm': 'linf', 'eps': 0.3}, 'rel_stpe': 1} is not a configuration "
         "of fgsm: FGSM got an unexpected keyword argument 'rel_stpe'…"),
        ({"config": {"name": "fgsm", "threat": {"norm": "linf"}}},
         "config={'name': 'fgsm', 'threat': {'norm': 'linf'}} is not a configuration of fgsm: Threat missing 1 "
         "required positional argument: 'eps'"),
        ({"config": {"name": "fgsm", "class": "PGD"}},
         "class='PGD' is not FGSM, which is registered as 'fgsm': give a class of your own a name of its own"),
    ),
    *wrong(
        "preset", ArgumentError,
        ({"name": "fastat/cifar10-preactresnet18"},
         "preset='fastat/cifar10-preactresnet18' is not one of 50 names, …: did you mean "
         "'fast-at/cifar10-preactresnet18-eps8'?"),
    ),
]
FIT = [
    *wrong(
        "fit", ArgumentError,
        ({"model": Made(lambda: net().eval()), "defense": at.defenses.RvS(THREAT, features="nowhere")},
         "features='nowhere' is not the name of a layer of the model, such as head: its input is the feature vector"),
        ({"on_epoch": at.callbacks.EarlyStopping},
         "on_epoch=the class EarlyStopping is not made yet: it is a class: callbacks=[EarlyStopping(…)]"),
    ),
    *wrong(
        "EarlyStopping", ArgumentError,
        ({"patience": 0}, "patience=0 is not an integer of at least 1"),
        ({"by": 3}, "by=3 is not the name of a figure: such as 'val_pgd' or 'loss'"),
    ),
    *wrong(
        "TensorBoard", ArgumentError,
        ({"folder": 3}, "folder=3 is not the path of a folder: write it as text, or as a Path"),
        ({"resume": 1}, "resume=1 is not True or False"),
    ),
    *wrong(
        "TensorBoard", FileError,
        ({"folder": "a-file"}, "cannot write to a-file: it is no folder; choose another one"),
    ),
    *wrong(
        "fit", ArgumentError,
        ({"model": Made(lambda: at.defenses.FastAT(THREAT)), "defense": Made(net)},
         "model=an object of type FastAT is not a Module: the order is fit(model, defense, data)"),
        ({"defense": at.defenses.PGD(at.Threat("l2", 128))},
         "eps=128 is not at most 8, the diagonal of the pixel box of images of 1x8x8: pixels are in [0, 1], did you "
         "mean 128/255?"),
        ({"defense": "fast-at"},
         "defense='fast-at' is not a Defense: make one with its threat: at.defenses.FastAT(threat)"),
        ({"defense": at.defenses.PGD},
         "defense=the class PGD is not a Defense: make one with its threat: at.defenses.PGD(threat)"),
        ({"defense": Holding(THREAT, thing=torch.zeros(2)), "out": "new"},
         "defense.thing=an object of type Tensor is not what a run folder can hold: numbers, texts and None, in lists "
         "and dicts; make anything else in setup, or train without out"),
        *[({"defense": Holding(THREAT, thing=thing), "out": "new"}, f"defense.thing={came} is not what a run folder …")
          for thing, came in (
              (lambda: 0, "an object of type function"), (numpy.zeros(2), "an object of type ndarray"), (NAN, "nan"),
              ([torch.float32], "an object of type list"), (torch.nn.Linear(1, 1), "an object of type Linear"),
          )],
        ({"defense": THREAT},
         "defense=an object of type Threat is not a Defense: make one with its threat: at.defenses.FastAT(threat)"),
        ({"defense": at.defenses.RvS(THREAT, features="nowhere")},
         "features='nowhere' is not the name of a layer of the model, such as head: its input is the feature vector"),
        ({"defense": at.defenses.GradAlign(THREAT), "compile": True},
         "compile=True is not possible with gradalign: its second-order term needs an uncompiled backward pass"),
        ({"epochs": 0}, "epochs=0 is not an integer of at least 1"),
        ({"epochs": 1.5}, "epochs=1.5 is not an integer of at least 1: write 2"),
        ({"epochs": 30.0}, "epochs=30.0 is not an integer of at least 1: write 30"),
        ({"epochs": "30"}, "epochs='30' is not an integer of at least 1: write it without quotes"),
        ({"batch_size": None}, "batch_size=None is not an integer of at least 1"),
        ({"batch_size": True}, "batch_size=True is not an integer of at least 1: it is a number, not a switch"),
        ({"lr": 0}, "lr=0 is not above 0 and finite"),
        ({"lr": "0.1"}, "lr='0.1' is not above 0 and finite: write it without quotes"),
        ({"lr": NAN}, "lr=nan is not above 0 and finite: look where it was computed: it is no finite number"),
        ({"lr": [0.1, 0.01]}, "lr=[0.1, 0.01] is not above 0 and finite: one number, not several"),
        ({"schedule": "cycle"}, "schedule='cycle' is not one of constant, …: did you mean 'cyclic'?"),
        ({"model": Made(lambda: torch.compile(net())), "defense": at.defenses.GradAlign(THREAT), "out": "new"},
         "model='compiled' is not possible with gradalign: its second-order term needs an uncompiled backward pass: "
         "take model._orig_mod"),
        ({"model": Made(lambda: partly(net())), "defense": at.defenses.FastBAT(THREAT)},
         "model.0='compiled' is not possible with fast-bat: its second-order term needs an uncompiled backward pass: "
         "take model.0._orig_mod"),
        ({"model": Made(lambda: in_place(net())), "defense": at.defenses.FastBAT(THREAT)},
         "model='compiled' is not possible with fast-bat: its second-order term needs an uncompiled backward pass: "
         "build the network without compile()"),
        ({"schedule": torch.optim.lr_scheduler.StepLR},
         "schedule=the class StepLR is not a function of (step, total, per_epoch): write one that returns "
         "at.schedules.Rate(factor), or take the name of one"),
        ({"schedule": 0.5},
         "schedule=0.5 is not a function of (step, total, per_epoch): write one that returns "
         "at.schedules.Rate(factor), or take the name of one"),
        ({"schedule": Made(lambda: late), "out": "new"},
         "schedule=the function late is not a function of (step, total, per_epoch): write one that returns "
         "at.schedules.Rate(factor), or take the name of one"),
        ({"schedule": Made(lambda: lambda step, total, per_epoch: 1.0), "out": "new"},
         "schedule(0, 1, 1)=1.0 is not a Rate: return at.schedules.Rate(factor), the factor on the peak learning rate"),
        ({"schedule": rate(-1.0), "out": "new"},
         "schedule(0, 1, 1).factor=-1.0 is not at least 0 and finite: it multiplies the peak learning rate; 1 is the "
         "peak"),
        ({"schedule": rate(NAN), "out": "new"},
         "schedule(0, 1, 1).factor=nan is not at least 0 and finite: look where it was computed: it is no finite "
         "number"),
        ({"schedule": rate(torch.tensor(1.0))},
         "schedule(0, 1, 1).factor=tensor(1.) is not at least 0 and finite: take the number out of it: .item()"),
        ({"schedule": rate(1, 1.5)},
         "schedule(0, 1, 1).momentum=1.5 is not in [0, 1): None leaves that of the optimizer"),
        ({"schedule": None}, "schedule=None is not one of constant, …: write its name in quotes"),
        ({"optimizer": "SGD"}, "optimizer='SGD' is not one of sgd, adam, adamw: did you mean 'sgd'?"),
        ({"optimizer": torch.optim.SGD},
         "optimizer=the class SGD is not one of sgd, adam, adamw: write its name in quotes"),
        ({"momentum": 1}, "momentum=1 is not in [0, 1)"),
        ({"momentum": "0.9"}, "momentum='0.9' is not in [0, 1): write it without quotes"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001 is not at least 0 and finite"),
        ({"weight_decay": None}, "weight_decay=None is not at least 0 and finite"),
        ({"clip_grad": 0}, "clip_grad=0 is not above 0 and finite"),
        ({"ema": 1}, "ema=1 is not in (0, 1)"),
        ({"ema": True}, "ema=True is not in (0, 1): it is a number, not a switch"),
        ({"compile": "yes"}, "compile='yes' is not True or False"),
        ({"select": "Best"}, "select='Best' is not one of last, best: did you mean 'best'?"),
        ({"select": "best", "validate_every": 0},
         "select='best' is not possible without validation: keep val > 0 and validate_every > 0, or select='last'"),
        ({"on_overfit": "halt"}, "on_overfit='halt' is not one of warn, stop, rewind"),
        ({"on_overfit": "rewind", "validate_every": 0},
         "on_overfit='rewind' is not possible without validation: keep val > 0 and validate_every > 0, or "
         "on_overfit='warn'"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1 is not an integer of at least 0: 0 writes none"),
        ({"checkpoint_every": 100}, "checkpoint_every=100 is not possible without a folder: name one: out='runs/x'"),
        ({"resume": "runs/x"},
         "resume='runs/x' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"resume": True}, "resume=True is not possible without a folder: name one: out='runs/x'"),
        ({"resume": True, "overwrite": True, "out": "x"},
         "resume=True is not possible with overwrite=True: to go on, or to begin anew: choose one"),
        ({"overwrite": "yes"},
         "overwrite='yes' is not True or False: write it without quotes: of text even 'no' would count as true"),
        ({"bf16": "bf16"}, "bf16='bf16' is not True, False or None: None stands for the choice of the device"),
        ({"progress": 1}, "progress=1 is not True, False or None: None stands for a bar where somebody watches"),
        ({"validate_every": -1}, "validate_every=-1 is not an integer of at least 0: 0 switches validation off"),
        ({"val_steps": 0}, "val_steps=0 is not an integer of at least 1"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
        ({"seed": torch.tensor(3)},
         "seed=tensor(3) is not an integer of at least 0: take the number out of it: .item()"),
        ({"device": "gpu"}, "device='gpu' is not available here: …"),
        ({"device": "cuda:99"}, "device='cuda:99' is not available here: …"),
        ({"out": 3}, "out=3 is not the path of a folder: write it as text, or as a Path"),
        ({"out": ""}, "out='' is not the path of a folder: '.' is the current folder"),
        ({"on_epoch": "print"}, "on_epoch='print' is not a function of the epoch's record"),
        ({"callbacks": print},
         "callbacks=<built-in function print> is not a list of functions of the run: also of a single one: "
         "callbacks=[…]"),
        ({"callbacks": [at.callbacks.EarlyStopping]},
         "callbacks='EarlyStopping' is not made yet: it is a class: write EarlyStopping(…)"),
        ({"callbacks": ["early"]}, "callbacks='early' is not a function of the run…"),
    ),
    *wrong(
        "fit", DataError,
        ({"defense": at.defenses.FastAT(HALF)},
         "x='0 to 1' is not inside the threat's pixel box [0.2, 0.4]: leave out low and high unless the images "
         "are inside"),
    ),
    *wrong(
        "fit", FileError,
        ({"out": "a-file"}, "cannot write to a-file: it is no folder; choose another one"),
        ({"out": "a-file/below"}, "cannot write to a-file/below: a-file is no folder; choose another one"),
    ),
]
JUDGES = [
    *wrong(
        "evaluate autoattack diagnose", ArgumentError,
        ({"threat": 0.3}, 'threat=0.3 is not a Threat: write Threat("linf", eps=8/255)'),
        ({"threat": at.Threat}, 'threat=the class Threat is not a Threat: write Threat("linf", eps=8/255)'),
        ({"threat": at.Threat("l2", 128)},
         "eps=128 is not at most 8, the diagonal of the pixel box of images of 1x8x8: pixels are in [0, 1], did you "
         "mean 128/255?"),
        ({"batch_size": 0}, "batch_size=0 is not an integer of at least 1"),
        ({"seed": -1}, "seed=-1 is not an integer of at least 0"),
        ({"seed": 0.5}, "seed=0.5 is not an integer of at least 0: write 0"),
        ({"progress": "yes"},
         "progress='yes' is not True, False or None: None stands for a bar where somebody watches"),
    ),
    *wrong(
        "evaluate autoattack diagnose", DataError,
        ({"threat": HALF},
         "x='0 to 1' is not inside the threat's pixel box [0.2, 0.4]: leave out low and high unless the images "
         "are inside"),
    ),
    *wrong(
        "Protocol", ArgumentError,
        ({"steps": 0}, "steps=0 is not an integer of at least 1"),
        ({"restarts": 2.5}, "restarts=2.5 is not an integer of at least 1: write 2"),
        ({"rel_step": 0}, "rel_step=0 is not above 0 and finite: in units of ε"),
        ({"rel_step": INF},
         "rel_step=inf is not above 0 and finite: look where it was computed: it is no finite number"),
        ({"step_size": "2/255"}, "step_size='2/255' is not above 0 and finite: write it without quotes"),
        ({"keep": "best"}, "keep='best' is not one of any, last: did you mean 'last'?"),
    ),
    *wrong(
        "evaluate", DataError,
        ({"data": THREAT, "threat": Made(data)},
         "data=an object of type Threat is not a Dataset, Split, pair (x, y), torch Dataset or DataLoader: such "
         "as (x, y): images and their labels"),
    ),
    *wrong(
        "evaluate", ArgumentError,
        ({"protocol": "PGD-50-10"}, "protocol='PGD-50-10' is not one of strict, …"),
        ({"protocol": {"steps": 50}}, "protocol={'steps': 50} is not one of strict, …: write its name in quotes"),
        ({"protocol": at.Protocol(step_size=2)},
         "step_size=2 is not at most 1, the width of the pixel box: pixels are in [0, 1], did you mean 2/255?"),
        ({"autoattack": True}, "autoattack=True is not one of standard, plus, rand, fast: write its name in quotes"),
        ({"autoattack": "standrad"},
         "autoattack='standrad' is not one of standard, plus, rand, fast: did you mean 'standard'?"),
    ),
    *wrong(
        "autoattack", DataError,
        ({"x": Made(data)},
         "autoattack x=an object of type Dataset is not a torch.Tensor: torch.from_numpy(array) makes one"),
        ({"x": Made(lambda: images()[:2] * 255)},
         "autoattack x='0 to 255' is not inside [0, 1]: divide by 255: x / 255, or pass uint8: x.to(torch.uint8)"),
        ({"y": Made(lambda: labels()[:1])},
         "len(autoattack y)=1 is not 2, the number of images: one label for each image"),
        ({"y": Made(lambda: -labels()[:2])},
         "autoattack y='-5 to -2' is not at least 0: labels are class numbers, counted from 0"),
    ),
    *wrong(
        "autoattack", ArgumentError,
        ({"y": THREAT, "threat": Made(lambda: labels()[:2])},
         'threat=an object of type Tensor is not a Threat: write Threat("linf", eps=8/255)'),
        ({"version": "Standard"},
         "version='Standard' is not one of standard, plus, rand, fast: did you mean 'standard'?"),
        ({"version": None}, "version=None is not one of standard, plus, rand, fast: write its name in quotes"),
        ({"state": True}, "state=True is not the path of a file: write it as text, or as a Path"),
        ({"examples": 3}, "examples=3 is not True, None or a path that ends in .npy: such as 'adversarial.npy'"),
        ({"examples": "adv.npz", "state": "new/aa.state"},
         "examples='adv.npz' is not a path that ends in .npy: write adv.npy"),
        ({"examples": "same.npy", "state": "same.npy"},
         "examples='same.npy' is not another file than the state: give each its own"),
        ({"bf16": 1}, "bf16=1 is not True or False"),
    ),
    *wrong(
        "autoattack", FileError,
        ({"state": "a-file"},
         "a-file is damaged or no state of AutoAttack: …; delete it"),
        ({"state": "a-file/state"}, "cannot write to a-file: it is no folder; choose another one"),
        ({"examples": "taken.npy", "state": "aa.state"},
         "cannot keep adversarial examples in taken.npy.partial: Is a directory; choose a folder you may write to"),
        ({"examples": "a-file/adv.npy", "state": "aa.state"},
         "cannot write to a-file: it is no folder; choose another one"),
    ),
    *wrong(
        "diagnose", ArgumentError,
        ({"images": 0}, "images=0 is not an integer of at least 1"),
        ({"images": "256"}, "images='256' is not an integer of at least 1: write it without quotes"),
        ({"surrogate": "small-cnn"},
         "surrogate='small-cnn' is not a Module: a network that answers the same question, or None"),
    ),
    *wrong(
        "diagnose", ModelError,
        ({"surrogate": Made(lambda: net(3))},
         "surrogate: the model returns 3 logits and the data have 10 classes: build it with num_classes=10"),
        ({"surrogate": Made(lambda: net(channels=3))},
         "surrogate: the model fails on a batch of shape (2, 1, 8, 8), torch.float32 on cpu: RuntimeError: "
         "running_mean should contain 1 elements not 3; its normalisation takes 3 channels and the images have 1"),
    ),
    *wrong(
        "budget", ArgumentError,
        ({"defenses": "pgd"}, "defenses='pgd' is not a Defense: make one with its threat: at.defenses.PGD(threat)"),
        ({"defenses": []}, "defenses=[] is not at least one Defense"),
        ({"model": "small-cnn"}, "model='small-cnn' is not a Module: at.build_model(name, data) makes one"),
        ({"epochs": 0}, "epochs=0 is not an integer of at least 1"),
        ({"batch_size": 0}, "batch_size=0 is not an integer of at least 1"),
        ({"speed": 3}, "speed=3 is not a Speed: calibrate(model, data) measures one"),
    ),
    *wrong(
        "budget", DataError,
        ({"data": "digits"}, "data='digits' is not a data set: load it first: at.load_data('digits')"),
    ),
    *wrong(
        "cost", ArgumentError,
        ({"defense": at.defenses.PGD},
         "defense=the class PGD is not a Defense: make one with its threat: at.defenses.PGD(threat)"),
        ({"model": None}, "model=None is not a Module: the order is cost(defense, model, data)"),
    ),
]
ROWS = [*ATTACK, *DEFENSE, *FIT, *JUDGES]
# fmt: on


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_it_is_refused_by_name_and_leaves_nothing_behind(row, world):
    refused(row)


@pytest.mark.parametrize("call", sorted({row.call for row in ROWS} - {"Defense"}))
def test_without_the_mistake_the_call_works(call, tmp_path, monkeypatch):
    """So that it is the mistake which is refused."""
    monkeypatch.chdir(tmp_path)
    function, given = CALLS[call]
    function(**given())


UNCHECKED = {
    *((name, "check") for name in ATTACKS),  # it is there to skip checks: whatever counts as false does
}  # fmt: skip


def test_every_parameter_has_a_mistake_in_the_table():
    """Of each attack, of each field of each defense, and of what trains and judges: a new one comes with a row here.

    Mistakes in models and data are in `test_bad_input.py`.
    """
    calls = *ATTACKS, *DEFENSES, "fit", "evaluate", "autoattack", "diagnose", "Protocol", "budget"
    calls += "EarlyStopping", "TensorBoard"
    assert {(call, name) for call, name in uncovered(calls, ROWS) if name not in ("model", "data")} == UNCHECKED

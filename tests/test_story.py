"""What the book tells of catastrophic overfitting is what the package does, at every seed."""

import pytest

import advtrain as at

THREAT = at.Threat("linf", 0.3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))])
@pytest.mark.filterwarnings("ignore::advtrain.errors.OverfittingWarning")
def test_fgsm_training_looks_better_than_pgd_training_and_is_worse(seed):
    """`advtrain train fgsm` against `pgd` on digits: more accurate under FGSM, much less under PGD-50-10."""
    data = at.load_data("digits", seed=seed)
    reports, notes = {}, {}
    for defense in (at.defenses.FGSM(THREAT), at.defenses.PGD(THREAT)):
        run = at.fit(at.build_model("small-cnn", data, seed=seed), defense, data, seed=seed)
        reports[defense.name], notes[defense.name] = at.evaluate(run.model, data.test, THREAT, seed=seed), run.notes
    assert reports["fgsm"]["fgsm"] > reports["pgd"]["fgsm"]
    assert reports["fgsm"]["pgd"] < reports["pgd"]["pgd"] - 0.10
    assert "\nGradient masking: " in str(reports["fgsm"]) and "\nGradient masking: " not in str(reports["pgd"])
    assert notes["fgsm"] and not notes["pgd"]

"""The examples in the package's docstrings are true, the most used names have one, and the pages' own code runs."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import advtrain as at

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["advtrain"] + [
    name for _, name, _ in pkgutil.walk_packages(at.__path__, "advtrain.") if name != "advtrain.__main__"
]
DRAWING = ("advtrain.pictures", "advtrain.widgets", "advtrain.explorer", "advtrain.plot")  # need the extra `book`

# Whoever types help(...) of one of these sees how it is called, and what comes.
SHOWN = """
fit evaluate autoattack diagnose Threat load_data as_dataset build_model load_model preset cost budget compare
load_results recorded attacking Rng side_by_side attacks.fgsm attacks.pgd attacks.apgd measure.logit_gap
measure.loss_curve measure.gradient_alignment measure.linearity transport.sinkhorn transport.cost_matrix
synthesis.synthesize synthesis.pairwise_cosine schedules.get_schedule widgets.slider widgets.grid widgets.compare
errors.bad report.wilson results.sign_flip results.mcnemar results.holm
""".split()


def module_of(name):
    if name.startswith(DRAWING):
        pytest.importorskip("ipywidgets")
        pytest.importorskip("matplotlib")
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(module_of(name)).failed == 0


@pytest.mark.parametrize("name", SHOWN)
def test_the_most_used_names_have_an_example(name):
    """In the docstring of the thing itself, or of its module where several are shown together."""
    home, _, last = f"advtrain.{name}".rpartition(".")
    thing = getattr(at if home == "advtrain" else module_of(home), last)
    called = re.compile(rf"\b{last}\(")
    for text in (thing.__doc__, inspect.getmodule(thing).__doc__):
        if any(called.search(example.source) for example in doctest.DocTestParser().get_examples(text or "")):
            return
    pytest.fail(f"no example in the docstring of {name} calls it")


BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PAGES = {path.stem: BLOCK.findall(path.read_text(encoding="utf-8")) for path in (ROOT / "book" / "api").glob("*.md")}
ELSEWHERE = {"data"}  # photographs and another package's rows: tests/test_data_user.py brings some
LONG = {"diagnose", "models", "plot"}  # a whole diagnosis, PGD-50-10 of a ResNet, every figure


@pytest.mark.filterwarnings("ignore:epoch .* the model gives every image the same label")  # so few images
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in LONG))
        for name in sorted(PAGES)
        if PAGES[name] and name not in ELSEWHERE
    ],
)
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    """As it stands there, after `import advtrain as at` and with the things it speaks of: few images, a small network.

    Sets that are not part of the package, which `load_data` would ask to be fetched, are replaced by few random images,
    and the trained transformer, which its library would download, by a small one of the same kind.
    """
    if page in LONG:
        pytest.importorskip("matplotlib")
        pytest.importorskip("timm")
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    digits, threat = at.load_data("digits"), at.Threat("linf", eps=0.3)
    x, y = digits.test.images()[:20], digits.test.y[:20]
    data = at.as_dataset((x, y), test=(x, y), val=5, num_classes=10)
    model, other = (at.build_model("small-cnn", data) for _ in range(2))
    run = at.fit(model, at.defenses.FastAT(threat), data, epochs=1)
    run0 = run1 = run2 = run3 = run4 = run5 = report_a = report_b = at.evaluate(model, data, threat)
    results = at.load_results("digits")

    def few(name, **options):
        if name == "digits":
            return digits
        shape = (1, 28, 28) if name == "mnist" else (3, 32, 32)
        return at.as_dataset((torch.rand(10, *shape), torch.arange(10)), test=2, val=2, num_classes=10, name=name)

    monkeypatch.setattr(at, "load_data", few)
    images = at.as_dataset(data).train.images()
    if page == "training":
        monkeypatch.chdir(run.export("exported"))
    if page == "models":
        import timm
        import transformers

        def classifier(name, num_labels, ignore_mismatched_sizes):
            small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
            options = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=num_labels, **small)
            return transformers.ViTForImageClassification(options)

        class SoftNet(torch.nn.Sequential):
            def __init__(self):
                super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
                self.softmax = torch.nn.Softmax(1)

        hub = {"AutoImageProcessor": lambda name: transformers.ViTImageProcessor(),
               "AutoModelForImageClassification": classifier}  # fmt: skip
        for name, instead in hub.items():
            monkeypatch.setattr(getattr(transformers, name), "from_pretrained", instead)
        torch.save(timm.create_model("resnet26", num_classes=10).state_dict(), "weights.pt")
        torch.save(SoftNet().state_dict(), "softnet.pt")
    names = {**locals(), "at": at, "torch": torch}
    for code in PAGES[page]:
        exec(compile(code, f"{page}.md", "exec"), names)

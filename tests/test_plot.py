"""Figures say what the objects behind them say: their heights, lines and images are compared with the numbers."""

import itertools
import sys

import numpy as np
import pytest
import torch
from torch import nn

import advtrain as at
from advtrain.errors import ArgumentError, DataError, ModelError
from advtrain.report import Row

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402

LINF, L2 = at.Threat("linf", 0.2), at.Threat("l2", 0.6)
REPORT = at.Report(LINF, [Row("clean", 90, 100), Row("fgsm", 60, 100), Row("pgd", 10, 100)])


@pytest.fixture(scope="module")
def data():
    return at.load_data("digits").test[:40]


@pytest.fixture(scope="module")
def model():
    """Untrained, but with features large enough for an attack to do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.5), nn.Tanh(), nn.Linear(24, 10)
        )
    net.train()
    net[2].eval()
    return net


def made(epochs=4, notes=(), best=3, **more):
    """A run as `fit` leaves it, its figures made up."""
    history = [
        {"epoch": i, "loss": 2.0 / i, "accuracy": 0.1 * i, "val_clean": 0.2 * i, "val_fgsm": 0.15 * i, "val_pgd": 0.1}
        for i in range(1, epochs + 1)
    ]
    data = at.load_data("digits")
    network = at.build_model("small-cnn", data, width=2)
    return at.Run(
        network, at.defenses.FGSM(LINF), data, {"epochs": epochs}, history, list(notes), best, "finished", **more
    )


def texts(figure):
    """Everything that is written in a figure."""
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


class TestHistory:
    def test_draws_what_was_recorded(self):
        run = made()
        loss, accuracy = run.plot().axes
        assert loss.lines[0].get_ydata().tolist() == [record["loss"] for record in run.history]
        drawn = lines(accuracy)
        for label, key in (
            ("validation, PGD", "val_pgd"),
            ("validation, FGSM", "val_fgsm"),
            ("validation, clean", "val_clean"),
        ):
            assert drawn[label].get_xdata().tolist() == [1, 2, 3, 4]
            assert drawn[label].get_ydata().tolist() == [record[key] for record in run.history]
        assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch" and accuracy.get_ylabel() == "accuracy"

    def test_marks_the_weights_that_were_kept_and_what_was_noted(self):
        note = "epoch 4: catastrophic overfitting. Validation accuracy under PGD fell from 40% to 3%."
        figure = at.plot.history(made(notes=[note, "interrupted after 4 whole epochs"]))
        drawn = lines(figure.axes[1])
        assert drawn["weights of epoch 3 kept"].get_xdata() == [3, 3]
        assert drawn["epoch 4: catastrophic overfitting"].get_xdata() == [4, 4]
        below = figure.get_supxlabel()
        assert "fell from 40% to 3%." in below and "interrupted after 4 whole epochs" in below

    def test_lines_differ_in_more_than_colour(self):
        drawn = [
            line for line in made().plot().axes[1].lines if line.get_label().startswith(("validation", "training"))
        ]
        looks = [(line.get_linestyle(), line.get_marker()) for line in drawn]
        assert len(looks) == 4 and all(a[0] != b[0] and a[1] != b[1] for a, b in itertools.combinations(looks, 2))

    def test_epochs_without_validation_are_left_out_and_nan_is_a_gap(self):
        run = made()
        del run.history[1]["val_pgd"]
        run.history[2]["loss"] = None  # as recorded runs write NaN
        loss, accuracy = run.plot().axes
        assert lines(accuracy)["validation, PGD"].get_xdata().tolist() == [1, 3, 4]
        assert np.isnan(loss.lines[0].get_ydata()[2])
        for record in run.history:
            for key in ("val_clean", "val_fgsm", "val_pgd"):
                record.pop(key, None)
        assert not any(label.startswith("validation") for label in lines(run.plot().axes[1]))

    def test_refuses_what_has_no_history(self):
        with pytest.raises(ArgumentError, match="run=an object of type Report is not a Run: pass what at.fit"):
            at.plot.history(REPORT)
        with pytest.raises(ArgumentError, match="at least one whole epoch"):
            made(epochs=0).plot()


class TestReport:
    def test_bars_and_intervals_are_those_of_the_report(self):
        figure = REPORT.plot()
        (ax,) = figure.axes
        widths = [bar.get_width() for bar in ax.patches[:3]]
        assert widths == [0.9, 0.6, 0.1]
        names = {place: label.get_text() for place, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
        assert [names[bar.get_center()[1]] for bar in ax.patches[:3]] == ["clean", "fgsm", "pgd"]
        ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
        assert np.allclose(ends, [row.interval for row in REPORT.rows])
        assert {"90.0%", "60.0%", "10.0%", "100 images, ℓ∞ ε = 0.2"} <= set(texts(figure))
        assert "95% interval" in ax.get_xlabel() and "Gradient masking" in figure.get_supxlabel()

    def test_radii_are_written_as_the_papers_write_them(self):
        assert "100 images, ℓ∞ ε = 8/255" in texts(at.Report(at.Threat("linf", 8 / 255), REPORT.rows).plot())

    def test_of_autoattack(self):
        rows = [Row("clean", 9, 10), Row("apgd-ce", 5, 10), Row("autoattack", 4, 10)]
        found = at.AutoAttackReport(LINF, rows, "standard", warnings=["gradients vanish"]).plot()
        assert found.axes[0].patches[2].get_width() == 0.4
        assert {"all together", "many steps"} <= set(
            texts(found)
        ) and "Warning: gradients vanish" in found.get_supxlabel()

    def test_kinds_differ_in_more_than_colour(self):
        bars = REPORT.plot().axes[0].patches[:3]
        assert bars[0].get_hatch() != bars[1].get_hatch() != bars[2].get_hatch()

    def test_draws_into_the_callers_axes(self):
        figure = Figure()
        left, right = figure.subplots(1, 2)
        assert at.plot.report(REPORT, ax=right) is figure and REPORT.plot(left) is figure
        assert len(left.patches) == len(right.patches) == 3 and figure.get_supxlabel() == ""
        with pytest.raises(ArgumentError, match="ax='Figure' is not matplotlib axes"):
            REPORT.plot(figure)

    def test_refuses_what_is_none(self):
        with pytest.raises(ArgumentError, match="report=an object of type Run is not a Report"):
            at.plot.report(made())
        with pytest.raises(ArgumentError, match="at least one row"):
            at.Report(LINF).plot()


@torch.no_grad()
def loss_of(model, x, y):
    flags = [module.training for module in model.modules()]
    value = nn.functional.cross_entropy(model.eval()(x), y).item()
    for module, flag in zip(model.modules(), flags, strict=True):
        module.training = flag
    return value


class TestLossSurface:
    @pytest.mark.parametrize(("threat", "attack"), [(LINF, "fgsm"), (LINF, "pgd"), (L2, "fgsm")])
    def test_corners_are_losses_computed_directly(self, model, data, threat, attack):
        x, y = data.images()[:1], data.y[:1]
        numbers = at.plot.loss_surface(model, x, y, threat, attack=attack, points=5).numbers
        assert numbers["loss"].shape == (5, 5) and numbers["a"].tolist() == [-1, -0.5, 0, 0.5, 1]
        assert numbers["loss"][2, 2] == pytest.approx(loss_of(model, x, y), rel=1e-5)
        if attack == "fgsm":  # at b = 0, a = 1
            x_adv = at.attacks.fgsm(model, x, y, threat)
            assert numbers["loss"][2, 4] == pytest.approx(loss_of(model, x_adv, y), rel=1e-4)
            assert numbers["loss"][2, 4] > numbers["loss"][2, 2]

    def test_every_point_is_admissible(self, data):
        seen = []

        class Watched(nn.Module):
            def forward(self, images):
                seen.append(images.detach())
                return torch.stack([images.flatten(1).sum(1), images.flatten(1).norm(dim=1)], 1)

        x, y = data.images()[:1], torch.tensor([1])
        at.plot.loss_surface(Watched(), x, y, LINF, points=7, batch_size=20)
        grid = torch.cat(seen[-3:])
        assert len(grid) == 49 and LINF.contains(grid, x.expand_as(grid)).all()

    def test_says_which_directions_they_are(self, model, data):
        figure = at.plot.loss_surface(model, data.images()[0], int(data.y[0]), L2, attack="pgd", points=3, seed=7)
        ax = figure.axes[0]
        assert ax.get_xlabel() == "a, along PGD's change u"
        assert ax.get_ylabel() == "b, along v: a random direction of length ε (seed 7)"
        assert "cross-entropy (nats)" in texts(figure)
        other = at.plot.loss_surface(model, data.images()[0], data.y[0], L2, attack="pgd", points=3, seed=8)
        assert not np.allclose(figure.numbers["loss"], other.numbers["loss"])

    def test_a_flat_loss_is_drawn_too(self, data):
        class Flat(nn.Module):
            def forward(self, images):
                return 0 * images.flatten(1)[:, :10]

        figure = at.plot.loss_surface(Flat(), data.images()[:1], data.y[:1], LINF, points=3)
        figure.draw_without_rendering()
        assert np.allclose(figure.numbers["loss"], np.log(10))

    def test_refuses(self, model, data):
        x, y = data.images()[:1], data.y[:1]
        for error, match, arguments, options in (
            (DataError, "that of one image", (data.images(), data.y, LINF), {}),
            (DataError, "x='ndarray' is not a tensor", (x.numpy(), y, LINF), {}),
            (DataError, "divide by 255", (x * 255, y, LINF), {}),
            (ArgumentError, "points=4 is not odd", (x, y, LINF), {"points": 4}),
            (ArgumentError, "attack='pdg' is not one of", (x, y, LINF), {"attack": "pdg"}),
            (ArgumentError, "attack=7 is not a name or a function", (x, y, LINF), {"attack": 7}),
            (ArgumentError, "threat=0.3 is not a Threat", (x, y, 0.3), {}),
        ):
            with pytest.raises(error, match=match):
                at.plot.loss_surface(model, *arguments, **options)


class TestAdversarialGrid:
    def test_shows_the_images_the_change_and_the_answers(self, model, data):
        x, y = data.images()[:3], data.y[:3]
        figure = at.plot.adversarial_grid(model, x, y, LINF, attack="fgsm", classes="abcdefghij")
        numbers, axes = figure.numbers, np.reshape(figure.axes, (3, 3))
        assert torch.equal(numbers["x_adv"], at.attacks.fgsm(model, x, y, LINF))
        assert numbers["magnify"] == 2.5 and "change\n× 2.5" in texts(figure) and "after\nFGSM" in texts(figure)
        for i in range(3):
            shown = [np.asarray(ax.images[0].get_array())[..., 0] for ax in axes[:, i]]
            change = numbers["x_adv"][i, 0] - x[i, 0]
            expected = x[i, 0], 0.5 + 2.5 * change, numbers["x_adv"][i, 0]
            assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(shown, expected, strict=True))
            for ax, share in (
                (axes[0, i], numbers["probabilities"][0, i]),
                (axes[2, i], numbers["probabilities"][1, i]),
            ):
                answer = int(share.argmax())
                truth = "" if answer == y[i] else f"\nnot {'abcdefghij'[y[i]]}"
                assert ax.get_xlabel() == f"{'abcdefghij'[answer]}, {share[answer]:.0%}{truth}"
                assert ax.xaxis.label.get_weight() == ("bold" if truth else "normal")

    def test_takes_the_callers_attack_and_factor(self, model, data):
        def brighter(model, x, y, threat):
            return threat.project(x + threat.eps, x)

        figure = at.plot.adversarial_grid(model, data.images()[:2], data.y[:2], LINF, attack=brighter, magnify=1)
        assert "after\nbrighter" in texts(figure) and figure.numbers["change"].min() >= 0
        with pytest.raises(ArgumentError, match="wrong returned float, not images of shape"):
            at.plot.adversarial_grid(model, data.images()[:2], data.y[:2], LINF, attack=named("wrong", 0.5))

    def test_refuses(self, model, data):
        x, y = data.images(), data.y
        with pytest.raises(ArgumentError, match="at most 12 images"):
            at.plot.adversarial_grid(model, x, y, LINF)
        with pytest.raises(ArgumentError, match=r"len\(classes\)=2 is not at least 10"):
            at.plot.adversarial_grid(model, x[:2], y[:2], LINF, classes=["no", "yes"])
        with pytest.raises(ArgumentError, match="magnify=-1 is not above 0"):
            at.plot.adversarial_grid(model, x[:2], y[:2], LINF, magnify=-1)
        with pytest.raises(ModelError):
            at.plot.adversarial_grid(nn.Sequential(model, nn.Softmax(1)), x[:2], y[:2], LINF)


def named(name, result):
    def attack(model, x, y, threat):
        return result

    attack.__name__ = name
    return attack


class TestEpsCurve:
    def test_begins_at_the_clean_accuracy_and_has_the_intervals(self, model, data):
        figure = at.plot.eps_curve(model, data, LINF, eps=[0.2, 0, 0.1], steps=3)
        report = at.evaluate(model, data, LINF, protocol=at.Protocol(steps=1, restarts=1), progress=False)
        assert figure.numbers["eps"] == (0.0, 0.1, 0.2) and set(figure.numbers["rows"]) == {"fgsm", "pgd"}
        ax = figure.axes[0]
        for name, title in (("fgsm", "FGSM"), ("pgd", "PGD")):
            rows = figure.numbers["rows"][name]
            assert rows[0].accuracy == report["clean"] and rows[0].interval == report.row("clean").interval
            assert lines(ax)[title].get_ydata().tolist() == [row.accuracy for row in rows]
        assert figure.numbers["rows"]["fgsm"][2].correct == report.row("fgsm").correct
        assert (figure.numbers["rows"]["fgsm"][2].verdicts == report.row("fgsm").verdicts).all()
        band = ax.collections[0].get_paths()[0].vertices
        for eps, row in zip((0.0, 0.1, 0.2), figure.numbers["rows"]["fgsm"], strict=True):
            ends = band[np.isclose(band[:, 0], eps), 1]
            assert (ends.min(), ends.max()) == pytest.approx(row.interval)
        assert ax.get_xlabel() == "radius ε (ℓ∞, pixels in [0, 1])" and "interval" in ax.get_ylabel()

    def test_radii_end_at_the_box_and_read_as_in_papers(self, model, data):
        threat = at.Threat("linf", 8 / 255)
        ax = at.plot.eps_curve(model, data[:8], threat, attack="fgsm").axes[0]
        assert [label.get_text() for label in ax.get_xticklabels()] == [
            "0", "2/255", "4/255", "6/255", "8/255", "12/255", "16/255"
        ]  # fmt: skip
        assert "the threat's ε = 8/255" in lines(ax)
        wide = at.plot.eps_curve(model, data[:8], at.Threat("linf", 0.8), attack="fgsm").numbers["eps"]
        assert max(wide) == 1

    def test_refuses(self, model, data):
        for match, options in (
            (r"eps=\[0, 8\] is not a list of radii from 0 to 1: write \[0, 4/255", {"eps": [0, 8]}),
            (r"eps=\[\] is not a list", {"eps": []}),
            ("eps=0.3 is not a list", {"eps": 0.3}),
            ("attack='pdg' is not one of .* did you mean 'pgd'", {"attack": "pdg"}),
            ("several of different names", {"attack": ["pgd", "pgd"]}),
            ("steps=0 is not an integer of at least 1", {"steps": 0}),
        ):
            with pytest.raises(ArgumentError, match=match):
                at.plot.eps_curve(model, data, LINF, **options)
        with pytest.raises(DataError):
            at.plot.eps_curve(model, "digits", LINF)


def test_results_are_drawn_with_their_spread():
    results = at.load_results("digits")
    (ax,) = results.plot().axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == results.methods
    row = results.table()[names.index("pgd")]
    pgd = next(bars for bars in ax.containers if bars.get_label() == "PGD")
    place = list(pgd[0].get_ydata()).index(ax.get_yticks()[names.index("pgd")])
    assert pgd[0].get_xdata()[place] == row["pgd"].mean
    low, high = pgd[2][0].get_segments()[place][:, 0]
    assert (low, high) == pytest.approx((row["pgd"].low, row["pgd"].high))


def everything(model, data):
    """One figure of each kind that looks at a model."""
    x, y = data.images()[:2], data.y[:2]
    yield at.plot.loss_surface(model, x[:1], y[:1], LINF, points=3)
    yield at.plot.adversarial_grid(model, x, y, LINF, steps=2)
    yield at.plot.eps_curve(model, data[:6], LINF, steps=2)


def test_a_model_is_left_as_it_was(model, data):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[1].bias.requires_grad_(False)
    flags = [module.training for module in model.modules()]
    state, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    list(everything(model, data))
    assert [module.training for module in model.modules()] == flags and not model[2].training
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    model.zero_grad()
    model[1].bias.requires_grad_(True)


def test_no_window_no_setting_and_no_figure_is_left(model, data):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before, backend, open_ = dict(matplotlib.rcParams), matplotlib.get_backend(), pyplot.get_fignums()
    for figure in (*everything(model, data), REPORT.plot(), made().plot()):
        figure.draw_without_rendering()
        assert isinstance(figure, Figure) and figure.canvas.manager is None
    assert dict(matplotlib.rcParams) == before and matplotlib.get_backend() == backend
    assert pyplot.get_fignums() == open_


def test_a_notebook_shows_a_figure_without_pyplot():
    formatters = pytest.importorskip("IPython.core.formatters")
    shown, _ = formatters.DisplayFormatter().format(REPORT.plot())
    assert shown["image/png"][:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch):
    drawing = "advtrain.plot", "advtrain.diagnose.figure", "advtrain.results.figure"
    for name in [name for name in sys.modules if name.startswith(drawing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(at, "plot", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: at.plot, REPORT.plot, made().plot, at.load_results("digits").plot):
        with pytest.raises(ImportError, match="advtrain.plot needs matplotlib: pip install matplotlib"):
            call()

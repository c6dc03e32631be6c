"""What a notebook and a terminal show of an object: its own numbers, escaped, in tables that can be read aloud."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import advtrain as at
from advtrain import markup, pictures
from advtrain.report import Row

LINF = at.Threat("linf", 8 / 255)


@pytest.fixture(scope="module")
def data():
    return at.load_data("digits")


@pytest.fixture
def run(data):
    values = [(2.0, 0.1, 0.5, 0.3, 0.2), (1.0, 0.4, 0.7, 0.5, 0.35), (float("nan"), 0.6, 0.8, 0.6, 0.3)]
    names = "loss", "accuracy", "val_clean", "val_fgsm", "val_pgd"
    history = [{"epoch": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(values, start=1)]
    options = {"epochs": 3, "lr": 0.1, "batch_size": 64, "optimizer": "sgd", "schedule": "cyclic", "seed": 5}
    model = at.build_model("small-cnn", data, width=2)
    return at.Run(
        model, at.defenses.FGSM(LINF), data, options, history, ["epoch 3: <odd>"], 2, "finished", {"device": "cpu"}
    )


class Reader(HTMLParser):
    """Tables as lists of rows of texts; every tag closed, every head with a scope."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tables, self.captions, self.alts, self.cell = [], [], [], [], None
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
        if tag in ("img", "svg"):
            self.alts.append(attributes["alt" if tag == "img" else "aria-label"])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th", "caption"):
            self.cell = ""
        assert "id" not in attributes and "color:" not in attributes.get("style", "")
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # of SVG

    def handle_data(self, text):
        if self.cell is not None:
            self.cell += text

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
        if tag == "caption":
            self.captions.append(self.cell)
        if tag in ("td", "th", "caption"):
            self.cell = None


def pixels(html):
    data = re.search(r"base64,([^\"]+)", html)[1]
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))


def test_a_table_escapes_and_names_rows_and_columns():
    found = Reader(markup.table(["<a>", "b"], [["&", "<i>"]], caption='"c"', below=["<p>"]))
    assert found.tables == [[["<a>", "b"], ["&", "<i>"]]] and found.captions == ['"c"']
    plain = markup.table(None, [["a", "b"]], named=False)
    assert "<th" not in plain and "<thead" not in plain and "<caption" not in plain


class TestReport:
    report = at.Report(LINF, [Row("clean", 90, 100), Row("pgd", 30, 100, "<steps>")], warnings=["<odd>"])

    def test_html(self):
        html = self.report._repr_html_()
        found = Reader(html)
        assert found.captions == ["100 images, ℓ∞ ε = 8/255"]
        head, clean, pgd = found.tables[0]
        assert head == ["attack", "accuracy", "95% interval", "settings"] and clean[:2] == ["clean", "90.0%"]
        low, high = self.report.row("pgd").interval
        assert pgd == ["pgd", "30.0%", f"{low:.1%} – {high:.1%}", "<steps>"]
        assert "<p>Warning: &lt;odd&gt;</p>" in html

    def test_text(self):
        assert repr(self.report) == str(self.report)
        assert str(self.report).startswith("100 images, ℓ∞ ε = 8/255\nclean")

    def test_of_autoattack(self):
        rows = [Row("clean", 9, 10), Row("autoattack-fast", 4, 10)]
        html = at.AutoAttackReport(LINF, rows, "fast")._repr_html_()
        assert Reader(html).tables[0][2][:2] == ["autoattack-fast", "40.0%"] and "not the standard one" in html


class TestRun:
    def test_html(self, run):
        html = run._repr_html_()
        found = Reader(html)
        facts = dict(found.tables[0])
        assert facts["model"] == f"small-cnn, {sum(p.numel() for p in run.model.parameters()):,} parameters"
        assert facts["defense"] == repr(run.defense) and facts["data"] == "digits"
        assert facts["status"] == "finished after 3 of 3 epochs" and "seed 5" in facts["training"]
        assert found.tables[1] == [
            ["epoch", "loss", "training", "clean", "FGSM", "PGD"],
            ["epoch 3, last", "–", "60.0%", "80.0%", "60.0%", "30.0%"],
            ["epoch 2, kept", "1", "40.0%", "70.0%", "50.0%", "35.0%"],
        ]
        assert found.captions[0] == "Run of fgsm, ℓ∞ ε = 8/255" and "<p>epoch 3: &lt;odd&gt;</p>" in html
        assert "PGD from 0.2 to 0.3" in found.alts[0] and len(html) < 6000

    def test_the_sketch_is_of_the_curves(self, run):
        curves = re.findall(r'<polyline points="([^"]+)"', run._repr_html_())
        assert [len(points.split()) for points in curves] == [2, 3, 3, 3]  # a loss that is NaN is left out
        heights = [float(point.partition(",")[2]) for point in curves[1].split()]  # under PGD
        assert heights[1] < heights[2] < heights[0]  # downwards: 0.35, 0.3, 0.2

    def test_text(self, run):
        lines = str(run).splitlines()
        assert lines[0] == "Run of fgsm, ℓ∞ ε = 8/255" and "  status    finished after 3 of 3 epochs" in lines
        assert any(line.split() == ["epoch", "2,", "kept", "1", "40.0%", "70.0%", "50.0%", "35.0%"] for line in lines)
        assert lines[-1] == "  epoch 3: <odd>"
        assert repr(run) == "Run(fgsm, finished after 3 epochs, accuracy 60.0%, val_clean 80.0%, val_pgd 30.0%)"

    def test_of_no_epoch_no_data_and_a_foreign_network(self, run):
        run.history, run.data, run.model = [], None, torch.nn.Linear(2, 2)
        found = Reader(run._repr_html_())
        assert dict(found.tables[0])["model"] == "Linear, 6 parameters" and len(found.tables) == 1
        assert dict(found.tables[0])["data"] == "not at hand" and "epoch " not in str(run).replace("epoch 3: <odd>", "")


class TestData:
    def test_html_of_a_data_set(self, data):
        html = data._repr_html_()
        found = Reader(html)
        assert found.captions == ["Dataset 'digits': 10 classes, images of 1×8×8"]
        counts = torch.bincount(data.val.y)
        rows = {row[0]: row[1:] for row in found.tables[0]}
        assert rows["train"][0] == "1,293" and rows["val"] == ["144", f"{counts.min()} to {counts.max()}"]
        assert found.alts == ["One image each of the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"]
        assert "mean (0.3053), standard deviation (0.3760), no augmentation" in html and len(html) < 10_000

    def test_the_strip_is_of_the_first_image_of_each_class(self, data):
        strip = pixels(data._repr_html_())
        assert strip.shape == (48, 10 * 51 - 3, 3)
        for label in range(10):
            first = data.train.x[(data.train.y == label).nonzero()[0, 0], 0].numpy()
            assert np.array_equal(strip[::6, 51 * label : 51 * label + 48 : 6, 0], first)

    def test_large_images_are_made_small(self):
        generator = torch.Generator().manual_seed(0)
        split = at.Split(torch.randint(0, 256, (40, 3, 200, 100), dtype=torch.uint8, generator=generator),
                         torch.arange(40) % 20)  # fmt: skip
        html = split._repr_html_()
        assert pixels(html).shape == (48, 10 * 27 - 3, 3) and len(html) < 60_000
        assert dict(Reader(html).tables[0]) == {
            "images": "40", "shape": "3×200×100", "type": "uint8", "of each class": "2"
        }  # fmt: skip

    def test_what_cannot_be_shown_is_said(self):
        y = torch.tensor([0, 1])
        assert "Images of 2 channels are not shown" in at.Split(torch.rand(2, 2, 4, 4), y)._repr_html_()
        assert "Pixels from -3 to -3 are not" in at.Split(torch.full((2, 1, 4, 4), -3.0), y)._repr_html_()
        assert "are not in [0, 1]" in at.Split(torch.full((2, 1, 4, 4), torch.nan), y)._repr_html_()
        assert "img" not in at.Split(torch.zeros(0, 1, 4, 4), y[:0])._repr_html_()

    def test_names_are_escaped(self):
        x = torch.zeros(4, 1, 4, 4)
        x[0] = 1
        own = at.as_dataset((x, torch.arange(4) % 2), test=0, val=0, classes=["<b>", '"'], name="<own>")
        found = Reader(own._repr_html_())
        assert "'<own>'" in found.captions[0] and set(found.alts[0][-6:]) & set('<b>"')
        assert [row[1] for row in found.tables[0][1:]] == ["4", "none", "none"]

    def test_of_a_data_loader(self, data):
        loader = DataLoader(TensorDataset(data.val.images(), data.val.y), batch_size=64)
        own = at.as_dataset(loader, num_classes=10)
        found = Reader(own._repr_html_())
        assert found.tables[0][1][:2] == ["train", "a DataLoader"] and len(found.alts) == 1
        assert "train a DataLoader" in repr(own)

    def test_text(self, data):
        assert repr(data.test) == str(data.test) == "Split(360 images of 1x8x8, uint8)"
        assert str(data).splitlines()[1] == "  train 1,293, val 144, test 360"


def test_experiments_and_comparisons():
    results = at.load_results("digits")
    found = Reader(results._repr_html_())
    assert [row[0] for row in found.tables[0]] == ["method", *results.methods]
    tests = at.compare(results, against="pgd")
    rows = Reader(tests._repr_html_()).tables[0]
    assert len(rows) == 1 + len(tests) and rows[0][:2] == ["methods", "difference, points"]


def test_an_image_brings_its_pixels_and_its_description():
    html = pictures.tag(Image.new("RGB", (3, 2), "red"), 'a "red" <flag>')
    assert 'alt="a &quot;red&quot; &lt;flag&gt;"' in html and 'width="3" height="2"' in html
    assert (pixels(html) == (255, 0, 0)).all()


def test_weights_of_no_whole_epoch_are_not_called_those_of_one(run):
    assert "epoch 2, kept" in str(run)
    run.status = "interrupted"
    assert "kept" not in str(run) and "epoch 3, last" in str(run)
    run.options["select"] = "best"  # whose weights are put back
    assert "epoch 2, kept" in str(run)


def test_a_data_set_of_which_nothing_was_read_yet_is_shown_without_images(data):
    loader = DataLoader(TensorDataset(data.test.images(), data.test.y))
    bare = at.Dataset("own", loader, None, None, (1, 8, 8), 10, tuple("0123456789"), (0.5,), (0.5,))
    assert "<img" not in bare._repr_html_() and "a DataLoader" in bare._repr_html_()

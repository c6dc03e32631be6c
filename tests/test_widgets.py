"""Interactive figures: frames, links, still images, errors, and the answer of a kernel."""

import base64
import queue
import re
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
import torch

import advtrain as at
from advtrain.errors import ArgumentError

ipywidgets = pytest.importorskip("ipywidgets")
matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from advtrain import pictures, widgets  # noqa: E402

VIEW = "application/vnd.jupyter.widget-view+json"
DIGIT = np.linspace(0, 1, 64).reshape(8, 8)


def plot(value=0.0, size=(3, 2)):
    figure = Figure(figsize=size, dpi=100)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, value], "r")
    axes.set_title(f"ε = {value}")
    return figure


def slide(draw=lambda value: DIGIT * value, values=(0, 0.1, 0.25), **options):
    return widgets.slider(draw, values, **{"label": r"\(\varepsilon\)", "alt": "A digit at ε = {}", **options})


def png(array):
    file = BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def image_in(frame):
    """The pixels of a frame, (H, W, 3) in 0..255."""
    data = re.search(r"base64,([^\"]+)", frame.value)[1]
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))


def links():
    """All links so far, as sets of pairs (widget, trait)."""
    models = ipywidgets.Widget.get_manager_state(drop_defaults=False)["state"]
    ends = [m["state"] for m in models.values() if m["model_name"] == "LinkModel"]
    return [{tuple(end["source"]), tuple(end["target"])} for end in ends]


def linked(one, name, two, other):
    return {(f"IPY_MODEL_{one.model_id}", name), (f"IPY_MODEL_{two.model_id}", other)} in links()


class TestStructure:
    def test_a_slider_selects_a_frame_in_the_browser(self):
        figure = slide(start=2)
        (control,), stack = figure.controls, figure.children[1]
        assert isinstance(control, ipywidgets.SelectionSlider) and isinstance(stack, ipywidgets.Stack)
        assert control.options == ("0", "0.1", "0.25") and (control.index, stack.selected_index) == (2, 2)
        assert stack.children == tuple(figure.frames) and linked(control, "index", stack, "selected_index")
        assert figure._model_name == "VBoxModel" and figure._model_module == "@jupyter-widgets/controls"

    def test_nothing_plays_by_itself(self):
        button, control = slide(play=True, start=1).controls
        assert isinstance(button, ipywidgets.Play) and not button.playing
        assert (button.value, button.min, button.max) == (1, 0, 2) and linked(button, "value", control, "index")

    def test_a_grid_selects_a_row_and_then_a_frame(self):
        figure = widgets.grid(
            lambda a, b: f"<p>{a} {b}</p>", [1, 2], ["x", "y", "z"], labels=("a", "b"), alt="{1} of {0}", start=(1, 2)
        )
        (one, two), outer = figure.controls, figure.children[1]
        assert linked(one, "index", outer, "selected_index") and outer.selected_index == 1
        for a, inner in zip((1, 2), outer.children, strict=True):
            assert linked(two, "index", inner, "selected_index") and inner.selected_index == 2
            for b, frame in zip("xyz", inner.children, strict=True):
                assert f"<p>{a} {b}</p>" in frame.value and f'aria-label="{b} of {a}"' in frame.value

    def test_buttons_compare_two(self):
        figure = widgets.compare(DIGIT, 1 - DIGIT, alt=("a {digit}", "its negative"), labels=["clean", "adversarial"])
        (buttons,), stack = figure.controls, figure.children[1]
        assert buttons.options == ("clean", "adversarial") and linked(buttons, "index", stack, "selected_index")
        assert 'alt="a {digit}"' in stack.children[0].value and 'alt="its negative"' in stack.children[1].value
        assert repr(figure) == "Interactive figure: clean or adversarial"

    def test_frames_share_what_they_can(self):
        frames = slide().frames
        assert len({frame.layout.model_id for frame in frames}) == len({frame.style.model_id for frame in frames}) == 1

    def test_controls_fit_on_a_phone(self):
        figure = slide(play=True)
        assert figure.children[0].layout.flex_flow == "row wrap"
        assert figure.controls[1].layout.width == "min(100%, 30rem)"
        assert all("max-width:100%;height:auto" in frame.value for frame in figure.frames)


class TestFrames:
    def test_come_out_the_same_each_time(self):
        for draw in (plot, lambda value: DIGIT * value):
            assert [f.value for f in slide(draw).frames] == [f.value for f in slide(draw).frames]

    def test_have_no_date_and_no_program(self):
        data = base64.b64decode(re.search(r"base64,([^\"]+)", slide(plot).frames[0].value)[1])
        assert not Image.open(BytesIO(data)).info.keys() & {"Software", "date:create", "Creation Time"}

    def test_say_what_they_show(self):
        assert 'alt="A digit at ε = 0.1"' in slide().frames[1].value
        assert 'alt="&lt;0.1&gt; &quot;{}&quot;"' in slide(alt=lambda value: f'<{value}>\n "{{}}"').frames[1].value

    def test_show_pixels_larger_and_exact(self):
        image = image_in(slide().frames[2])
        assert image.shape == (280, 280, 3)
        assert (image[::35, ::35, 0] == np.round(DIGIT * 0.25 * 255)).all()
        assert (image[:35, 245:] == image[0, 279]).all()

    @pytest.mark.parametrize(
        "array",
        [
            torch.rand(3, 32, 32, requires_grad=True), torch.rand(1, 28, 28), torch.rand(8, 8, 3), torch.rand(400, 300),
            np.ones((8, 8), dtype=bool),
        ],
    )  # fmt: skip
    def test_show_images_of_any_kind(self, array):
        array_of_frame = image_in(slide(lambda _: array, [0]).frames[0]).astype(float) / 255
        pixels = array.detach().numpy() if isinstance(array, torch.Tensor) else array
        pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] in (1, 3) else pixels
        times = max(1, 280 // max(pixels.shape))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        assert abs(array_of_frame[::times, ::times] - pixels).max() <= 0.5 / 255 + 1e-6

    @pytest.mark.parametrize("levels", [2, 8])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_show_small_perturbations_as_they_are(self, levels, channels):
        rows, columns = torch.meshgrid(torch.linspace(0.4, 0.6, 32), torch.linspace(0.4, 0.6, 32), indexing="ij")
        x = torch.stack([rows, columns, (rows + columns) / 2][:channels])
        x_adv = x + levels / 255 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).sign()
        figure = widgets.compare(x, x_adv, alt=("a slope", "the slope, perturbed"))
        for frame, shown in zip(figure.frames, (x, x_adv), strict=True):
            assert (image_in(frame)[::8, ::8] == (shown.double() * 255).round().numpy().transpose(1, 2, 0)).all()

    def test_show_sixteen_bits_of_grey(self):
        grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
        assert (image_in(slide(lambda _: png(grey), [0]).frames[0])[..., 0] == np.round(grey / 257)).all()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_show_tensors_of_any_precision(self, dtype):
        image = image_in(slide(lambda _: torch.tensor([[0, 0.5], [0.25, 1]], dtype=dtype), [0]).frames[0])
        assert (image[::140, ::140, 0] == [[0, 128], [64, 255]]).all()

    def test_show_figures_as_they_are_and_close_them(self):
        from matplotlib import pyplot

        def draw(value):
            figure, axes = pyplot.subplots(figsize=(3, 2), dpi=100)
            axes.imshow(DIGIT * value, vmin=0, vmax=1)
            return figure

        backend = matplotlib.get_backend()
        pyplot.switch_backend("agg")
        figure = slide(draw)
        assert pyplot.get_fignums() == []
        draw(0.25).savefig(file := BytesIO())
        pyplot.close("all")
        pyplot.switch_backend(backend)
        original = np.asarray(Image.open(file).convert("RGB")).astype(int)
        assert abs(image_in(figure.frames[2]) - original).max() <= pictures.ROUNDING

    def test_are_on_white(self):
        transparent = png(np.zeros((10, 20, 4), dtype=np.uint8))
        assert (image_in(slide(lambda _: transparent, [0]).frames[0]) == 255).all()

    def test_are_of_one_size(self):
        figure = slide(lambda value: plot(value, size=(3, 2 + value)), [0, 1])
        assert [image_in(frame).shape for frame in figure.frames] == [(300, 300, 3)] * 2
        assert (image_in(figure.frames[0])[200:] == 255).all()

    def test_keep_all_colours_of_a_photograph(self):
        photograph = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
        assert (image_in(slide(lambda _: png(photograph), [0]).frames[0]) == photograph).all()

    def test_are_small(self):
        figure = slide(lambda value: plot(value, size=(5, 3)), np.linspace(0, 0.3, 16))
        assert figure.size == sum(len(frame.value.encode()) for frame in figure.frames) < 300_000


class TestDisplay:
    def test_gives_the_view_and_a_still_image_and_a_line(self):
        figure = slide(start=2)
        bundle = figure._repr_mimebundle_(include=None, exclude=None)
        assert bundle.keys() == {VIEW, "image/png", "text/plain"} and bundle[VIEW]["model_id"] == figure.model_id
        assert bundle["text/plain"] == repr(figure) == "Interactive figure: ε from 0 to 0.25 in 3 frames"
        assert bundle["image/png"] in figure.frames[2].value

    def test_takes_another_still_image(self):
        bundle = slide(still=plot(size=(4, 1)))._repr_mimebundle_()
        assert Image.open(BytesIO(base64.b64decode(bundle["image/png"]))).size == (400, 100)

    def test_of_html_stays_html(self):
        bundle = slide(lambda value: f"<b>{value}</b>")._repr_mimebundle_()
        assert bundle["text/html"] == "<b>0</b>" and "image/png" not in bundle

    def test_works_in_ipython(self):
        from IPython.core.formatters import DisplayFormatter

        data, _ = DisplayFormatter().format(slide())
        assert {VIEW, "image/png", "text/plain"} <= data.keys()

    def test_names_both_ranges(self):
        labels = (r"\(\lambda\)", r"step \(\alpha\)")
        figure = widgets.grid(lambda a, b: "x", [1, 2], [3, 4], labels=labels, alt="{0} {1}")
        assert repr(figure) == "Interactive figure: λ from 1 to 2, step α from 3 to 4 in 4 frames"

    @pytest.mark.parametrize(
        ("label", "name"),
        [
            (r"\(\|\delta\|_\infty \le \mathrm{eps}\)", "‖δ‖∞ ≤ eps"),
            (r"\(\varepsilon\) in \(\text{pixel units}\)", "ε in pixel units"),
            (r"$\ell_\infty$, \(\frac{8}{255}\)", "ℓ∞, 8/255"),
            (r"\(\left\lVert x \right\rVert \rightarrow 50\,\%\)", "‖ x ‖ → 50 %"),
            ("learning_rate", "learning_rate"),
        ],
    )
    def test_reads_tex_aloud(self, label, name):
        figure = slide(label=label)
        assert figure.controls[0].tooltip == name and figure.controls[0].description == label
        assert repr(figure) == f"Interactive figure: {name} from 0 to 0.25 in 3 frames"

    def test_names_the_group_of_buttons(self):
        figure = widgets.compare(DIGIT, DIGIT, alt=("a", "b"), labels=(r"\(x\)", r"\(x + \delta\)"))
        assert figure.controls[0].tooltip == "x or x + δ"

    def test_takes_what_numpy_gives(self):
        labels, start = np.array(["a", "b"]), np.array([0, 1])
        figure = widgets.grid(lambda a, b: "x", np.arange(2), np.arange(3), labels=labels, alt="{0} {1}", start=start)
        assert [(type(c.index), c.index, c.description) for c in figure.controls] == [(int, 0, "a"), (int, 1, "b")]
        assert slide(start=np.int64(1), limit=np.int32(10**6)).controls[0].index == 1


GRID = {"labels": ("a", "b"), "alt": "x"}
PHOTOGRAPH = png(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))


def subplots():
    return Figure().subplots(2, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: slide("draw"), "draw='draw' is not a function that returns a matplotlib Figure"),
        (lambda: slide(values=[]), "values=[] is not a list of at least one value"),
        (lambda: slide(values="abc"), "values='abc' is not a list"),
        (lambda: slide(values=3), "values=3 is not a list"),
        (lambda: slide(values=[0.1, 0.11], format="{:.1f}"), "'0.1' comes twice; does the format need more digits?"),
        (lambda: slide(format="{:q}"), "format='{:q}' is not a format for values"),
        (lambda: slide(start=3), "start=3 is not an index below 3"),
        (lambda: slide(start=-1), "start=-1 is not an integer of at least 0"),
        (lambda: slide(alt=""), "alt='' is not a text: say what the frame shows"),
        (lambda: slide(alt=None), "alt=None is not a text"),
        (lambda: slide(alt=lambda value: "  "), "alt='  ' is not a text"),
        (lambda: slide(alt="{0} and {1}"), "is not a text where {} stands for the written value"),
        (lambda: slide(lambda value: None), "draw(0)=None is not a matplotlib Figure"),
        (lambda: slide(lambda value: plot().axes[0]), "let draw end with `return axes.figure`"),
        (lambda: slide(lambda value: " "), "draw(0)=' ' is not"),
        (lambda: slide(lambda value: b"GIF89a"), "is not the beginning of a readable PNG file"),
        (lambda: slide(lambda value: PHOTOGRAPH[:2000]), "a readable PNG file of 2000 bytes: image"),
        (lambda: slide(lambda value: PHOTOGRAPH.replace(b"IDAT", b"IDxT")), "a readable PNG file of"),
        (lambda: slide(lambda value: subplots()), "draw(0).dtype='object' is not floating"),
        (lambda: slide(lambda value: subplots()), "let draw end with `return figure`"),
        (lambda: slide(lambda value: DIGIT * 1j), "dtype='complex128' is not floating"),
        (lambda: slide(lambda value: torch.ones(8, 8) * 1j), "dtype='complex64' is not floating"),
        (lambda: slide(lambda value: np.eye(8, dtype=np.uint8)), "dtype='uint8' is not floating"),
        (lambda: slide(lambda value: torch.eye(8).long()), "divide by 255, or call .astype(float)"),
        (lambda: slide(lambda value: torch.eye(8).to_sparse()), "draw(0)='Tensor' is not a matplotlib Figure"),
        (lambda: slide(label=None), "label=None is not a text: it names the control"),
        (lambda: slide(label=""), "label='' is not a text"),
        (lambda: slide(label=r"\(\)"), "is not a text: it names the control"),
        (lambda: widgets.grid(plot, [1], [2], **GRID | {"labels": ("a", None)}), "label=None is not a text"),
        (lambda: widgets.grid(plot, [1], [2], **GRID | {"labels": np.array(["a"])}), "labels=['a'] is not a pair"),
        (lambda: widgets.compare(DIGIT, DIGIT, alt=("a", "b"), labels=("x", " ")), "labels=' ' is not a text"),
        (lambda: widgets.compare(DIGIT, DIGIT, alt=("a", "b"), labels=(None, "x")), "labels=None is not a text"),
        (lambda: slide(lambda value: np.ones((2, 8, 8))), "draw(0).shape=(2, 8, 8) is not (H, W)"),
        (lambda: slide(lambda value: np.ones((0, 8))), "draw(0).shape=(0, 8) is not"),
        (lambda: slide(lambda value: DIGIT * 255), "of draw(0)=(0.0, 255.0) is not in [0, 1]: divide by 255"),
        (lambda: slide(lambda value: DIGIT - 0.5), "(-0.5, 0.5) is not in [0, 1]: clamp it"),
        (lambda: slide(lambda value: DIGIT * np.nan), "look for NaN"),
        (lambda: slide(still=DIGIT * 2), "(min, max) of still=(0.0, 2.0)"),
        (lambda: slide(plot, limit=2000), "limit=2000 is not enough (2 kB) for 3 frames of"),
        (lambda: slide(plot, limit=2000), "give fewer values, a smaller figure or a lower dpi"),
        (lambda: slide(limit=0), "limit=0 is not an integer of at least 1"),
        (lambda: widgets.grid(plot, [1], [2], **GRID | {"labels": "ab"}), "labels='ab' is not a pair"),
        (lambda: widgets.grid(plot, [1], [2], **GRID, start=0), "start=0 is not a pair"),
        (lambda: widgets.grid(plot, [1], [2], **GRID, formats=["{}"]), "formats=['{}'] is not a pair"),
        (lambda: widgets.grid(plot, [1], [], **GRID), "second=[] is not a list of at least one value"),
        (lambda: widgets.compare(DIGIT, DIGIT, alt="ab"), "alt='ab' is not a pair"),
        (lambda: widgets.compare(DIGIT, DIGIT, alt=("a", "")), "alt='' is not a text"),
        (lambda: widgets.compare(DIGIT, None, alt=("a", "b")), "after=None is not a matplotlib Figure"),
        (lambda: widgets.compare(DIGIT, DIGIT, alt=("a", "b"), labels=("x", "x")), "'x' comes twice"),
    ],
)  # fmt: skip
def test_an_error_says_what_came_and_what_to_do(make, words):
    with pytest.raises(ArgumentError, match=re.escape(words)):
        make()


def test_an_error_in_draw_itself_is_the_readers():
    with pytest.raises(ZeroDivisionError):
        slide(lambda value: 1 / value)


class TestLive:
    """What a kernel does when the slider moves."""

    def test_nothing_is_drawn_twice_beforehand(self):
        calls = []
        slide(lambda value: calls.append(value) or DIGIT)
        assert calls == [0, 0.1, 0.25]

    def test_a_moved_slider_draws_its_frame_anew(self):
        factor = 1.0
        figure = slide(lambda value: DIGIT * value * factor)
        before, factor = [frame.value for frame in figure.frames], 0.5
        figure.controls[0].index = 1
        after = [frame.value for frame in figure.frames]
        assert after[0] == before[0] and after[1] != before[1] and after[2] == before[2]

    def test_each_slider_of_a_grid_draws(self):
        factor = 1
        figure = widgets.grid(lambda a, b: f"{a} {b} {factor}", [1, 2], [3, 4], labels=("a", "b"), alt="{0} {1}")
        factor = 2
        figure.controls[1].index = 1
        figure.controls[0].index = 1
        assert [re.search(r">(.*)<", frame.value)[1] for frame in figure.frames] == ["1 3 1", "1 4 2", "2 3 1", "2 4 2"]

    def test_an_error_is_shown_and_passes(self):
        divisor = 1
        figure = slide(lambda value: f"{1 / divisor} <b>")
        divisor = 0
        figure.controls[0].index = 1
        assert 'role="alert"' in figure.frames[1].value and "ZeroDivisionError" in figure.frames[1].value
        divisor = 2
        figure.controls[0].index = 0
        figure.controls[0].index = 1
        assert "0.5 <b>" in figure.frames[1].value

    def test_can_be_switched_off(self):
        factor = 1
        figure = slide(lambda value: f"{factor}", live=False)
        factor = 2
        figure.controls[0].index = 1
        assert ">1<" in figure.frames[1].value and factor == 2

    def test_a_kernel_answers_the_front_end(self):
        from jupyter_client.manager import start_new_kernel

        manager, client = start_new_kernel(kernel_name="python3")
        try:
            code = "\n".join(
                [
                    "import advtrain as at", "model = 'old'",
                    "fig = at.widgets.slider(lambda v: f'{model} {v}', [1, 2, 3], label='v', alt='{}')",
                    "fig", "print(fig.controls[0].model_id, fig.frames[2].model_id)",
                ]
            )  # fmt: skip
            replies = []
            client.execute_interactive(code, timeout=60, output_hook=replies.append)
            slider, frame = next(m["content"]["text"] for m in replies if m["msg_type"] == "stream").split()
            client.execute_interactive("model = 'new'", timeout=60)
            update = {"method": "update", "state": {"index": 2}, "buffer_paths": []}
            client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": slider, "data": update}))
            assert "new 3" in self.update_of(client, frame)
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()

    @staticmethod
    def update_of(client, comm, seconds=60):
        """The HTML that the kernel sends for a frame."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                message = client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            content = message["content"]
            if message["msg_type"] == "comm_msg" and content["comm_id"] == comm:
                return content["data"]["state"]["value"]
        raise AssertionError("no answer")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


class TestImport:
    def test_waits_for_the_first_use(self):
        code = "import sys, advtrain as at; from advtrain import *; print('ipywidgets' in sys.modules, "
        code += "'widgets' in dir(at), at.widgets.__name__, 'ipywidgets' in sys.modules, 'matplotlib' in sys.modules)"
        assert python(code) == "False True advtrain.widgets True False"

    @pytest.mark.parametrize("package", ["ipywidgets", "PIL"])
    def test_names_the_package_that_is_missing(self, package):
        code = f"""
import sys, advtrain as at
sys.modules.update({{name: None for name in list(sys.modules) if name.partition('.')[0] == {package!r}}})
sys.modules[{package!r}] = None
try: at.widgets
except ImportError as error: print(error)
"""
        assert python(code) == f"advtrain.widgets needs {package}: pip install ipywidgets matplotlib"

    def test_other_names_are_not_made_up(self):
        with pytest.raises(AttributeError, match="no attribute 'gadgets'"):
            at.gadgets  # noqa: B018

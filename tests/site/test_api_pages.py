"""Everything public is explained, in its docstring and in the book, once and under the name that readers use."""

import dataclasses
import html
import importlib
import inspect
import json
import pkgutil
import re
import statistics
import sys
import types
import zlib
from pathlib import Path
from typing import get_origin

import pytest

import advtrain
from advtrain.options import documented
from advtrain.threat import format_eps


def public_modules():
    """The package, the modules it exports, and those of its modules that say in `__all__` what is public."""
    yield advtrain
    exported = [getattr(advtrain, name) for name in advtrain.__all__]
    for info in pkgutil.iter_modules(advtrain.__path__, "advtrain."):
        if not info.name.rpartition(".")[2].startswith("_"):
            module = importlib.import_module(info.name)
            if hasattr(module, "__all__") or module in exported:
                yield module


def public_names(module):
    """What `__all__` lists; without one, what the module defines under a name without an underscore."""
    if hasattr(module, "__all__"):
        return module.__all__
    return [name for name, thing in vars(module).items()
            if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__]  # fmt: skip


def collect():
    """{shortest dotted name: thing} and {longer name of the same: shortest}, modules left out."""
    names = {}
    for module in public_modules():
        for name in public_names(module):
            thing = getattr(module, name)
            if not isinstance(thing, types.ModuleType):
                names.setdefault(id(thing), (thing, []))[1].append(f"{module.__name__}.{name}")
    found, others = {}, {}
    for thing, dotted in names.values():
        short, *longer = sorted(dotted, key=lambda name: (name.count("."), name))
        found[short] = thing
        others.update(dict.fromkeys(longer, short))
    return found, others


PUBLIC, ALIASES = collect()
# Python 3.10 takes an alias such as Callable[[Run], Any] for a class.
CLASSES = {name: thing for name, thing in PUBLIC.items() if isinstance(thing, type) and get_origin(thing) is None}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isroutine(thing)}
METHODS = {
    f"{name}.{key}": getattr(cls, key)
    for name, cls in CLASSES.items()
    for key, member in vars(cls).items()
    if not key.startswith("_") and isinstance(member, (types.FunctionType, classmethod, staticmethod, property))
}


def parameters(thing):
    """All but the `*args, **kwargs` of those who pass on what they do not look at."""
    return [name for name in inspect.signature(thing).parameters if name not in ("args", "kwargs")]


def explained(thing):
    """The parameters that docstrings speak of: in a section, or in backticks.

    Attributes of a class are explained like its parameters, by the class or by one that it inherits from; and a module
    whose functions all have the same signature explains it once.
    """
    texts = [owner.__doc__ or "" for owner in getattr(thing, "__mro__", (thing,))]
    texts.append(inspect.getmodule(thing).__doc__ or "")
    words = set(documented(thing)) | set(documented(inspect.getmodule(thing)))
    for text in texts:
        words.update(name.lstrip("*") for name in re.findall(r"^ +(\*{0,2}\w+): ", text, re.MULTILINE))
        words.update(word for code in re.findall(r"`([^`]+)`", text) for word in re.findall(r"\w+", code))
    return words


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS, *METHODS])
def test_docstring(name):
    thing = {**CLASSES, **FUNCTIONS, **METHODS}[name]
    text = thing.__doc__ if isinstance(thing, type) else inspect.getdoc(thing)  # a class inherits none
    assert text, "no docstring"
    assert isinstance(thing, property) or not text.startswith(f"{name.rpartition('.')[2]}("), "made by dataclass"
    assert not text.startswith("Initialize self"), "inherited from object"


@pytest.mark.parametrize("name", [*CLASSES, *FUNCTIONS])
def test_docstring_names_every_parameter(name):
    thing = PUBLIC[name]
    if name in CLASSES and issubclass(thing, Exception):
        return  # they take a message
    silent = [parameter for parameter in parameters(thing) if parameter not in explained(thing)]
    assert not silent, f"{', '.join(silent)} of {name} is not explained"


def test_modules_say_what_they_are():
    for module in public_modules():
        assert module.__doc__, module.__name__


def inventory(folder):
    """{name: kind} of the Python objects in the book's objects.inv, without the second names that Sphinx adds."""
    head, _, rest = (folder / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2")
    found = {}
    for line in zlib.decompress(rest).decode().splitlines():
        name, kind, priority, _ = line.split(" ", 3)
        if kind.startswith("py:") and int(priority) >= 0:
            found[name] = kind.removeprefix("py:")
    return found


@pytest.fixture(scope="module")
def entries(book_html):
    return inventory(book_html)


def resolve(dotted):
    """The object that readers reach by this name: `advtrain.attacks.pgd` is the function, not the module."""
    thing, path = advtrain, "advtrain"
    for part in dotted.split(".")[1:]:
        path += f".{part}"
        if isinstance(thing, types.ModuleType):
            thing = getattr(thing, part, None) or importlib.import_module(path)
        elif isinstance(thing, types.FunctionType):  # it hides its module, which names can be imported from
            thing = getattr(importlib.import_module(path.rpartition(".")[0]), part)
        else:
            thing = inspect.getattr_static(thing, part)
    return thing


def test_book_documents_everything_public(entries):
    kinds = {name: "class" for name in CLASSES} | {name: "function" for name in FUNCTIONS}
    missing = [name for name in PUBLIC if name not in entries]
    assert not missing, "add to book/api: " + ", ".join(missing)
    for name, kind in kinds.items():
        exception = name in CLASSES and issubclass(PUBLIC[name], Exception)
        assert entries[name] == ("exception" if exception else kind), name


def test_book_documents_public_methods(entries):
    missing = [name for name in METHODS if name not in entries and name.rpartition(".")[2] != "extra_repr"]
    assert not missing, "`:members:` is missing in book/api, or an empty docstring: " + ", ".join(missing)


def test_book_documents_what_registries_hold(entries):
    """Whatever can be asked for by name is explained: a new entry of ATTACKS, MODELS, ... needs its place."""
    documented_things = {id(resolve(name)) for name, kind in entries.items() if kind in ("class", "function")}
    for name, registry in PUBLIC.items():
        for key, value in registry.items() if isinstance(registry, dict) else ():
            value = getattr(value, "builder", value)  # of a model
            if getattr(value, "__module__", "").startswith("advtrain") and getattr(value, "__name__", "<")[0] != "<":
                if isinstance(value, type) or inspect.isroutine(value):
                    assert id(value) in documented_things, f"{name}[{key!r}]"


def test_book_documents_nothing_twice(entries):
    assert not [f"{name}, which is {ALIASES[name]}" for name in entries if name in ALIASES]
    seen = {}
    for name, kind in entries.items():
        if kind in ("class", "exception", "function"):
            assert seen.setdefault(id(resolve(name)), name) == name, f"{name} is {seen[id(resolve(name))]}"


def test_book_documents_nothing_that_is_gone(entries):
    for name in entries:
        assert resolve(name) is not None, name


# ---- The pages of the defenses --------------------------------------------------------------------------------------

sys.path.append(str(Path(__file__).resolve().parents[2] / "book" / "_ext"))
import advtrain_defenses  # noqa: E402

DEFENSES = advtrain.defenses.DEFENSES


def text_of(page):
    """The words of a page, without its navigation."""
    body = page.partition("<article")[2].partition("</article>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.fixture(params=DEFENSES)
def defense_page(request, book_html):
    """The name of a defense, its class and its page."""
    page = (book_html / "book" / "api" / "defenses" / f"{request.param}.html").read_text(encoding="utf-8")
    return request.param, DEFENSES[request.param], page


def test_page_of_a_defense_has_its_equation_and_its_class(defense_page):
    name, kind, page = defense_page
    documented_class = page.partition(f'id="advtrain.defenses.{kind.__name__}"')[2]
    assert re.search(r'<div class="math notranslate nohighlight"[^>]*>.*?(CE|L) ?', documented_class, re.S), name
    for field in dataclasses.fields(kind):
        assert field.name in text_of(page)


def test_page_of_a_defense_says_where_it_comes_from(defense_page):
    """Paper and code as the docstring has them, and the chapters that speak of it."""
    name, kind, page = defense_page
    told = " ".join(kind.__doc__.split())
    for number in re.findall(r"arXiv (\d{4}\.\d+)", told):
        assert page.count(f'href="https://arxiv.org/abs/{number}"') >= 2, "among the facts and in the docstring"
    for repository in advtrain_defenses.CODE.findall(told):
        assert f'href="https://github.com/{repository}"' in page
        assert "Beside the authors’ code" in text_of(page), "a paragraph that begins with Follows"
    chapters = re.findall(r'href="\.\./\.\./(\d\d-[\w-]+)\.html"', page.partition("<article")[2])
    assert chapters, f"no chapter says `at.defenses.{kind.__name__}`"
    for chapter in chapters:
        book = Path(advtrain_defenses.BOOK, f"{chapter}.ipynb").read_text(encoding="utf-8")
        assert kind.__name__ in book


def test_page_of_a_defense_says_what_it_costs(defense_page):
    name, kind, page = defense_page
    data = advtrain.load_data("digits")
    model = advtrain.build_model("small-cnn", data)
    found = advtrain.cost(kind(advtrain.Threat("linf", eps=0.3)), model, data)
    assert f"costs {found.forwards:.1f} forward-equivalents" in text_of(page)


def test_page_of_a_defense_lists_its_presets(defense_page):
    name, _, page = defense_page
    presets = [preset for preset in advtrain.PRESETS.values() if preset.defense == name]
    said = text_of(page)
    assert presets or "no published recipe" in said
    for preset in presets:
        parts = preset.data, preset.model, format_eps(preset.eps), str(preset.fit["epochs"])
        assert " ".join(parts) in said and preset.label in said
        assert all(word in said for word in preset.source.split(", "))


def test_page_of_a_defense_has_its_recorded_rows(defense_page):
    """Read from the files a second time, without what the pages are made with."""
    name, _, page = defense_page
    said, rows = text_of(page), 0
    for path in sorted(Path(advtrain_defenses.BOOK, "results").glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("experiment", {}).get("judge", {}).get("split") != "test":
            continue
        for method in content["experiment"]["methods"]:
            runs = [run for run in content["runs"] if (run["method"], run["status"]) == (method["name"], "finished")]
            if method["defense"]["name"] == name and runs:
                share = statistics.fmean(run["rows"]["pgd"]["correct"] / run["rows"]["pgd"]["total"] for run in runs)
                row = re.search(rf"{re.escape(method['name'])} (\S+ (?:± \S+ )?){{2}}{100 * share:.1f} ", said)
                assert row, f"{path.stem}: {method['name']}"
                rows += 1
        assert f"{path.name}" in said or all(m["defense"]["name"] != name for m in content["experiment"]["methods"])
    assert rows or "Nothing is recorded yet" in said


def test_overview_leads_to_every_defense(book_html):
    page = (book_html / "book" / "api" / "defenses.html").read_text(encoding="utf-8").partition("<article")[2]
    assert [name for name in DEFENSES if f'href="defenses/{name}.html"' not in page] == []


def test_chapters_lead_to_the_defenses_that_they_introduce(book_html):
    for chapter, name in (("02-adversarial-training", "fast-at"), ("06-fast-bat", "fast-bat")):
        page = (book_html / "book" / f"{chapter}.html").read_text(encoding="utf-8")
        assert f'href="api/defenses/{name}.html#advtrain.defenses.' in page


def test_a_new_defense_gets_its_page_by_itself():
    """One file and one line: nothing else has to be written for its page to be there and whole."""

    @dataclasses.dataclass
    class Mine(advtrain.defenses.Standard):
        """Mine: clean images once more.

        Somebody (2030), arXiv 2002.00614.

        Follows the code of nobody.
        """

        name = "mine"

    text = advtrain_defenses.page("mine", Mine)
    assert text.partition("\n\n")[2].startswith("# Mine\n\nClean images once more.\n")
    assert "{cite:t}`vivek2020regularizers`, [arXiv 2002.00614](https://arxiv.org/abs/2002.00614)" in text
    assert "**3.0 forward-equivalents**" in text and "none yet" in text
    assert "no published recipe" in text and "Nothing is recorded yet" in text

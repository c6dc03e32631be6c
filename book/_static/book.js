/* What the pages of this book do beyond their theme. Runs before the theme's deferred scripts; fetches nothing. */

// The theme's icon script would replace the icons of widget buttons, which the widgets then miss: it may replace those
// that the page begins with, and no others. Depending on the theme's version, it has been loaded by now or not.
const icons = { autoReplaceSvg: false, observeMutations: false };
if (window.FontAwesome) Object.assign(FontAwesome.config, icons);
else window.FontAwesomeConfig = icons;

// Search results come with excerpts, which need the other pages; from a local file the browser does not hand them out.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

document.addEventListener("DOMContentLoaded", () => {
  window.FontAwesome?.dom.i2svg();
  bridgeMathJax();
  document.querySelectorAll("li > details > summary").forEach(nameFold);
  ["primary", "secondary"].forEach(returnFromSidebar);
  watchScrollers();
  window.addEventListener("load", () => window.MathJax?.startup?.promise.then(watchScrollers));
  document.querySelectorAll("details.quiz[data-answer]").forEach(makeQuestion);
  if (document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]')) watchWidgets();
});

// The widget manager asks for formulas the way MathJax 2 understood.
function bridgeMathJax() {
  const MathJax = window.MathJax;
  if (!MathJax || !MathJax.startup || MathJax.Hub) return;
  MathJax.Hub = {
    Queue: ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element])),
  };
}

// In the contents, what folds and unfolds the pages below a page shows nothing but an arrow.
function nameFold(summary) {
  const link = summary.closest("li").querySelector("a");
  if (link && !summary.textContent.trim()) set(summary, "aria-label", `Pages below ${link.textContent.trim()}`);
}

// Who closes a side bar on a narrow screen is back at the button that opened it; the theme leaves the focus nowhere.
function returnFromSidebar(side) {
  const toggle = document.querySelector(`.${side}-toggle`);
  const dialog = document.getElementById(`pst-${side}-sidebar-modal`);
  if (toggle && dialog) dialog.addEventListener("close", () => setTimeout(() => toggle.focus()));
}

// What scrolls sideways must be reachable by keyboard: on a narrow screen, or once it is unfolded.
const scrollers = new ResizeObserver((changes) => {
  changes.forEach(({ target }) => {
    const scrolls = target.scrollWidth > target.clientWidth && getComputedStyle(target).overflowX !== "visible";
    if (scrolls && target.tabIndex < 0) target.tabIndex = 0; // the theme has set -1 while it was folded
  });
});

function watchScrollers() {
  const boxes = "mjx-container[display], div.cell_output, div.output, pre, table, .pst-scrollable-table-container";
  document.querySelectorAll(boxes).forEach((box) => scrollers.observe(box));
}

// ---- Interactive figures --------------------------------------------------------------------------------------------

// The widget manager builds figures some time after the page has loaded: complete each as it appears.
function watchWidgets() {
  new MutationObserver(() => {
    document.querySelectorAll(".noUi-handle").forEach(nameHandle);
    document.querySelectorAll(".widget-play").forEach(namePlayer);
    document.querySelectorAll(".widget-toggle-buttons").forEach(nameChoice);
    document.querySelectorAll(".widget-subarea").forEach(replaceStill);
  }).observe(document.body, { attributeFilter: ["class"], characterData: true, childList: true, subtree: true });
}

// A slider's handle has no name of its own, and reports its position instead of the value beside it.
function nameHandle(handle) {
  const slider = handle.closest(".widget-inline-hbox, .jupyter-widgets");
  const label = slider.querySelector(".widget-label");
  const readout = slider.querySelector(".widget-readout");
  if (label) set(handle, "aria-label", label.title && label.title !== "null" ? label.title : label.textContent.trim());
  if (readout) set(handle, "aria-valuetext", readout.textContent.trim());
}

// The buttons of a player show nothing but an icon.
function namePlayer(player) {
  const [play, stop, repeat] = player.querySelectorAll("button");
  set(play, "aria-label", play.querySelector(".fa-pause") ? "Pause" : "Play");
  set(stop, "aria-label", "Stop");
  set(repeat, "aria-label", "Repeat");
  set(repeat, "aria-pressed", String(repeat.classList.contains("mod-active")));
}

// Which of the buttons is chosen is told by colour alone.
function nameChoice(choice) {
  set(choice, "role", "group");
  const buttons = [...choice.querySelectorAll("button")];
  set(choice, "aria-label", buttons.map((button) => button.textContent.trim()).join(" or "));
  buttons.forEach((button) => {
    set(button, "aria-pressed", String(button.classList.contains("mod-active")));
  });
}

function set(element, name, text) {
  if (element && text && element.getAttribute(name) !== text) element.setAttribute(name, text);
}

// The static image stays for print; on the screen the living figure stands for it.
function replaceStill(area) {
  if (!area.querySelector(".jupyter-widgets")) return;
  const output = area.closest(".cell_output, .output") || area.parentElement;
  const still = output.parentElement.querySelector(".widget-still:not(.replaced)");
  if (still && !area.dataset.still) {
    area.dataset.still = "replaced";
    still.classList.add("replaced");
  }
}

// ---- Quiz -----------------------------------------------------------------------------------------------------------

// In the source, a question is a paragraph, a list of answers and a folded explanation, which can be read anywhere. Here
// the answers become buttons to choose from. What has another shape stays as it is.
let questions = 0;

function makeQuestion(details) {
  const list = details.previousElementSibling;
  const question = list && list.previousElementSibling;
  if (!question || list.tagName !== "UL" || question.tagName !== "P") return;
  const name = `quiz-${++questions}`;

  const form = document.createElement("fieldset");
  form.className = "quiz-question";
  const legend = document.createElement("legend");
  legend.append(...question.childNodes);
  form.append(legend);
  const choices = [...list.children].map((item) => {
    const label = document.createElement("label");
    const choice = document.createElement("input");
    const text = document.createElement("span");
    const paragraph = item.children.length === 1 && item.firstElementChild.tagName === "P";
    text.append(...(paragraph ? item.firstElementChild : item).childNodes);
    choice.type = "radio";
    choice.name = name;
    label.append(choice, text);
    form.append(label);
    return choice;
  });

  // Judged on demand: who walks through the answers with the arrow keys has not chosen yet.
  const check = document.createElement("button");
  check.type = "button";
  check.className = "btn btn-sm";
  check.textContent = "Check";
  const verdict = document.createElement("span");
  verdict.className = "quiz-verdict";
  verdict.setAttribute("role", "status");
  check.addEventListener("click", () => {
    const chosen = choices.findIndex((choice) => choice.checked);
    const right = chosen + 1 === Number(details.dataset.answer);
    if (right) details.open = true;
    if (chosen < 0) verdict.textContent = "Choose an answer first.";
    else verdict.textContent = right ? "✓ Right." : "✗ Not quite. Try again, or unfold the answer.";
  });
  choices.forEach((choice) => choice.addEventListener("change", () => (verdict.textContent = "")));
  form.append(check, verdict);
  question.remove();
  list.replaceWith(form);
}

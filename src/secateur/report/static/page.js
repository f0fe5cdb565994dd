"use strict";
document.documentElement.classList.add("scripted");
for (const part of document.querySelectorAll(".explore")) {
  const svg = part.querySelector("svg.bars");
  if (!svg) continue;
  const marks = [...svg.querySelectorAll(".mark")];
  const places = marks.map((mark) => mark.getAttribute("transform"));
  const rows = marks.map((mark) => mark.querySelector(".tick").getAttribute("class"));
  const detail = part.querySelector(".detail");
  const buttons = [...part.querySelectorAll("button[data-order]")];
  let shown = marks.slice();
  const tell = (mark) => { detail.textContent = mark.getAttribute("aria-label"); };
  const arrange = (order) => {
    shown = marks.slice();
    if (order === "value") shown.sort((a, b) => Number(b.dataset.value) - Number(a.dataset.value));
    shown.forEach((mark, place) => {
      mark.setAttribute("transform", places[place]);
      mark.querySelector(".tick").setAttribute("class", rows[place]);
    });
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.order === order));
  };
  const walk = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };
  for (const mark of marks) {
    mark.addEventListener("mouseenter", () => tell(mark));
    mark.addEventListener("focus", () => tell(mark));
    mark.addEventListener("keydown", (event) => {
      const here = shown.indexOf(mark);
      const to = event.key === "Home" ? 0 : event.key === "End" ? shown.length - 1 : here + (walk[event.key] ?? NaN);
      const next = shown[to];
      if (!next) return;
      event.preventDefault();
      mark.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  for (const button of buttons) button.addEventListener("click", () => arrange(button.dataset.order));
}
// What scrolls says so; what does not is no stop on the way through the page by the tab key.
const stops = new ResizeObserver((seen) => {
  for (const { target } of seen) {
    const scrolls = target.scrollWidth > target.clientWidth;
    target.classList.toggle("scrolls", scrolls);
    if (scrolls) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
for (const part of document.querySelectorAll(".wide")) stops.observe(part);

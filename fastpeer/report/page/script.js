"use strict";
(() => {
  const root = document.documentElement, theme = document.getElementById("theme"), tip = document.getElementById("tip");

  const show = (name) => {
    root.dataset.theme = name;
    theme.textContent = name === "dark" ? "Light" : "Dark";
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  show(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => show(dark.matches ? "dark" : "light"));
  theme.addEventListener("click", () => show(root.dataset.theme === "dark" ? "light" : "dark"));

  const value = (row, column) => row.cells[column].textContent.trim();
  const order = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    if (!isNaN(x) && !isNaN(y)) return x - y;
    // What has no figure comes last.
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return a.localeCompare(b);
  };
  const sort = (heading) => {
    const body = heading.closest("table").tBodies[0], column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)));
    body.append(...(up ? rows : rows.reverse()));
  };
  for (const button of document.querySelectorAll("thead button"))
    button.addEventListener("click", () => sort(button.parentNode));

  for (const button of document.querySelectorAll(".legend button"))
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", shown);
      const group = button.closest("figure").querySelector(`.series[data-series="${button.dataset.series}"]`);
      group.classList.toggle("off", !shown);
    });

  const nearest = (svg, x, y) => {
    let best = null, least = 40 * 40;
    for (const group of svg.querySelectorAll(".series:not(.off)")) {
      group.points ??= JSON.parse(group.dataset.points);
      for (const [px, py, text] of group.points) {
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (distance < least) { least = distance; best = `${group.dataset.name} · ${text}`; }
      }
    }
    return best;
  };
  const place = (event) => {
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 10)}px`;
  };
  for (const svg of document.querySelectorAll(".charts svg")) {
    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const text = nearest(svg, at.x, at.y);
      tip.hidden = !text;
      if (text) { tip.textContent = text; place(event); }
    });
    svg.addEventListener("pointerleave", () => { tip.hidden = true; });
  }
})();
